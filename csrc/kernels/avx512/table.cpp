#include "kernels/avx512/simd.h"
// The vector type comes first: the shared bodies are written against it.
#include "kernels/scalar/selected.h"
#include "kernels/vector/ops.h"

namespace ryz::avx2 {
void lookup_tables(const LookupTablesArgs& a) noexcept;
}

namespace ryz::avx512 {

using avx2::lookup_tables;
using scalar::select_gates;
using scalar::select_nonzero;
using scalar::selected_columns;
using scalar::selected_rows;
void grouped_linear(const GroupedLinearArgs& a) noexcept;
void screen_linear(const ScreenLinearArgs& a) noexcept;
void screen_rest(const ScreenRestArgs& a) noexcept;

extern const KernelTable kTable;
const KernelTable kTable = {
#define RYZ_TABLE_ENTRY(name, Args) &name,
    RYZ_OPS(RYZ_TABLE_ENTRY)
#undef RYZ_TABLE_ENTRY
};

}  // namespace ryz::avx512
