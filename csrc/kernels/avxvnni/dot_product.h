// vpdpbusd on ymm.
#pragma once

#include <immintrin.h>

namespace ryz::RYZ_TIER {
namespace {

// sum += dot of 4 unsigned codes with 4 activations, in int32. Written as assembly where the
// compiler allows, as in avx512/dot4.h.
inline void dot4(__m256i& sum, __m256i codes, __m256i x) {
#if defined(__GNUC__)
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(x));
#else
  sum = _mm256_dpbusd_avx_epi32(sum, codes, x);
#endif
}

}  // namespace
}  // namespace ryz::RYZ_TIER
