// vpmaddubsw with its add, for the tier without a byte dot product.
#pragma once

#include <immintrin.h>

namespace ryz::RYZ_TIER {
namespace {

// sum += pairs of products of unsigned codes and x, in int16. Written as assembly where the
// compiler allows: GCC 12 computes all products of a tile before it adds the first, and spills the
// sums.
inline void multiply_add(__m256i& sum, __m256i codes, __m256i x) {
#if defined(__GNUC__)
  __m256i pairs;
  __asm__(
      "vpmaddubsw %3, %2, %1\n\t"
      "vpaddw %1, %0, %0"
      : "+x"(sum), "=&x"(pairs)
      : "x"(codes), "x"(x));
#else
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x));
#endif
}

}  // namespace
}  // namespace ryz::RYZ_TIER
