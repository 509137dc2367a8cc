// exp for softmax, SiLU and GELU, tanh for soft caps, and the largest magnitude of a row. The same
// formulas in every tier; tiers differ only where fma does.
#pragma once

#include <cstring>

namespace ryz::RYZ_TIER {
namespace {

// exp(x) = 2^n * (1 + r * series), for x clamped to [-87, 88]; NaN stays NaN.
struct Power {
  Vec n;
  Vec r;
  Vec series;
};

inline Power power(Vec x) {
  // x is the second operand: MAXPS and MINPS return it when it is NaN.
  x = min(broadcast(88.0f), max(broadcast(-87.0f), x));
  const Vec n = round_even(mul(x, broadcast(1.44269504f)));
  // x - n * ln 2, with ln 2 split so that n * high is exact.
  Vec r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  // Taylor series; |r| <= ln(2)/2, so the dropped r^8/8! is below 6e-9.
  Vec p = broadcast(1.0f / 5040);
  p = fma(p, r, broadcast(1.0f / 720));
  p = fma(p, r, broadcast(1.0f / 120));
  p = fma(p, r, broadcast(1.0f / 24));
  p = fma(p, r, broadcast(1.0f / 6));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  return {n, r, p};
}

// Relative error below 2e-7.
inline Vec exp(Vec x) {
  const Power p = power(x);
  return mul(fma(p.series, p.r, broadcast(1.0f)), exp2_int(p.n));
}

// As e / (e + 2) with e = exp(2x) - 1, which keeps its digits near zero. Relative error below 5e-7.
inline Vec tanh(Vec x) {
  const Power p = power(add(x, x));
  const Vec scale = exp2_int(p.n);
  const Vec e = fma(mul(p.series, p.r), scale, sub(scale, broadcast(1.0f)));
  return div(e, add(e, broadcast(2.0f)));
}

inline Vec soft_capped(Vec x, float cap) {
  return mul(tanh(div(x, broadcast(cap))), broadcast(cap));
}

inline float float_of_bits(std::int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A row of floats as a function: the first n of those from i on, zeros after them.
struct FloatRow {
  const float* x;
  Vec operator()(std::size_t i, std::size_t n) const { return load_first(x + i, n); }
};

// The largest |x[i]|. Bits of non-negative floats order as integers, with NaN above infinity: no
// NaN gets lost.
template <typename Values>
inline float abs_max(const Values& values, std::size_t n) {
  VecI top = zero_i();
  for (std::size_t i = 0; i < n; i += kLanes) top = max_i(top, abs_bits(values(i, n - i)));
  return float_of_bits(reduce_max_i(top));
}

inline float exp_one(float x) { return reduce_max(exp(broadcast(x))); }

}  // namespace
}  // namespace ryz::RYZ_TIER
