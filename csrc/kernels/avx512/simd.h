// The AVX-512 tier's vector: 16 floats.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace ryz::RYZ_TIER {
namespace {

using Vec = __m512;
using VecI = __m512i;
constexpr std::size_t kLanes = 16;
// Tiles of attention, in rows (a query head of a token) by vectors of sums.
constexpr std::size_t kScoreRows = 8;
constexpr std::size_t kScoreVecs = 2;
constexpr std::size_t kValueRows = 4;
constexpr std::size_t kValueVecs = 4;
// Tiles of the dense linear, in rows by tokens: for many tokens, and for a few.
constexpr std::size_t kDenseRows = 8;
constexpr std::size_t kDenseTokens = 3;
constexpr std::size_t kFewRows = 4;
constexpr std::size_t kFewTokens = 3;

inline __mmask16 first(std::size_t n) {
  return n >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << n) - 1);
}

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec load_first(const float* p, std::size_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline void store_first(float* p, Vec v, std::size_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
inline Vec load_f16(const std::uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec load_bf16(const std::uint16_t* p) {
  const __m512i wide =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void store_f16(std::uint16_t* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
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
  __asm__("" : "+v"(v));
#endif
  return v;
}

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec sqrt(Vec v) { return _mm512_sqrt_ps(v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec round_even(Vec v) {
  return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline float reduce_add(Vec v) { return _mm512_reduce_add_ps(v); }
inline float reduce_max(Vec v) { return _mm512_reduce_max_ps(v); }

inline VecI zero_i() { return _mm512_setzero_si512(); }
template <int kBits>
inline VecI broadcast_shifted(std::int32_t x) {
  return _mm512_slli_epi32(_mm512_set1_epi32(x), kBits);
}
inline VecI load_i(const void* p) { return _mm512_loadu_si512(p); }
// Every byte shifted to the left, and of it the bits of kMask.
template <int kMask>
inline VecI shift_bytes(VecI v, int shift) {
  return _mm512_and_si512(_mm512_slli_epi32(v, static_cast<unsigned>(shift)),
                          _mm512_set1_epi8(static_cast<char>(kMask)));
}
template <int kMask>
inline VecI flip_bytes(VecI v) {
  return _mm512_xor_si512(v, _mm512_set1_epi8(static_cast<char>(kMask)));
}
// Byte `from` of every lane as its byte kTo, with zeros about it.
template <int kTo>
inline VecI move_byte(VecI v, std::size_t from) {
  const __m128i lanes = _mm_set_epi32(12, 8, 4, 0);  // where they begin
  const __m128i zeros = _mm_set1_epi32(static_cast<int>(0x80808080u & ~(0xffu << 8 * kTo)));
  const __m128i moved =
      _mm_slli_epi32(_mm_add_epi32(lanes, _mm_set1_epi32(static_cast<int>(from))), 8 * kTo);
  return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(_mm_or_si128(moved, zeros)));
}
inline VecI to_int(Vec v) { return _mm512_cvtps_epi32(v); }
inline VecI abs_bits(Vec v) {
  return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
}
inline VecI add_i(VecI a, VecI b) { return _mm512_add_epi32(a, b); }
inline VecI max_i(VecI a, VecI b) { return _mm512_max_epi32(a, b); }
inline std::int32_t reduce_add_i(VecI v) { return _mm512_reduce_add_epi32(v); }
inline std::int32_t reduce_max_i(VecI v) { return _mm512_reduce_max_epi32(v); }
inline VecI clamp_i8(VecI v) {
  return _mm512_min_epi32(_mm512_max_epi32(v, _mm512_set1_epi32(-128)), _mm512_set1_epi32(127));
}
inline Vec to_float(VecI v) { return _mm512_cvtepi32_ps(v); }
inline void store_i16(std::int16_t* p, VecI v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(v));
}
// Lanes as pairs of int16.
inline VecI load_pairs(const std::int16_t* p) { return _mm512_loadu_si512(p); }
inline VecI load_pairs(const std::int8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_pairs(std::int16_t* p, VecI v) { _mm512_storeu_si512(p, v); }
inline VecI broadcast_pair(const std::int16_t* p) {
  int pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return _mm512_set1_epi32(pair);
}
// sum + a.first * b.first + a.second * b.second. Assembly for the reason given in dot4.h.
inline VecI dot_pairs(VecI a, VecI b, VecI sum) {
#if defined(__GNUC__)
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
#else
  return _mm512_dpwssd_epi32(sum, a, b);
#endif
}
inline void store_i8(std::int8_t* p, VecI v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(v));
}
// 2^n for integral n in [-126, 127].
inline Vec exp2_int(Vec n) {
  const VecI biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}
// v where lane index < n, else `other`.
inline Vec select_first(Vec v, std::size_t n, Vec other) {
  return _mm512_mask_blend_ps(first(n), other, v);
}

// 16 sums of doubles, of which floats from place `lane` on are added to those of their places.
constexpr std::size_t kSumLanes = 16;
struct Sums {
  __m512d lanes[2];
};
inline __m512d low_doubles(Vec v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
inline __m512d high_doubles(Vec v) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)); }
inline void add_to(Sums& sums, std::size_t, Vec v) {
  sums.lanes[0] = _mm512_add_pd(sums.lanes[0], low_doubles(v));
  sums.lanes[1] = _mm512_add_pd(sums.lanes[1], high_doubles(v));
}
inline void add_products_to(Sums& sums, std::size_t, Vec a, Vec b) {
  const __m512d low = _mm512_mul_pd(low_doubles(a), low_doubles(b));
  const __m512d high = _mm512_mul_pd(high_doubles(a), high_doubles(b));
  sums.lanes[0] = _mm512_add_pd(sums.lanes[0], low);
  sums.lanes[1] = _mm512_add_pd(sums.lanes[1], high);
}

// Bit i: whether p[i] is in [first, last]; of 32.
inline std::uint32_t bits_between(const std::uint16_t* p, std::uint16_t first, std::uint16_t last) {
  const __m512i from = _mm512_set1_epi16(static_cast<short>(first));
  const __m512i width = _mm512_set1_epi16(static_cast<short>(last - first));
  return _mm512_cmple_epu16_mask(_mm512_sub_epi16(_mm512_loadu_si512(p), from), width);
}

}  // namespace
}  // namespace ryz::RYZ_TIER
