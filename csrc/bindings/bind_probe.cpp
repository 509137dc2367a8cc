#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings/bindings.h"
#include "cpu/probe.h"
#include "kernels/probe.h"

namespace py = pybind11;

namespace ryz {

void bind_probe(py::module_& m) {
  m.def(
      "probe_bandwidth",
      [](int threads, std::size_t bytes) {
        const py::gil_scoped_release release;
        return read_bandwidth(threads, bytes);
      },
      py::arg("threads"), py::arg("bytes"));
  m.def(
      "probe_multiply_add",
      [](const std::string& isa, int threads) {
        const py::gil_scoped_release release;
        return multiply_add_rate(resolve_isa(isa), threads);
      },
      py::arg("isa"), py::arg("threads"));
}

}  // namespace ryz
