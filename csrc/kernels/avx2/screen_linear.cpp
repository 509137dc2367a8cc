// vpmaddubsw of broadcast 7-bit activations with signed weights: a pair is at most 2 * 127 * 127,
// inside int16, and is widened at once.
#include "kernels/avx2/bytes.h"
#include "kernels/ops.h"

namespace ryz::avx2 {
namespace {

inline __m256i dot4(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
  const __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

inline void finish(const ScreenLinearArgs& a, std::size_t row, std::size_t token, __m256i high,
                   __m256i low) {
  high =
      _mm256_sub_epi32(high, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a.offset + row)));
  const __m256 sum = _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(128.0f), _mm256_cvtepi32_ps(high)),
                                   _mm256_cvtepi32_ps(low));
  const __m256 scale =
      _mm256_mul_ps(_mm256_loadu_ps(a.scale + row), _mm256_set1_ps(a.x_scale[token]));
  const __m256 approx = _mm256_mul_ps(sum, scale);
  const __m256 weight_part =
      _mm256_mul_ps(_mm256_loadu_ps(a.weight_error + row), _mm256_set1_ps(a.x_norm[token]));
  const __m256 x_part =
      _mm256_mul_ps(_mm256_loadu_ps(a.weight_norm + row), _mm256_set1_ps(a.x_error[token]));
  const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), approx);
  const __m256 slack = _mm256_add_ps(_mm256_add_ps(weight_part, x_part),
                                     _mm256_mul_ps(magnitude, _mm256_set1_ps(0x1p-20f)));
  const std::size_t i = token * a.out_stride + row;
  _mm256_storeu_ps(a.lower + i, _mm256_sub_ps(approx, slack));
  _mm256_storeu_ps(a.upper + i, _mm256_add_ps(approx, slack));
}

// Two groups, 32 rows: 8 accumulators.
void tile(const ScreenLinearArgs& a, std::size_t panel, std::size_t group, std::size_t token) {
  constexpr std::size_t kVecs = 2 * kHalves;
  const std::int8_t* bytes = a.packed + panel * a.steps * kBlockBytes + group * kGroupBytes;
  const std::uint8_t* hi = a.hi + token * a.x_stride;
  const std::uint8_t* lo = a.lo + token * a.x_stride;
  __m256i high[kVecs] = {};
  __m256i low[kVecs] = {};
  for (std::size_t step = 0; step < a.steps; ++step, bytes += kBlockBytes) {
    _mm_prefetch(reinterpret_cast<const char*>(bytes + kPrefetchBytes), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(bytes + kPrefetchBytes + 64), _MM_HINT_T0);
    const __m256i x_high = load_dword(hi + kPlaneColumns * step);
    const __m256i x_low = load_dword(lo + kPlaneColumns * step);
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVecs; ++v) {
      const __m256i c = _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes) + v);
      high[v] = dot4(high[v], x_high, c);
      low[v] = dot4(low[v], x_low, c);
    }
  }
  for (std::size_t v = 0; v < kVecs; ++v) {
    finish(a, panel * kPanelRows + group * kGroupRows + 8 * v, token, high[v], low[v]);
  }
}

}  // namespace

void screen_linear(const ScreenLinearArgs& a) noexcept {
  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    for (std::size_t token = 0; token < a.tokens; ++token) {
      tile(a, panel, 0, token);
      tile(a, panel, 2, token);
    }
  }
}

}  // namespace ryz::avx2
