// The kernel table of each tier. A tier is chosen once, when a decoder is made.
#pragma once

#include <map>
#include <string>

#include "cpu/features.h"
#include "kernels/ops.h"

namespace ryz {

// `isa` must come from resolve_isa(): only then can this CPU run what the table points to.
const KernelTable& kernel_table(Isa isa);

// The ternary format this tier reads fastest on this CPU.
TernaryFormat preferred_format(Isa isa);

// Whether the ops on selected channels are more than their scalar bodies.
bool has_selected_kernels(Isa isa);

// For reports: op -> the format and instructions it rests on.
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
