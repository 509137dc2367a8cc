// One function per area; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace ryz {

void register_errors();
void bind_cpu(pybind11::module_& m);
void bind_probe(pybind11::module_& m);
void bind_kernels(pybind11::module_& m);
void bind_quant(pybind11::module_& m);
void bind_grouped(pybind11::module_& m);
void bind_kv(pybind11::module_& m);
void bind_model(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);
void bind_ops(pybind11::module_& m);

}  // namespace ryz
