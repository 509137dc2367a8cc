// vpshufb turns nibbles into levels, vpsignb applies the signs, and vpmaddubsw multiplies by
// broadcast digits: a pair is at most 2 * 255 * 64, inside int16, and is widened at once.
#include "kernels/avx2/bytes.h"
#include "kernels/avx2/simd.h"
#include "kernels/ops.h"

namespace ryz::avx2 {
namespace {

inline __m256i nibble_table() {
  alignas(16) std::uint8_t biased[16];
  for (std::size_t i = 0; i < 16; ++i) {
    biased[i] = static_cast<std::uint8_t>(kScreenBias + kScreenLevels[i]);
  }
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(biased)));
}

inline __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

inline __m256i dot4(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
  return _mm256_add_epi32(sum, widen(_mm256_maddubs_epi16(unsigned_bytes, signed_bytes)));
}

inline void finish(const ScreenLinearArgs& a, std::size_t row, std::size_t token, __m256i high,
                   __m256i low) {
  constexpr std::size_t kRows = kGroupRows / kHalves;
  if (row >= a.rows) return;
  high = _mm256_sub_epi32(high, _mm256_set1_epi32(kScreenBias * a.x.hi_sum[token]));
  low = _mm256_sub_epi32(low, _mm256_set1_epi32(kScreenBias * a.x.lo_sum[token]));
  const __m256 sum = _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(128.0f), _mm256_cvtepi32_ps(high)),
                                   _mm256_cvtepi32_ps(low));
  const __m256 scale =
      _mm256_mul_ps(_mm256_loadu_ps(a.scale + row), _mm256_set1_ps(a.x.scale[token]));
  alignas(32) float values[kRows];
  _mm256_store_ps(values, _mm256_mul_ps(sum, scale));
  const std::size_t left = a.rows - row;
  __builtin_memcpy(a.out[token] + row, values, (left < kRows ? left : kRows) * sizeof(float));
}

// Two groups for one token or one for two: 8 accumulators.
template <std::size_t kTokens, std::size_t kGroup, std::size_t kGroups>
void tile(const ScreenLinearArgs& a, std::size_t panel, std::size_t token) {
  constexpr std::size_t kVecs = kGroups * kHalves;
  const std::uint8_t* block = a.codes + panel * a.blocks * kScreenBlockBytes;
  const std::int8_t* hi = a.x.hi + token * a.x.stride;
  const std::int8_t* lo = a.x.lo + token * a.x.stride;
  const __m256i table = nibble_table();
  __m256i high[kTokens][kVecs] = {};
  __m256i low[kTokens][kVecs] = {};
  for (std::size_t b = 0; b < a.blocks; ++b, block += kScreenBlockBytes) {
    for (std::size_t line = 0; line < kScreenBlockBytes; line += kGroupBytes) {
      _mm_prefetch(reinterpret_cast<const char*>(block + kPrefetchBytes + line), _MM_HINT_T0);
    }
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVecs; ++v) {
      const auto* nibbles = reinterpret_cast<const __m256i*>(block + kGroup * kGroupBytes) + v;
      const auto* signs = reinterpret_cast<const __m256i*>(block + kScreenSigns) + v % kHalves;
#pragma GCC unroll 2
      for (std::size_t s = 0; s < kScreenSteps; ++s) {
        __m256i index = _mm256_load_si256(nibbles);
        if (s == 1) index = _mm256_srli_epi16(index, 4);
        index = _mm256_and_si256(index, _mm256_set1_epi8(15));
        const int bit = static_cast<int>(kScreenSteps * (kGroup + v / kHalves) + s);
        // The sign bit on top; vpsignb would clear where all else is zero.
        const __m256i sign = _mm256_or_si256(_mm256_slli_epi16(_mm256_load_si256(signs), 7 - bit),
                                             _mm256_set1_epi8(1));
        // 256 - (bias + level) = bias - level.
        const __m256i weights = _mm256_sign_epi8(_mm256_shuffle_epi8(table, index), sign);
        const std::size_t k = b * kScreenColumns + s * kPlaneColumns;
#pragma GCC unroll 2
        for (std::size_t t = 0; t < kTokens; ++t) {
          high[t][v] = dot4(high[t][v], weights, load_dword(hi + t * a.x.stride + k));
          low[t][v] = dot4(low[t][v], weights, load_dword(lo + t * a.x.stride + k));
        }
      }
    }
  }
  for (std::size_t t = 0; t < kTokens; ++t) {
    for (std::size_t v = 0; v < kVecs; ++v) {
      finish(a, panel * kPanelRows + kGroup * kGroupRows + 8 * v, token + t, high[t][v], low[t][v]);
    }
  }
}

}  // namespace

void screen_linear(const ScreenLinearArgs& a) noexcept {
  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    std::size_t token = 0;
    for (; token + 2 <= a.tokens; token += 2) {
      tile<2, 0, 1>(a, panel, token);
      tile<2, 1, 1>(a, panel, token);
      tile<2, 2, 1>(a, panel, token);
      tile<2, 3, 1>(a, panel, token);
    }
    if (token < a.tokens) {
      tile<1, 0, 2>(a, panel, token);
      tile<1, 2, 2>(a, panel, token);
    }
  }
}

void screen_rest(const ScreenRestArgs& a) noexcept {
  constexpr std::size_t kRowsAhead = 4;
  constexpr std::size_t kVecBytes = 32;
  const std::size_t row_bytes = a.pieces * kRestBytes;
  for (std::size_t i = 0; i < a.count; ++i) {
    const auto row = static_cast<std::size_t>(a.rows[i]);
    const auto next =
        static_cast<std::size_t>(a.rows[i + kRowsAhead < a.count ? i + kRowsAhead : i]);
    const std::uint8_t* rest = a.rest + row * row_bytes;
    const std::uint8_t* ahead = a.rest + next * row_bytes;
    __m256i high = _mm256_setzero_si256();
    __m256i low = high;
    for (std::size_t at = 0; at < row_bytes; at += kVecBytes) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + at), _MM_HINT_T0);
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rest + at));
      const std::size_t first = at / kRestBytes * kRestColumns + at % kRestBytes;
      __m256i high_pairs = _mm256_setzero_si256();  // at most 4 * 2 * 3 * 64
      __m256i low_pairs = high_pairs;
#pragma GCC unroll 4
      for (std::size_t p = 0; p < kRestPlanes; ++p) {
        const __m256i q = _mm256_and_si256(_mm256_srli_epi16(bytes, static_cast<int>(2 * p)),
                                           _mm256_set1_epi8(3));
        const auto digits = [&](const std::int8_t* x) {
          return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + first + p * kRestBytes));
        };
        high_pairs = _mm256_add_epi16(high_pairs, _mm256_maddubs_epi16(q, digits(a.x.hi)));
        low_pairs = _mm256_add_epi16(low_pairs, _mm256_maddubs_epi16(q, digits(a.x.lo)));
      }
      high = _mm256_add_epi32(high, widen(high_pairs));
      low = _mm256_add_epi32(low, widen(low_pairs));
    }
    const float sum = 128.0f * static_cast<float>(2 * reduce_add_i(high) - 3 * a.x.hi_sum[0]) +
                      static_cast<float>(2 * reduce_add_i(low) - 3 * a.x.lo_sum[0]);
    a.out[row] += sum * (a.scale[row] * (kRestStep / 2) * a.x.scale[0]);
  }
}

}  // namespace ryz::avx2
