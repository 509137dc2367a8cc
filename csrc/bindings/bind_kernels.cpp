// The kernels to choose from for a matrix: their names, and how fast they are here.
#include <pybind11/stl.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "kernels/dispatch.h"
#include "kernels/kernel_timing.h"

namespace py = pybind11;

namespace ryz {
namespace {

template <typename Kernel>
std::vector<std::string> names_of(std::span<const Kernel> kernels) {
  std::vector<std::string> names;
  for (const Kernel& kernel : kernels) names.emplace_back(kernel.name);
  return names;
}

// Kernel name -> (one token, many tokens), in seconds and in the kernels' order.
template <typename Measure>
py::dict timed(const Measure& measure) {
  std::vector<KernelTiming> timings;
  {
    const py::gil_scoped_release release;
    timings = measure();
  }
  py::dict named;
  for (const KernelTiming& timing : timings) {
    named[timing.name] = py::make_tuple(timing.one_token, timing.many_tokens);
  }
  return named;
}

}  // namespace

void bind_kernels(py::module_& m) {
  m.def(
      "ternary_kernels",
      [](const std::optional<std::string>& isa) {
        return names_of(ternary_kernels(resolve_isa(isa.value_or(""))));
      },
      py::arg("isa") = py::none());
  m.def(
      "grouped_kernels",
      [](const std::optional<std::string>& isa, std::size_t bits) {
        return names_of(grouped_kernels(resolve_isa(isa.value_or("")), bits));
      },
      py::arg("isa") = py::none(), py::kw_only(), py::arg("bits"));
  m.def(
      "time_ternary_kernels",
      [](std::size_t rows, std::size_t columns, const std::string& isa, int threads) {
        const Isa tier = resolve_isa(isa);
        return timed([&] { return time_ternary_kernels(tier, rows, columns, threads); });
      },
      py::arg("rows"), py::arg("columns"), py::kw_only(), py::arg("isa"), py::arg("threads"));
  m.def(
      "time_grouped_kernels",
      [](std::size_t rows, std::size_t columns, std::size_t bits, const std::string& isa,
         int threads) {
        const Isa tier = resolve_isa(isa);
        return timed([&] { return time_grouped_kernels(tier, rows, columns, bits, threads); });
      },
      py::arg("rows"), py::arg("columns"), py::arg("bits"), py::kw_only(), py::arg("isa"),
      py::arg("threads"));
}

}  // namespace ryz
