// AVX2: vpmaddubsw of unsigned codes with broadcast activations, up to 8 ymm of rows and tokens at
// once.
//
// int16 accumulators take 64 products of at most 2 * 2 * 127 = 508 before they are widened, so a
// chunk is 16 blocks. Codes are weight + 1: the sum of activations is taken off at the end.
// At one token the shifts and masks cost as much as the products; from four on they are shared.
#include "kernels/avx2/bytes.h"
#include "kernels/ops.h"

namespace ryz::avx2 {
namespace {

constexpr std::size_t kChunkBlocks = 16;

// Stores a group's 16 rows of one token.
inline void finish(const TernaryLinearArgs& a, std::size_t group_row, std::size_t token,
                   const __m256i (&sums)[kHalves]) {
  for (std::size_t half = 0; half < kHalves; ++half) {
    const std::size_t row = group_row + 8 * half;
    if (row >= a.rows) return;
    const int left = a.rows - row < 8 ? static_cast<int>(a.rows - row) : 8;
    const __m256i mask =
        _mm256_cmpgt_epi32(_mm256_set1_epi32(left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i exact = _mm256_sub_epi32(sums[half], _mm256_set1_epi32(a.act_sum[token]));
    const __m256 scale =
        _mm256_mul_ps(_mm256_loadu_ps(a.row_scale + row), _mm256_set1_ps(a.act_scale[token]));
    __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(exact), scale);
    const std::size_t i = token * a.out_stride + row;
    if (a.residual != nullptr) y = _mm256_add_ps(_mm256_maskload_ps(a.residual + i, mask), y);
    _mm256_maskstore_ps(a.out + i, mask, y);
  }
}

template <std::size_t kTokens, std::size_t kGroups>
void tile(const TernaryLinearArgs& a, std::size_t panel, std::size_t group, std::size_t token) {
  const std::size_t stride = a.q_stride;
  const std::uint8_t* packed = a.packed + panel * a.blocks * kBlockBytes + group * kGroupBytes;
  const std::int8_t* q = a.q + token * stride;
  const __m256i code_mask = _mm256_set1_epi8(3);
  __m256i sums[kTokens][kGroups][kHalves] = {};
  for (std::size_t begin = 0; begin < a.blocks; begin += kChunkBlocks) {
    const std::size_t end = a.blocks - begin < kChunkBlocks ? a.blocks : begin + kChunkBlocks;
    __m256i words[kTokens][kGroups][kHalves] = {};
    for (std::size_t block = begin; block < end; ++block) {
      const std::uint8_t* bytes = packed + block * kBlockBytes;
      _mm_prefetch(reinterpret_cast<const char*>(bytes + kPrefetchBytes), _MM_HINT_T0);
#pragma GCC unroll 4
      for (std::size_t plane = 0; plane < 4; ++plane) {
        __m256i x[kTokens];
        for (std::size_t t = 0; t < kTokens; ++t) {
          x[t] = load_dword(q + t * stride + block * block_columns(TernaryFormat::kTwoBit) +
                            kPlaneColumns * plane);
        }
#pragma GCC unroll 8
        for (std::size_t i = 0; i < kGroups * kHalves; ++i) {
          const __m256i codes = _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes) + i);
          const __m256i w =
              _mm256_and_si256(_mm256_srli_epi16(codes, static_cast<int>(2 * plane)), code_mask);
          for (std::size_t t = 0; t < kTokens; ++t) {
            __m256i& word = words[t][i / kHalves][i % kHalves];
            word = _mm256_add_epi16(word, _mm256_maddubs_epi16(w, x[t]));
          }
        }
      }
    }
    const __m256i ones = _mm256_set1_epi16(1);
    for (std::size_t t = 0; t < kTokens; ++t) {
      for (std::size_t i = 0; i < kGroups * kHalves; ++i) {
        __m256i& sum = sums[t][i / kHalves][i % kHalves];
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(words[t][i / kHalves][i % kHalves], ones));
      }
    }
  }
  for (std::size_t t = 0; t < kTokens; ++t) {
    for (std::size_t g = 0; g < kGroups; ++g) {
      finish(a, panel * kPanelRows + (group + g) * kGroupRows, token + t, sums[t][g]);
    }
  }
}

// kTokens x kGroups is chosen to fill the 16 registers with int16 accumulators and no more.
template <std::size_t kTokens, std::size_t kGroups>
void tiles(const TernaryLinearArgs& a, std::size_t panel, std::size_t token) {
  for (std::size_t group = 0; group < kPanelGroups; group += kGroups) {
    tile<kTokens, kGroups>(a, panel, group, token);
  }
}

}  // namespace

void ternary2_linear(const TernaryLinearArgs& a) noexcept {
  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    std::size_t token = 0;
    for (; token + 4 <= a.tokens; token += 4) tiles<4, 1>(a, panel, token);
    switch (a.tokens - token) {
      case 3:
        tiles<3, 1>(a, panel, token);
        break;
      case 2:
        tiles<2, 2>(a, panel, token);
        break;
      case 1:
        tiles<1, 4>(a, panel, token);
        break;
      default:
        break;
    }
  }
}

}  // namespace ryz::avx2
