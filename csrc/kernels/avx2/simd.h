// The AVX2 tier's vector: 8 floats.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace ryz::RYZ_TIER {
namespace {

using Vec = __m256;
using VecI = __m256i;
constexpr std::size_t kLanes = 8;
// Tiles of attention, in rows (a query head of a token) by vectors of sums.
constexpr std::size_t kScoreRows = 4;
constexpr std::size_t kScoreVecs = 2;
constexpr std::size_t kValueRows = 4;
constexpr std::size_t kValueVecs = 2;
// Tiles of the dense linear, in rows by tokens: for many tokens, and for a few.
constexpr std::size_t kDenseRows = 4;
constexpr std::size_t kDenseTokens = 3;
constexpr std::size_t kFewRows = 2;
constexpr std::size_t kFewTokens = 2;

// All-ones in lanes below n.
inline __m256i first(std::size_t n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n > 8 ? 8 : static_cast<int>(n)), lanes);
}

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Vec load_first(const float* p, std::size_t n) { return _mm256_maskload_ps(p, first(n)); }
inline void store_first(float* p, Vec v, std::size_t n) { _mm256_maskstore_ps(p, first(n), v); }
inline Vec load_f16(const std::uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec load_bf16(const std::uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline void store_f16(std::uint16_t* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Asks for the cache lines of kBytes bytes that lie `ahead` bytes further on.
template <std::size_t kBytes>
inline void prefetch_ahead(const void* p, std::size_t ahead) {
  for (std::size_t i = 0; i < kBytes; i += 64) {
    _mm_prefetch(static_cast<const char*>(p) + ahead + i, _MM_HINT_T0);
  }
}

// Keeps the compiler from loading v anew wherever it is used.
inline Vec in_register(Vec v) {
#if defined(__GNUC__)
  __asm__("" : "+x"(v));
#endif
  return v;
}

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec sqrt(Vec v) { return _mm256_sqrt_ps(v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec round_even(Vec v) {
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline float reduce_add(Vec v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
inline float reduce_max(Vec v) {
  __m128 top = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  top = _mm_max_ps(top, _mm_movehl_ps(top, top));
  return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
}

inline VecI zero_i() { return _mm256_setzero_si256(); }
template <int kBits>
inline VecI broadcast_shifted(std::int32_t x) {
  return _mm256_slli_epi32(_mm256_set1_epi32(x), kBits);
}
inline VecI load_i(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
// Every byte shifted to the left, and of it the bits of kMask.
template <int kMask>
inline VecI shift_bytes(VecI v, int shift) {
  return _mm256_and_si256(_mm256_slli_epi32(v, shift), _mm256_set1_epi8(static_cast<char>(kMask)));
}
template <int kMask>
inline VecI flip_bytes(VecI v) {
  return _mm256_xor_si256(v, _mm256_set1_epi8(static_cast<char>(kMask)));
}
// Byte `from` of every lane as its byte kTo, with zeros about it.
template <int kTo>
inline VecI move_byte(VecI v, std::size_t from) {
  const __m128i lanes = _mm_set_epi32(12, 8, 4, 0);  // where they begin
  const __m128i zeros = _mm_set1_epi32(static_cast<int>(0x80808080u & ~(0xffu << 8 * kTo)));
  const __m128i moved =
      _mm_slli_epi32(_mm_add_epi32(lanes, _mm_set1_epi32(static_cast<int>(from))), 8 * kTo);
  return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(_mm_or_si128(moved, zeros)));
}
inline VecI to_int(Vec v) { return _mm256_cvtps_epi32(v); }
inline VecI abs_bits(Vec v) {
  return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff));
}
inline VecI add_i(VecI a, VecI b) { return _mm256_add_epi32(a, b); }
inline VecI max_i(VecI a, VecI b) { return _mm256_max_epi32(a, b); }
inline std::int32_t reduce_add_i(VecI v) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}
inline std::int32_t reduce_max_i(VecI v) {
  __m128i top = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(top, _mm_shuffle_epi32(top, 0xb1)));
}
inline VecI clamp_i8(VecI v) {
  return _mm256_min_epi32(_mm256_max_epi32(v, _mm256_set1_epi32(-128)), _mm256_set1_epi32(127));
}
inline Vec to_float(VecI v) { return _mm256_cvtepi32_ps(v); }
inline void store_i16(std::int16_t* p, VecI v) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), words);
}
// Lanes as pairs of int16.
inline VecI load_pairs(const std::int16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline VecI load_pairs(const std::int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store_pairs(std::int16_t* p, VecI v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}
inline VecI broadcast_pair(const std::int16_t* p) {
  int pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return _mm256_set1_epi32(pair);
}
// sum + a.first * b.first + a.second * b.second.
inline VecI dot_pairs(VecI a, VecI b, VecI sum) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
inline void store_i8(std::int8_t* p, VecI v) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
// 2^n for integral n in [-126, 127].
inline Vec exp2_int(Vec n) {
  const VecI biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
// v where lane index < n, else `other`.
inline Vec select_first(Vec v, std::size_t n, Vec other) {
  return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(first(n)));
}

// 16 sums of doubles, of which floats from place `lane` on are added to those of their places.
constexpr std::size_t kSumLanes = 16;
struct Sums {
  __m256d lanes[4];
};
inline __m256d low_doubles(Vec v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
inline __m256d high_doubles(Vec v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }
inline void add_to(Sums& sums, std::size_t lane, Vec v) {
  __m256d* const lanes = sums.lanes + lane % kSumLanes / 4;
  lanes[0] = _mm256_add_pd(lanes[0], low_doubles(v));
  lanes[1] = _mm256_add_pd(lanes[1], high_doubles(v));
}
inline void add_products_to(Sums& sums, std::size_t lane, Vec a, Vec b) {
  __m256d* const lanes = sums.lanes + lane % kSumLanes / 4;
  lanes[0] = _mm256_add_pd(lanes[0], _mm256_mul_pd(low_doubles(a), low_doubles(b)));
  lanes[1] = _mm256_add_pd(lanes[1], _mm256_mul_pd(high_doubles(a), high_doubles(b)));
}

// Bit i: whether p[i] is in [first, last]; of 32.
inline std::uint32_t bits_between(const std::uint16_t* p, std::uint16_t first, std::uint16_t last) {
  const __m256i from = _mm256_set1_epi16(static_cast<short>(first));
  const __m256i width = _mm256_set1_epi16(static_cast<short>(last - first));
  const __m256i low = _mm256_sub_epi16(load_i(p), from);
  const __m256i high = _mm256_sub_epi16(load_i(p + 16), from);
  const __m256i is_low_in = _mm256_cmpeq_epi16(_mm256_min_epu16(low, width), low);
  const __m256i is_high_in = _mm256_cmpeq_epi16(_mm256_min_epu16(high, width), high);
  const __m256i bytes = _mm256_packs_epi16(is_low_in, is_high_in);  // their quarters alternate
  return static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0xd8)));
}

}  // namespace
}  // namespace ryz::RYZ_TIER
