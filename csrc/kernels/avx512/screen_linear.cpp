// vpdpbusd of broadcast unsigned activations with signed weights straight from memory: per 64
// bytes, two vpdpbusd (one per activation plane) and nothing else, so one token is bound by memory.
#include "kernels/avx512/dot4.h"
#include "kernels/ops.h"

namespace ryz::avx512 {
namespace {

inline void finish(const ScreenLinearArgs& a, std::size_t row, std::size_t token, __m512i high,
                   __m512i low) {
  high = _mm512_sub_epi32(high, _mm512_loadu_si512(a.offset + row));
  const __m512 sum = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(128.0f), _mm512_cvtepi32_ps(high)),
                                   _mm512_cvtepi32_ps(low));
  const __m512 scale =
      _mm512_mul_ps(_mm512_loadu_ps(a.scale + row), _mm512_set1_ps(a.x_scale[token]));
  const __m512 approx = _mm512_mul_ps(sum, scale);
  const __m512 weight_part =
      _mm512_mul_ps(_mm512_loadu_ps(a.weight_error + row), _mm512_set1_ps(a.x_norm[token]));
  const __m512 x_part =
      _mm512_mul_ps(_mm512_loadu_ps(a.weight_norm + row), _mm512_set1_ps(a.x_error[token]));
  const __m512 rounding = _mm512_mul_ps(_mm512_abs_ps(approx), _mm512_set1_ps(0x1p-20f));
  const __m512 slack = _mm512_add_ps(_mm512_add_ps(weight_part, x_part), rounding);
  const std::size_t i = token * a.out_stride + row;
  _mm512_storeu_ps(a.lower + i, _mm512_sub_ps(approx, slack));
  _mm512_storeu_ps(a.upper + i, _mm512_add_ps(approx, slack));
}

template <std::size_t kTokens, std::size_t kGroups>
void tile(const ScreenLinearArgs& a, std::size_t panel, std::size_t group, std::size_t token) {
  const std::int8_t* bytes = a.packed + panel * a.steps * kBlockBytes + group * kGroupBytes;
  const std::uint8_t* hi = a.hi + token * a.x_stride;
  const std::uint8_t* lo = a.lo + token * a.x_stride;
  __m512i high[kTokens][kGroups] = {};
  __m512i low[kTokens][kGroups] = {};
  for (std::size_t step = 0; step < a.steps; ++step, bytes += kBlockBytes) {
    prefetch_groups(bytes, kGroups);
    __m512i c[kGroups];
#pragma GCC unroll 4
    for (std::size_t g = 0; g < kGroups; ++g) c[g] = load_group(bytes + g * kGroupBytes);
#pragma GCC unroll 4
    for (std::size_t t = 0; t < kTokens; ++t) {
      const __m512i x_high = load_dword(hi + t * a.x_stride + kPlaneColumns * step);
      const __m512i x_low = load_dword(lo + t * a.x_stride + kPlaneColumns * step);
#pragma GCC unroll 4
      for (std::size_t g = 0; g < kGroups; ++g) {
        dot4(high[t][g], x_high, c[g]);
        dot4(low[t][g], x_low, c[g]);
      }
    }
  }
#pragma GCC unroll 4
  for (std::size_t t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (std::size_t g = 0; g < kGroups; ++g) {
      finish(a, panel * kPanelRows + (group + g) * kGroupRows, token + t, high[t][g], low[t][g]);
    }
  }
}

}  // namespace

void screen_linear(const ScreenLinearArgs& a) noexcept {
  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    std::size_t token = 0;
    for (; token + 4 <= a.tokens; token += 4) {
      tile<4, 2>(a, panel, 0, token);
      tile<4, 2>(a, panel, 2, token);
    }
    for (; token + 2 <= a.tokens; token += 2) tile<2, 4>(a, panel, 0, token);
    if (token < a.tokens) tile<1, 4>(a, panel, 0, token);
  }
}

}  // namespace ryz::avx512
