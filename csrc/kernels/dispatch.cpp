#include "kernels/dispatch.h"

namespace ryz {

#ifdef RYZ_HAVE_AVX512
namespace avx512vbmi {
void ternary5_linear(const TernaryLinearArgs& a) noexcept;
void select_gates(const SelectGatesArgs& a) noexcept;
void select_nonzero(const SelectNonzeroArgs& a) noexcept;
void selected_rows(const SelectedRowsArgs& a) noexcept;
void selected_columns(const SelectedColumnsArgs& a) noexcept;
}  // namespace avx512vbmi

namespace {

// The AVX-512 tier with what the finer features of this CPU add.
KernelTable avx512_table() {
  KernelTable table = avx512::kTable;
  if (cpu_features().avx512vbmi) {
    table.ternary5_linear = avx512vbmi::ternary5_linear;
    table.select_gates = avx512vbmi::select_gates;
    table.select_nonzero = avx512vbmi::select_nonzero;
    table.selected_rows = avx512vbmi::selected_rows;
    table.selected_columns = avx512vbmi::selected_columns;
  }
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

bool has_selected_kernels(Isa isa) { return isa == Isa::kAvx512 && cpu_features().avx512vbmi; }

std::map<std::string, std::string> describe_kernels(Isa isa) {
  const TernaryFormat format = preferred_format(isa);
  const char* with = isa == Isa::kScalar                ? "plain C++"
                     : isa == Isa::kAvx2                ? "vpmaddubsw ymm"
                     : format == TernaryFormat::kTwoBit ? "vpdpbusd zmm"
                                                        : "vpermi2b + vpdpbusd zmm";
  return {{"ternary_linear", std::string(format_name(format)) + ", " + with}};
}

}  // namespace ryz
