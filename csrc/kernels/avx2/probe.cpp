// VPMADDUBSW and VPADDW on registers alone: 32 products per pair of instructions.
#include <immintrin.h>

#include "kernels/ops.h"

namespace ryz::avx2 {
namespace {

// Written as assembly: a compiler would take the product, which never changes, out of the loop.
inline void multiply_add(__m256i& sum, __m256i unsigned_bytes, __m256i signed_bytes) {
  __m256i product;
  __asm__ volatile(
      "vpmaddubsw %3, %2, %1\n\t"
      "vpaddw %1, %0, %0"
      : "+x"(sum), "=&x"(product)
      : "x"(unsigned_bytes), "x"(signed_bytes));
}

}  // namespace

std::size_t multiply_add_probe(const MultiplyAddProbeArgs& a) noexcept {
  constexpr std::size_t kChains = 8;
  constexpr std::size_t kBytes = 32;
  // Every loop over the chains is unrolled: otherwise they live in memory.
  __m256i sums[kChains];
#pragma GCC unroll 8
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const __m256i ones = _mm256_set1_epi8(1);
  for (std::size_t round = 0; round < a.rounds; ++round) {
#pragma GCC unroll 8
    for (std::size_t chain = 0; chain < kChains; ++chain) multiply_add(sums[chain], ones, ones);
  }
  __m256i total = sums[0];
#pragma GCC unroll 8
  for (std::size_t chain = 1; chain < kChains; ++chain) {
    total = _mm256_add_epi16(total, sums[chain]);
  }
  *a.out = _mm256_extract_epi16(total, 0);
  return a.rounds * kChains * kBytes;
}

}  // namespace ryz::avx2
