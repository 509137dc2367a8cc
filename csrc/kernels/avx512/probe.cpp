// VPDPBUSD on registers alone: 64 products per instruction, two of them per cycle at best.
#include "kernels/avx512/dot4.h"
#include "kernels/ops.h"

namespace ryz::avx512 {

std::size_t multiply_add_probe(const MultiplyAddProbeArgs& a) noexcept {
  // More chains than latency times throughput, so that none has to wait for its last sum.
  constexpr std::size_t kChains = 16;
  constexpr std::size_t kBytes = 64;
  // Every loop over the chains is unrolled: otherwise they live in memory.
  __m512i sums[kChains];
#pragma GCC unroll 16
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  const __m512i ones = _mm512_set1_epi8(1);
  for (std::size_t round = 0; round < a.rounds; ++round) {
#pragma GCC unroll 16
    for (std::size_t chain = 0; chain < kChains; ++chain) dot4(sums[chain], ones, ones);
  }
  __m512i total = sums[0];
#pragma GCC unroll 16
  for (std::size_t chain = 1; chain < kChains; ++chain) {
    total = _mm512_add_epi32(total, sums[chain]);
  }
  *a.out = _mm_cvtsi128_si32(_mm512_castsi512_si128(total));  // all lanes are the same
  return a.rounds * kChains * kBytes;
}

}  // namespace ryz::avx512
