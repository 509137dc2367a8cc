// The kernel table of each tier, and the kernels to choose from for ternary and grouped matrices. A
// tier is chosen once, when a decoder is made; a ternary or grouped kernel for each matrix.
#pragma once

#include <map>
#include <span>
#include <string>

#include "cpu/features.h"
#include "kernels/ops.h"

namespace ryz {

// `isa` must come from resolve_isa(), here and below: only then can this CPU run what is returned.
const KernelTable& kernel_table(Isa isa);

// One way to compute a ternary linear. All give the same bits.
struct TernaryKernel {
  const char* name;  // format/instructions, unique over all tiers
  TernaryFormat format;
  void (*linear)(const TernaryLinearArgs&) noexcept;
};

// Those of a tier that this CPU runs, both formats among them; the first is the best guess.
std::span<const TernaryKernel> ternary_kernels(Isa isa);

// The one of that name, or without a name the first of the format. Throws ValidationError where the
// tier has none of that name, or it reads another format.
const TernaryKernel& ternary_kernel(Isa isa, TernaryFormat format, const std::string& name);

// One way to compute a grouped linear of one token; more tokens take the tier's grouped_linear. All
// give the same bits.
struct GroupedKernel {
  const char* name;  // method/instructions, unique over all tiers
  bool reads_tables;
  void (*linear)(const GroupedLinearArgs&) noexcept;
};

// Those of a tier that this CPU runs for codes of so many bits; the first is the tier's
// grouped_linear.
std::span<const GroupedKernel> grouped_kernels(Isa isa, std::size_t bits);

// The one of that name, or without a name the first. Throws ValidationError where the tier has none
// of that name for these bits.
const GroupedKernel& grouped_kernel(Isa isa, std::size_t bits, const std::string& name);

// Whether the ops on selected channels are more than their scalar bodies.
bool has_selected_kernels(Isa isa);

// For reports: op -> the kernel that is taken where nothing was measured.
std::map<std::string, std::string> describe_kernels(Isa isa);

namespace scalar {
extern const KernelTable kTable;
}
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}

}  // namespace ryz
