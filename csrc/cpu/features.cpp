#include "cpu/features.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>

#include "base/error.h"

#if defined(__x86_64__) || defined(_M_X64)
#define RYZ_X86 1
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace ryz {
namespace {

#ifdef RYZ_X86
struct Regs {
  std::uint32_t a, b, c, d;
};

Regs cpuid(std::uint32_t leaf, std::uint32_t subleaf) {
  Regs r{};
#ifdef _MSC_VER
  int out[4];
  __cpuidex(out, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<std::uint32_t>(out[0]), static_cast<std::uint32_t>(out[1]),
       static_cast<std::uint32_t>(out[2]), static_cast<std::uint32_t>(out[3])};
#else
  __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
#endif
  return r;
}

std::uint64_t xgetbv() {
#ifdef _MSC_VER
  return _xgetbv(0);
#else
  std::uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
#endif
}

bool bit(std::uint32_t word, int index) { return ((word >> index) & 1u) != 0; }
#endif

CpuFeatures detect() {
  CpuFeatures f;
#ifdef RYZ_X86
  const std::uint32_t max_leaf = cpuid(0, 0).a;
  const Regs one = cpuid(1, 0);
  if (max_leaf < 7) return f;
  const Regs seven = cpuid(7, 0);
  const std::uint64_t xcr0 = bit(one.c, 27) ? xgetbv() : 0;  // OSXSAVE
  f.os_avx = (xcr0 & 0x6) == 0x6;
  f.os_avx512 = (xcr0 & 0xe6) == 0xe6;
  f.fma = bit(one.c, 12);
  f.f16c = bit(one.c, 29);
  f.avx2 = bit(seven.b, 5);
  f.bmi2 = bit(seven.b, 8);
  f.avx512f = bit(seven.b, 16);
  f.avx512dq = bit(seven.b, 17);
  f.avx512cd = bit(seven.b, 28);
  f.avx512bw = bit(seven.b, 30);
  f.avx512vl = bit(seven.b, 31);
  f.avx512vbmi = bit(seven.c, 1);
  f.avx512vnni = bit(seven.c, 11);
  const Regs seven_one = seven.a >= 1 ? cpuid(7, 1) : Regs{};
  f.avx_vnni = bit(seven_one.a, 4);
  f.avx512bf16 = bit(seven_one.a, 5);
#endif
  return f;
}

bool cpu_runs(Isa isa) {
  const CpuFeatures& f = cpu_features();
  const bool avx2 = f.os_avx && f.avx2 && f.fma && f.f16c && f.bmi2;
  const bool avx512 = avx2 && f.os_avx512 && f.avx512f && f.avx512bw && f.avx512vl && f.avx512dq &&
                      f.avx512cd && f.avx512vnni;
  switch (isa) {
    case Isa::kScalar:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx512;
  }
  return false;
}

std::string join_names(const std::vector<Isa>& isas) {
  std::string text;
  for (Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(isa_name(isa));
  return text;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

const char* isa_name(Isa isa) {
  constexpr std::array<const char*, 3> names = {"scalar", "avx2", "avx512"};
  return names[static_cast<std::size_t>(isa)];
}

std::vector<Isa> compiled_isas() {
  std::vector<Isa> isas = {Isa::kScalar};
#ifdef RYZ_HAVE_AVX2
  isas.push_back(Isa::kAvx2);
#endif
#ifdef RYZ_HAVE_AVX512
  isas.push_back(Isa::kAvx512);
#endif
  return isas;
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas = compiled_isas();
  std::erase_if(isas, [](Isa isa) { return !cpu_runs(isa); });
  return isas;
}

Isa resolve_isa(const std::string& name) {
  const std::vector<Isa> available = available_isas();
  std::string wanted = name;
  std::string source = "isa";
  if (wanted.empty()) {
    const char* forced = std::getenv("RYZANSTEIN_ISA");
    if (forced == nullptr || *forced == '\0') return available.back();
    wanted = forced;
    source = "RYZANSTEIN_ISA";
  }
  for (Isa isa : available) {
    if (wanted == isa_name(isa)) return isa;
  }
  throw ValidationError(
      "[isa] " + source + "='" + wanted +
      "' is not a tier this CPU and build can run; use one of: " + join_names(available));
}

}  // namespace ryz
