#include "kernels/avx2/ternary_linear.h"

#include "kernels/avx2/multiply_add.h"
#include "kernels/avx2/ternary_formats.h"

namespace ryz::avx2 {
namespace {

struct MultiplyAdd {
  static void add(__m256i& sum, __m256i codes, __m256i x) { multiply_add(sum, codes, x); }
  // at_bit0 + at_bit2 / 4, which is exact.
  static __m256i add_quarter(__m256i at_bit0, __m256i at_bit2) {
    return _mm256_add_epi16(at_bit0, _mm256_srai_epi16(at_bit2, 2));
  }
  static __m256i fold(__m256i sum, __m256i words) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
  }
};

}  // namespace

void ternary2_linear(const TernaryLinearArgs& a) noexcept {
  ternary_linear<TwoBit, MultiplyAdd>(a);
}
void ternary5_linear(const TernaryLinearArgs& a) noexcept {
  ternary_linear<FiveTrit, MultiplyAdd>(a);
}

}  // namespace ryz::avx2
