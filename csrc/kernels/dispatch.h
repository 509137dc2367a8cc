// The kernel table of each tier. A tier is chosen once, when a decoder is made.
#pragma once

#include "cpu/features.h"
#include "kernels/ops.h"

namespace ryz {

// `isa` must come from resolve_isa(): only then can this CPU run what the table points to.
const KernelTable& kernel_table(Isa isa);

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
