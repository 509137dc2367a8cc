// A byte of codes gives two weights of the four columns by 16 rows that a vector holds: vpshufb
// turns nibbles into levels, a masked subtraction applies the signs, and vpdpbusd multiplies by
// broadcast digits. One token is bound by memory; more tokens share the expanded weights.
#include "kernels/avx512/dot4.h"
#include "kernels/ops.h"

namespace ryz::avx512 {
namespace {

inline __m512i nibble_table() {
  alignas(16) std::uint8_t biased[16];
  for (std::size_t i = 0; i < 16; ++i) {
    biased[i] = static_cast<std::uint8_t>(kScreenBias + kScreenLevels[i]);
  }
  return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(biased)));
}

inline __m512 value(const ScreenActivations& x, std::size_t token, __m512i high, __m512i low,
                    __m512 scale) {
  const __m512 sum = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(128.0f), _mm512_cvtepi32_ps(high)),
                                   _mm512_cvtepi32_ps(low));
  return _mm512_mul_ps(sum, _mm512_mul_ps(scale, _mm512_set1_ps(x.scale[token])));
}

inline void finish(const ScreenLinearArgs& a, std::size_t row, std::size_t token, __m512i high,
                   __m512i low) {
  if (row >= a.rows) return;
  const std::size_t left = a.rows - row;
  const auto mask = static_cast<__mmask16>(left < kGroupRows ? (1u << left) - 1 : 0xffffu);
  high = _mm512_sub_epi32(high, _mm512_set1_epi32(kScreenBias * a.x.hi_sum[token]));
  low = _mm512_sub_epi32(low, _mm512_set1_epi32(kScreenBias * a.x.lo_sum[token]));
  _mm512_mask_storeu_ps(a.out[token] + row, mask,
                        value(a.x, token, high, low, _mm512_loadu_ps(a.scale + row)));
}

// A panel is read once from memory and, where several tiles take their turns at it, then from L2.
// Each turn brings its part of the next panel, so that memory and arithmetic overlap.
struct Turn {
  std::size_t panel;
  std::size_t index;
  std::size_t turns;
};

