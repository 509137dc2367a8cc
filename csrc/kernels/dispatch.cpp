#include "kernels/dispatch.h"

namespace ryz {

#ifdef RYZ_HAVE_AVX512
namespace avx512vbmi {
void ternary5_linear(const TernaryLinearArgs& a) noexcept;
}

namespace {

// The AVX-512 tier with what the finer features of this CPU add.
KernelTable avx512_table() {
  KernelTable table = avx512::kTable;
  if (cpu_features().avx512vbmi) table.ternary5_linear = avx512vbmi::ternary5_linear;
  return table;
}

}  // namespace
#endif

const KernelTable& kernel_table(Isa isa) {
  switch (isa) {
#ifdef RYZ_HAVE_AVX512
    case Isa::kAvx512: {
      static const KernelTable table = avx512_table();
      return table;
    }
#endif
#ifdef RYZ_HAVE_AVX2
    case Isa::kAvx2:
      return avx2::kTable;
#endif
    default:
      return scalar::kTable;
  }
}

TernaryFormat preferred_format(Isa isa) {
  return isa == Isa::kAvx512 && cpu_features().avx512vbmi ? TernaryFormat::kFiveTrit
                                                          : TernaryFormat::kTwoBit;
}

std::map<std::string, std::string> describe_kernels(Isa isa) {
  const TernaryFormat format = preferred_format(isa);
  const char* with = isa == Isa::kScalar                ? "plain C++"
                     : isa == Isa::kAvx2                ? "vpmaddubsw ymm"
                     : format == TernaryFormat::kTwoBit ? "vpdpbusd zmm"
                                                        : "vpermi2b + vpdpbusd zmm";
  return {{"ternary_linear", std::string(format_name(format)) + ", " + with}};
}

}  // namespace ryz
