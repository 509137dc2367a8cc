// AVX2: vpmaddubsw of unsigned codes with broadcast activations, 16 rows (two ymm) by up to 4 tokens.
//
// int16 accumulators take 64 products of at most 2 * 2 * 127 = 508 before they are widened, so a
// chunk is 16 blocks. Codes are weight + 1: the sum of activations is taken off at the end.
// At one token the shifts and masks cost as much as the products; from four on they are shared.
#include <immintrin.h>

#include "kernels/ops.h"

namespace ryz::avx2 {
namespace {

constexpr std::size_t kChunkBlocks = 16;
constexpr std::size_t kHalves = 2;  // ymm of 8 rows in a group

inline __m256i load_dword(const std::int8_t* p) {
  int dword;
  __builtin_memcpy(&dword, p, sizeof dword);
  return _mm256_set1_epi32(dword);
}

inline void finish(const TernaryLinearArgs& a, std::size_t group, std::size_t token,
                   const __m256i (&sums)[kHalves]) {
  for (std::size_t half = 0; half < kHalves; ++half) {
    const std::size_t row = group * kGroupRows + 8 * half;
    if (row >= a.rows) return;
    const int left = a.rows - row < 8 ? static_cast<int>(a.rows - row) : 8;
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(left),
                                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i exact = _mm256_sub_epi32(sums[half], _mm256_set1_epi32(a.act_sum[token]));
    const __m256 scale =
        _mm256_mul_ps(_mm256_loadu_ps(a.row_scale + row), _mm256_set1_ps(a.act_scale[token]));
    __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(exact), scale);
    const std::size_t i = token * a.out_stride + row;
    if (a.residual != nullptr) y = _mm256_add_ps(_mm256_maskload_ps(a.residual + i, mask), y);
    _mm256_maskstore_ps(a.out + i, mask, y);
  }
}

template <std::size_t kTokens>
void tile(const TernaryLinearArgs& a, std::size_t group, std::size_t token) {
  const std::size_t stride = a.blocks * kBlockColumns;
  const std::uint8_t* packed = a.packed + group * a.blocks * kBlockBytes;
  const std::int8_t* q = a.q + token * stride;
  const __m256i code_mask = _mm256_set1_epi8(3);
  __m256i sums[kTokens][kHalves] = {};
  for (std::size_t begin = 0; begin < a.blocks; begin += kChunkBlocks) {
    const std::size_t end = a.blocks - begin < kChunkBlocks ? a.blocks : begin + kChunkBlocks;
    __m256i words[kTokens][kHalves] = {};
    for (std::size_t block = begin; block < end; ++block) {
      const auto* bytes = reinterpret_cast<const __m256i*>(packed + block * kBlockBytes);
      const __m256i low = _mm256_load_si256(bytes);
      const __m256i high = _mm256_load_si256(bytes + 1);
#pragma GCC unroll 4
      for (int plane = 0; plane < 4; ++plane) {
        const __m256i w0 = _mm256_and_si256(_mm256_srli_epi16(low, 2 * plane), code_mask);
        const __m256i w1 = _mm256_and_si256(_mm256_srli_epi16(high, 2 * plane), code_mask);
#pragma GCC unroll 4
        for (std::size_t t = 0; t < kTokens; ++t) {
          const __m256i x = load_dword(q + t * stride + block * kBlockColumns +
                                       4 * static_cast<std::size_t>(plane));
          words[t][0] = _mm256_add_epi16(words[t][0], _mm256_maddubs_epi16(w0, x));
          words[t][1] = _mm256_add_epi16(words[t][1], _mm256_maddubs_epi16(w1, x));
        }
      }
    }
    const __m256i ones = _mm256_set1_epi16(1);
    for (std::size_t t = 0; t < kTokens; ++t) {
      for (std::size_t half = 0; half < kHalves; ++half) {
        sums[t][half] =
            _mm256_add_epi32(sums[t][half], _mm256_madd_epi16(words[t][half], ones));
      }
    }
  }
  for (std::size_t t = 0; t < kTokens; ++t) finish(a, group, token + t, sums[t]);
}

}  // namespace

void ternary_linear(const TernaryLinearArgs& a) noexcept {
  for (std::size_t group = a.group_begin; group < a.group_end; ++group) {
    std::size_t token = 0;
    for (; token + 4 <= a.tokens; token += 4) tile<4>(a, group, token);
    switch (a.tokens - token) {
      case 3:
        tile<3>(a, group, token);
        break;
      case 2:
        tile<2>(a, group, token);
        break;
      case 1:
        tile<1>(a, group, token);
        break;
      default:
        break;
    }
  }
}

}  // namespace ryz::avx2
