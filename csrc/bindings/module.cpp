#include "bindings/bindings.h"

PYBIND11_MODULE(_core, m) {
  ryz::register_errors();
  ryz::bind_cpu(m);
  ryz::bind_probe(m);
  ryz::bind_kernels(m);
  ryz::bind_quant(m);
  ryz::bind_grouped(m);
  ryz::bind_kv(m);
  ryz::bind_model(m);
  ryz::bind_sampling(m);
  pybind11::module_ ops = m.def_submodule("ops", "Single kernels, for tests and benchmarks.");
  ryz::bind_ops(ops);
}
