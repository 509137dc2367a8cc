#include "kernels/avx512/simd.h"
// The vector type comes first: the shared bodies are written against it.
#include "kernels/scalar/selected.h"
#include "kernels/vector/ops.h"

namespace ryz::scalar {

void ternary5_linear(const TernaryLinearArgs& a) noexcept;

}  // namespace ryz::scalar

namespace ryz::avx512 {

// Without byte permutes the digits cost more than the bandwidth they save: never the faster format.
using scalar::select_gates;
using scalar::select_nonzero;
using scalar::selected_columns;
using scalar::selected_rows;
using scalar::ternary5_linear;
void ternary2_linear(const TernaryLinearArgs& a) noexcept;
void screen_linear(const ScreenLinearArgs& a) noexcept;
void screen_rest(const ScreenRestArgs& a) noexcept;

extern const KernelTable kTable;
const KernelTable kTable = {
#define RYZ_TABLE_ENTRY(name, Args) &name,
    RYZ_OPS(RYZ_TABLE_ENTRY)
#undef RYZ_TABLE_ENTRY
};

}  // namespace ryz::avx512
