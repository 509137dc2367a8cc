#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "cpu/features.h"
#include "kernels/dispatch.h"

namespace py = pybind11;

namespace ryz {
namespace {

std::vector<std::string> names(const std::vector<Isa>& isas) {
  std::vector<std::string> out;
  for (Isa isa : isas) out.emplace_back(isa_name(isa));
  return out;
}

std::map<std::string, bool> features() {
  const CpuFeatures& f = cpu_features();
  return {{"avx2", f.avx2},
          {"fma", f.fma},
          {"f16c", f.f16c},
          {"bmi2", f.bmi2},
          {"avx512f", f.avx512f},
          {"avx512bw", f.avx512bw},
          {"avx512vl", f.avx512vl},
          {"avx512dq", f.avx512dq},
          {"avx512cd", f.avx512cd},
          {"avx512vnni", f.avx512vnni},
          {"avx512vbmi", f.avx512vbmi},
          {"avx512bf16", f.avx512bf16},
          {"avx_vnni", f.avx_vnni},
          {"os_avx", f.os_avx},
          {"os_avx512", f.os_avx512}};
}

py::dict build_info() {
  py::dict info;
  info["version"] = RYZ_VERSION;
  info["commit"] = RYZ_COMMIT;
  info["compiler"] = RYZ_COMPILER;
#ifdef NDEBUG
  info["assertions"] = false;
#else
  info["assertions"] = true;
#endif
  info["compiled_isas"] = names(compiled_isas());
  return info;
}

}  // namespace

void bind_cpu(py::module_& m) {
  m.def("build_info", &build_info);
  m.def("cpu_features", &features);
  m.def("available_isas", [] { return names(available_isas()); });
  m.def(
      "kernels",
      [](const std::optional<std::string>& isa) {
        return describe_kernels(resolve_isa(isa.value_or("")));
      },
      py::arg("isa") = py::none());
  m.def(
      "resolve_isa",
      [](const std::optional<std::string>& name) {
        return std::string(isa_name(resolve_isa(name.value_or(""))));
      },
      py::arg("name") = py::none());
}

}  // namespace ryz
