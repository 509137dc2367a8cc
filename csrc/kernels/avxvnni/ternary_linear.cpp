#include "kernels/avx2/ternary_linear.h"

#include "kernels/avx2/ternary_formats.h"
#include "kernels/avxvnni/dot_product.h"

namespace ryz::avxvnni {
namespace {

struct DotProduct {
  static void add(__m256i& sum, __m256i codes, __m256i x) { dot4(sum, codes, x); }
  static __m256i add_quarter(__m256i at_bit0, __m256i at_bit2) {
    return _mm256_add_epi32(at_bit0, _mm256_srai_epi32(at_bit2, 2));
  }
  static __m256i fold(__m256i sum, __m256i dwords) { return _mm256_add_epi32(sum, dwords); }
};

}  // namespace

void ternary2_linear(const TernaryLinearArgs& a) noexcept { ternary_linear<TwoBit, DotProduct>(a); }
void ternary5_linear(const TernaryLinearArgs& a) noexcept {
  ternary_linear<FiveTrit, DotProduct>(a);
}

}  // namespace ryz::avxvnni
