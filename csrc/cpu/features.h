// What the CPU offers and the OS lets us use, and the tiers built on it.
#pragma once

#include <string>
#include <vector>

namespace ryz {

struct CpuFeatures {
  bool avx2 = false, fma = false, f16c = false, bmi2 = false;
  bool avx512f = false, avx512bw = false, avx512vl = false, avx512dq = false, avx512cd = false;
  bool avx512vnni = false, avx512vbmi = false, avx512bf16 = false, avx_vnni = false;
  // XCR0: the OS saves ymm (0x6) and zmm (0xe6) registers across context switches.
  bool os_avx = false, os_avx512 = false;
};

enum class Isa { kScalar, kAvx2, kAvx512 };

const CpuFeatures& cpu_features();
const char* isa_name(Isa isa);
std::vector<Isa> compiled_isas();
std::vector<Isa> available_isas();

// `name`, else RYZANSTEIN_ISA, else the highest available tier. Throws ValidationError.
Isa resolve_isa(const std::string& name);

}  // namespace ryz
