// The scalar tier's vector: one lane. With it the bodies in kernels/vector/ read as plain loops,
// and these loops are the meaning of each op.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/dtype.h"

namespace ryz::RYZ_TIER {
namespace {

using Vec = float;
using VecI = std::int32_t;
constexpr std::size_t kLanes = 1;
// Tiles of attention, in rows (a query head of a token) by vectors of sums.
constexpr std::size_t kScoreRows = 1;
constexpr std::size_t kScoreVecs = 1;
constexpr std::size_t kValueRows = 1;
constexpr std::size_t kValueVecs = 1;
// Tiles of the dense linear, in rows by tokens: for many tokens, and for a few.
constexpr std::size_t kDenseRows = 1;
constexpr std::size_t kDenseTokens = 1;
constexpr std::size_t kFewRows = 1;
constexpr std::size_t kFewTokens = 1;

inline Vec load(const float* p) { return *p; }
inline void store(float* p, Vec v) { *p = v; }
inline Vec load_first(const float* p, std::size_t n) { return n == 0 ? 0.0f : *p; }
inline void store_first(float* p, Vec v, std::size_t n) {
  if (n != 0) *p = v;
}
inline Vec load_f16(const std::uint16_t* p) { return f16_to_f32(*p); }
inline Vec load_bf16(const std::uint16_t* p) { return bf16_to_f32(*p); }
inline void store_f16(std::uint16_t* p, Vec v) { *p = f32_to_f16(v); }

template <std::size_t kBytes>
inline void prefetch_ahead(const void*, std::size_t) {}

inline Vec in_register(Vec v) { return v; }
inline Vec zero() { return 0.0f; }
inline Vec broadcast(float x) { return x; }
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec sub(Vec a, Vec b) { return a - b; }
inline Vec mul(Vec a, Vec b) { return a * b; }
inline Vec div(Vec a, Vec b) { return a / b; }
inline Vec sqrt(Vec v) { return std::sqrt(v); }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec round_even(Vec v) { return std::nearbyintf(v); }
inline float reduce_add(Vec v) { return v; }
inline float reduce_max(Vec v) { return v; }

inline VecI zero_i() { return 0; }
inline VecI load_i(const void* p) {
  VecI v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
// Every byte shifted to the left, and of it the bits of kMask.
template <int kMask>
inline VecI shift_bytes(VecI v, int shift) {
  return static_cast<VecI>(static_cast<std::uint32_t>(v) << shift & kMask * 0x01010101u);
}
template <int kMask>
inline VecI flip_bytes(VecI v) {
  return static_cast<VecI>(static_cast<std::uint32_t>(v) ^ kMask * 0x01010101u);
}
// Byte `from` as byte kTo, with zeros about it.
template <int kTo>
inline VecI move_byte(VecI v, std::size_t from) {
  return static_cast<VecI>((static_cast<std::uint32_t>(v) >> 8 * from & 0xff) << 8 * kTo);
}
inline VecI to_int(Vec v) {
  // As CVTPS2DQ: out of range and NaN give INT32_MIN, where a C++ cast would be undefined.
  if (!(v >= -2147483648.0f && v < 2147483648.0f)) return INT32_MIN;
  return static_cast<std::int32_t>(std::nearbyintf(v));
}
inline VecI abs_bits(Vec v) {
  VecI bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits & 0x7fffffff;
}
inline VecI add_i(VecI a, VecI b) { return a + b; }
inline VecI max_i(VecI a, VecI b) { return a > b ? a : b; }
inline std::int32_t reduce_add_i(VecI v) { return v; }
inline std::int32_t reduce_max_i(VecI v) { return v; }
inline Vec to_float(VecI v) { return static_cast<float>(v); }
inline void store_i16(std::int16_t* p, VecI v) {
  *p = static_cast<std::int16_t>(v < -32768 ? -32768 : v > 32767 ? 32767 : v);
}
// A lane as a pair of int16.
inline VecI load_pairs(const std::int16_t* p) {
  VecI pair;
  std::memcpy(&pair, p, sizeof pair);
  return pair;
}
inline VecI load_pairs(const std::int8_t* p) {
  const std::int16_t pair[2] = {p[0], p[1]};
  return load_pairs(pair);
}
inline void store_pairs(std::int16_t* p, VecI v) { std::memcpy(p, &v, sizeof v); }
inline VecI broadcast_pair(const std::int16_t* p) { return load_pairs(p); }
// sum + a.first * b.first + a.second * b.second.
inline VecI dot_pairs(VecI a, VecI b, VecI sum) {
  std::int16_t x[2], y[2];
  store_pairs(x, a);
  store_pairs(y, b);
  // Wraps, as the instructions do: a NaN makes products of any size.
  const auto product = static_cast<std::uint32_t>(x[0] * y[0] + x[1] * y[1]);
  return static_cast<VecI>(static_cast<std::uint32_t>(sum) + product);
}
inline void store_i8(std::int8_t* p, VecI v) { *p = static_cast<std::int8_t>(v); }
inline VecI clamp_i8(VecI v) { return v < -128 ? -128 : v > 127 ? 127 : v; }
// 2^n for integral n in [-126, 127]; something for NaN.
inline Vec exp2_int(Vec n) {
  const VecI bits = (to_int(n) + 127) << 23;
  Vec v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
// v where lane index < n, else `other`.
inline Vec select_first(Vec v, std::size_t n, Vec other) { return n == 0 ? other : v; }

// 16 sums of doubles, of which floats from place `lane` on are added to those of their places.
constexpr std::size_t kSumLanes = 16;
struct Sums {
  double lanes[kSumLanes];
};
inline void add_to(Sums& sums, std::size_t lane, Vec v) {
  sums.lanes[lane % kSumLanes] += static_cast<double>(v);
}
inline void add_products_to(Sums& sums, std::size_t lane, Vec a, Vec b) {
  sums.lanes[lane % kSumLanes] += static_cast<double>(a) * static_cast<double>(b);
}

// Bit i: whether p[i] is in [first, last]; of 32.
inline std::uint32_t bits_between(const std::uint16_t* p, std::uint16_t first, std::uint16_t last) {
  std::uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= (p[i] >= first && p[i] <= last ? 1u : 0u) << i;
  return bits;
}

}  // namespace
}  // namespace ryz::RYZ_TIER
