#include "kernels/dispatch.h"

#include <vector>

#include "base/error.h"

namespace ryz {

#define RYZ_TERNARY_KERNELS(instructions)                    \
  namespace instructions {                                   \
  void ternary2_linear(const TernaryLinearArgs& a) noexcept; \
  void ternary5_linear(const TernaryLinearArgs& a) noexcept; \
  }
RYZ_TERNARY_KERNELS(scalar)
RYZ_TERNARY_KERNELS(avx2)
RYZ_TERNARY_KERNELS(avxvnni)
RYZ_TERNARY_KERNELS(avx512)
RYZ_TERNARY_KERNELS(avx512vbmi)
#undef RYZ_TERNARY_KERNELS

namespace scalar {
void lookup_linear(const GroupedLinearArgs& a) noexcept;
}
namespace avx2 {
void lookup_linear(const GroupedLinearArgs& a) noexcept;
}
namespace avxvnni {
void grouped_linear(const GroupedLinearArgs& a) noexcept;
}

namespace avx512vbmi {
void select_gates(const SelectGatesArgs& a) noexcept;
void select_nonzero(const SelectNonzeroArgs& a) noexcept;
void selected_rows(const SelectedRowsArgs& a) noexcept;
void selected_columns(const SelectedColumnsArgs& a) noexcept;
void lookup_linear(const GroupedLinearArgs& a) noexcept;
}  // namespace avx512vbmi

namespace {

#define RYZ_TWO_BIT(instructions) \
  {"two_bit/" #instructions, TernaryFormat::kTwoBit, instructions::ternary2_linear}
#define RYZ_FIVE_TRIT(instructions) \
  {"five_trit/" #instructions, TernaryFormat::kFiveTrit, instructions::ternary5_linear}

constexpr TernaryKernel kScalarKernels[] = {RYZ_TWO_BIT(scalar), RYZ_FIVE_TRIT(scalar)};

#ifdef RYZ_HAVE_AVX2
// Finer features first: where the CPU lacks them, the list begins behind them.
constexpr TernaryKernel kAvx2Kernels[] = {RYZ_TWO_BIT(avxvnni), RYZ_FIVE_TRIT(avxvnni),
                                          RYZ_TWO_BIT(avx2), RYZ_FIVE_TRIT(avx2)};
#endif

#ifdef RYZ_HAVE_AVX512
constexpr TernaryKernel kAvx512Kernels[] = {RYZ_FIVE_TRIT(avx512vbmi), RYZ_TWO_BIT(avx512),
                                            RYZ_FIVE_TRIT(avx512)};
#endif

#undef RYZ_TWO_BIT
#undef RYZ_FIVE_TRIT

// No tables for codes of 8 bits.
constexpr std::size_t kMostLookupBits = 4;

GroupedKernel multiply_add(Isa isa, const char* name) {
  return {name, false, kernel_table(isa).grouped_linear};
}

#ifdef RYZ_HAVE_AVX2
// The AVX2 tier with what the finer features of this CPU add.
KernelTable avx2_table() {
  KernelTable table = avx2::kTable;
  if (cpu_features().avx_vnni) table.grouped_linear = avxvnni::grouped_linear;
  return table;
}
#endif

#ifdef RYZ_HAVE_AVX512
// The AVX-512 tier with what the finer features of this CPU add.
KernelTable avx512_table() {
  KernelTable table = avx512::kTable;
  if (cpu_features().avx512vbmi) {
    table.select_gates = avx512vbmi::select_gates;
    table.select_nonzero = avx512vbmi::select_nonzero;
    table.selected_rows = avx512vbmi::selected_rows;
    table.selected_columns = avx512vbmi::selected_columns;
  }
  return table;
}
#endif

}  // namespace

const KernelTable& kernel_table(Isa isa) {
  switch (isa) {
#ifdef RYZ_HAVE_AVX512
    case Isa::kAvx512: {
      static const KernelTable table = avx512_table();
      return table;
    }
#endif
#ifdef RYZ_HAVE_AVX2
    case Isa::kAvx2: {
      static const KernelTable table = avx2_table();
      return table;
    }
#endif
    default:
      return scalar::kTable;
  }
}

std::span<const TernaryKernel> ternary_kernels(Isa isa) {
  switch (isa) {
#ifdef RYZ_HAVE_AVX512
    case Isa::kAvx512:
      return std::span(kAvx512Kernels).subspan(cpu_features().avx512vbmi ? 0 : 1);
#endif
#ifdef RYZ_HAVE_AVX2
    case Isa::kAvx2:
      return std::span(kAvx2Kernels).subspan(cpu_features().avx_vnni ? 0 : 2);
#endif
    default:
      return kScalarKernels;
  }
}

const TernaryKernel& ternary_kernel(Isa isa, TernaryFormat format, const std::string& name) {
  std::string names;
  for (const TernaryKernel& kernel : ternary_kernels(isa)) {
    if (kernel.format != format) continue;
    if (name.empty() || name == kernel.name) return kernel;
    names += (names.empty() ? "" : ", ") + std::string(kernel.name);
  }
  throw ValidationError("[ternary_kernel] '" + name + "' does not read " + format_name(format) +
                        " matrices under tier " + isa_name(isa) + "; use one of: " + names);
}

std::span<const GroupedKernel> grouped_kernels(Isa isa, std::size_t bits) {
  const std::size_t count = bits <= kMostLookupBits ? 2 : 1;
  switch (isa) {
#ifdef RYZ_HAVE_AVX512
    case Isa::kAvx512: {
      static const GroupedKernel kernels[] = {
          multiply_add(isa, "multiply_add/avx512"),
          cpu_features().avx512vbmi
              ? GroupedKernel{"lookup/avx512vbmi", true, avx512vbmi::lookup_linear}
              : GroupedKernel{"lookup/avx2", true, avx2::lookup_linear}};
      return std::span(kernels).first(count);
    }
#endif
#ifdef RYZ_HAVE_AVX2
    case Isa::kAvx2: {
      static const GroupedKernel kernels[] = {
          multiply_add(isa, cpu_features().avx_vnni ? "multiply_add/avxvnni" : "multiply_add/avx2"),
          {"lookup/avx2", true, avx2::lookup_linear}};
      return std::span(kernels).first(count);
    }
#endif
    default: {
      static const GroupedKernel kernels[] = {multiply_add(isa, "multiply_add/scalar"),
                                              {"lookup/scalar", true, scalar::lookup_linear}};
      return std::span(kernels).first(count);
    }
  }
}

const GroupedKernel& grouped_kernel(Isa isa, std::size_t bits, const std::string& name) {
  std::string names;
  for (const GroupedKernel& kernel : grouped_kernels(isa, bits)) {
    if (name.empty() || name == kernel.name) return kernel;
    names += (names.empty() ? "" : ", ") + std::string(kernel.name);
  }
  throw ValidationError("[grouped_kernel] '" + name + "' does not read codes of " +
                        std::to_string(bits) + " bits under tier " + isa_name(isa) +
                        "; use one of: " + names);
}

bool has_selected_kernels(Isa isa) { return isa == Isa::kAvx512 && cpu_features().avx512vbmi; }

std::map<std::string, std::string> describe_kernels(Isa isa) {
  return {{"ternary_linear", ternary_kernels(isa).front().name}};
}

}  // namespace ryz