template <std::size_t kTokens, std::size_t kGroups>
void tile(const ScreenLinearArgs& a, Turn turn, std::size_t group, std::size_t token) {
  constexpr std::size_t kLines = kScreenBlockBytes / kGroupBytes;
  const std::size_t panel_bytes = a.blocks * kScreenBlockBytes;
  const std::uint8_t* block = a.codes + turn.panel * panel_bytes;
  const std::size_t lines = (kLines + turn.turns - 1) / turn.turns;  // for each block of this turn
  const std::size_t first_line = turn.index * lines;
  const std::size_t last_line = first_line + lines < kLines ? first_line + lines : kLines;
  const std::size_t ahead = turn.turns == 1 ? kPrefetchBytes : panel_bytes;
  const std::uint8_t* next = block + ahead + first_line * kGroupBytes * a.blocks;
  const std::int8_t* hi = a.x.hi + token * a.x.stride;
  const std::int8_t* lo = a.x.lo + token * a.x.stride;
  const __m512i table = nibble_table();
  const __m512i low_nibble = _mm512_set1_epi8(15);
  __m512i sign_bit[kGroups][kScreenSteps];
  for (std::size_t g = 0; g < kGroups; ++g) {
    for (std::size_t s = 0; s < kScreenSteps; ++s) {
      sign_bit[g][s] = _mm512_set1_epi8(static_cast<char>(1 << (kScreenSteps * (group + g) + s)));
    }
  }
  __m512i high[kTokens][kGroups] = {};
  __m512i low[kTokens][kGroups] = {};
  for (std::size_t b = 0; b < a.blocks; ++b, block += kScreenBlockBytes) {
    for (std::size_t line = first_line; line < last_line; ++line, next += kGroupBytes) {
      _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
    }
    const __m512i signs = load_group(block + kScreenSigns);
#pragma GCC unroll 2
    for (std::size_t s = 0; s < kScreenSteps; ++s) {
      __m512i weights[kGroups];
#pragma GCC unroll 4
      for (std::size_t g = 0; g < kGroups; ++g) {
        __m512i nibbles = load_group(block + (group + g) * kGroupBytes);
        if (s == 1) nibbles = _mm512_srli_epi16(nibbles, 4);
        const __m512i level = _mm512_shuffle_epi8(table, _mm512_and_si512(nibbles, low_nibble));
        // 256 - (bias + level) = bias - level.
        weights[g] = _mm512_mask_sub_epi8(level, _mm512_test_epi8_mask(signs, sign_bit[g][s]),
                                          _mm512_setzero_si512(), level);
      }
      const std::size_t k = b * kScreenColumns + s * kPlaneColumns;
#pragma GCC unroll 8
      for (std::size_t t = 0; t < kTokens; ++t) {
        const __m512i x_high = load_dword(hi + t * a.x.stride + k);
        const __m512i x_low = load_dword(lo + t * a.x.stride + k);
#pragma GCC unroll 4
        for (std::size_t g = 0; g < kGroups; ++g) {
          dot4(high[t][g], weights[g], x_high);
          dot4(low[t][g], weights[g], x_low);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (std::size_t t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (std::size_t g = 0; g < kGroups; ++g) {
      finish(a, turn.panel * kPanelRows + (group + g) * kGroupRows, token + t, high[t][g],
             low[t][g]);
    }
  }
}

}  // namespace

void screen_linear(const ScreenLinearArgs& a) noexcept {
  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    Turn turn{panel, 0, a.tokens / 4 * 2 + a.tokens % 4 / 2 + a.tokens % 2};
    std::size_t token = 0;
    for (; token + 4 <= a.tokens; token += 4) {
      tile<4, 2>(a, turn, 0, token);
      ++turn.index;
      tile<4, 2>(a, turn, 2, token);
      ++turn.index;
    }
    for (; token + 2 <= a.tokens; token += 2, ++turn.index) tile<2, 4>(a, turn, 0, token);
    if (token < a.tokens) tile<1, 4>(a, turn, 0, token);
  }
}

void screen_rest(const ScreenRestArgs& a) noexcept {
  constexpr std::size_t kRowsAhead = 4;
  const std::size_t row_bytes = a.pieces * kRestBytes;
  const __m512i two_bits = _mm512_set1_epi8(3);
  for (std::size_t i = 0; i < a.count; ++i) {
    const auto row = static_cast<std::size_t>(a.rows[i]);
    const auto next =
        static_cast<std::size_t>(a.rows[i + kRowsAhead < a.count ? i + kRowsAhead : i]);
    const std::uint8_t* rest = a.rest + row * row_bytes;
    const std::uint8_t* ahead = a.rest + next * row_bytes;
    __m512i high[2] = {};
    __m512i low[2] = {};
    for (std::size_t piece = 0; piece < a.pieces; ++piece) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + piece * kRestBytes), _MM_HINT_T0);
      const __m512i bytes = _mm512_loadu_si512(rest + piece * kRestBytes);
#pragma GCC unroll 4
      for (std::size_t p = 0; p < kRestPlanes; ++p) {
        const __m512i shifted = _mm512_srli_epi16(bytes, static_cast<unsigned>(2 * p));
        const __m512i q = _mm512_and_si512(shifted, two_bits);
        const std::size_t k = piece * kRestColumns + p * kRestBytes;
        dot4(high[p % 2], q, _mm512_loadu_si512(a.x.hi + k));
        dot4(low[p % 2], q, _mm512_loadu_si512(a.x.lo + k));
      }
    }
    const int high_sum = 2 * _mm512_reduce_add_epi32(_mm512_add_epi32(high[0], high[1]));
    const int low_sum = 2 * _mm512_reduce_add_epi32(_mm512_add_epi32(low[0], low[1]));
    const float sum = 128.0f * static_cast<float>(high_sum - 3 * a.x.hi_sum[0]) +
                      static_cast<float>(low_sum - 3 * a.x.lo_sum[0]);
    a.out[row] += sum * (a.scale[row] * (kRestStep / 2) * a.x.scale[0]);
  }
}

}  // namespace ryz::avx512
