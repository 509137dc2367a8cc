#include "kernels/avx512/ternary_linear.h"
#include "kernels/avx512vbmi/five_trit.h"

namespace ryz::avx512vbmi {

void ternary5_linear(const TernaryLinearArgs& a) noexcept { ternary_linear<FiveTrit>(a); }

}  // namespace ryz::avx512vbmi
