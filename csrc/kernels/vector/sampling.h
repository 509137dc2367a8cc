// Ops on a row of logits: block_max, softmax_weights, weighted_moments, rungs. Every tier gives the
// same bits: no fma, and sums in lanes of one number.
#pragma once

#include "kernels/ops.h"

namespace ryz::RYZ_TIER {
namespace {

// Loops over so many independent lanes with a fixed trip count, which compilers turn into vectors
// without being allowed to reorder float arithmetic.
constexpr std::size_t kSumLanes = 16;

inline double sum_lanes(const double* lanes) {
  double sum = 0.0;
  for (std::size_t j = 0; j < kSumLanes; ++j) sum += lanes[j];
  return sum;
}

// exp by exp(x) = 2^n * exp(r), |r| <= ln(2)/2, with a minimax polynomial of degree 6 (3e-9
// relative). To a multiple of 2^-34: no sum from 2^-11 up has finer bits. That costs one bit of
// the larger weights.
inline Vec grid_exp(Vec x) {
  // The bounds are second operands: MAXPS and MINPS return it when x is NaN, which is -inf * 0.
  x = min(max(x, broadcast(-87.0f)), zero());
  const Vec n = round_even(mul(x, broadcast(1.44269504f)));
  // ln 2 in two parts, the first of 15 significant bits: n times it is exact.
  const Vec r = sub(sub(x, mul(n, broadcast(0.693145752f))), mul(n, broadcast(1.42860677e-6f)));
  Vec p = broadcast(1.38145987e-3f);
  p = add(mul(p, r), broadcast(8.36871658e-3f));
  p = add(mul(p, r), broadcast(4.16683890e-2f));
  p = add(mul(p, r), broadcast(0.166665211f));
  p = add(mul(p, r), broadcast(0.49999994f));
  p = add(mul(p, r), broadcast(1.0f));
  p = add(mul(p, r), broadcast(1.0f));
  const Vec floor = broadcast(0x1p-11f);
  return sub(add(mul(p, exp2_int(n)), floor), floor);
}

inline void block_max(const BlockMaxArgs& a) noexcept {
  VecI magnitude = zero_i();
  for (std::size_t b = 0; b < a.blocks; ++b) {
    const float* values = a.values + b * BlockMaxArgs::kBlock;
    Vec top = load(values);
    for (std::size_t i = 0; i < BlockMaxArgs::kBlock; i += kLanes) {
      const Vec v = load(values + i);
      top = max(top, v);
      magnitude = max_i(magnitude, abs_bits(v));
    }
    a.max[b] = reduce_max(top);
  }
  // As integers the bits of magnitudes have infinity's above all numbers, and NaN above that.
  constexpr std::int32_t kInfinityBits = 0x7f800000;
  *a.has_nan = reduce_max_i(magnitude) > kInfinityBits;
}

inline void softmax_weights(const SoftmaxWeightsArgs& a) noexcept {
  const Vec reference = broadcast(a.reference);
  const Vec scale = broadcast(a.inv_temperature);
  std::size_t i = 0;
  for (; i + kLanes <= a.n; i += kLanes) {
    store(a.weights + i, grid_exp(mul(sub(load(a.values + i), reference), scale)));
  }
  if (i < a.n) {
    const Vec tail = sub(load_first(a.values + i, a.n - i), reference);
    store_first(a.weights + i, grid_exp(mul(tail, scale)), a.n - i);
  }
  double sums[kSumLanes] = {};
  for (i = 0; i + kSumLanes <= a.n; i += kSumLanes) {
    for (std::size_t j = 0; j < kSumLanes; ++j) sums[j] += static_cast<double>(a.weights[i + j]);
  }
  for (; i < a.n; ++i) sums[0] += static_cast<double>(a.weights[i]);
  *a.total = sum_lanes(sums);
}

inline void weighted_moments(const WeightedMomentsArgs& a) noexcept {
  // In place of -inf, which 0 times would be NaN.
  const Vec lowest = broadcast(-1e38f);
  const Vec shift = broadcast(a.shift);
  double sums[3][kSumLanes] = {};
  for (std::size_t i = 0; i < a.n; i += kSumLanes) {
    float distances[kSumLanes];
    float weights[kSumLanes];
    float products[kSumLanes];
    for (std::size_t j = 0; j < kSumLanes; j += kLanes) {
      const std::size_t left = a.n > i + j ? a.n - i - j : 0;
      const bool is_whole = left >= kLanes;
      const Vec value = is_whole ? load(a.values + i + j) : load_first(a.values + i + j, left);
      const Vec weight = is_whole ? load(a.weights + i + j) : load_first(a.weights + i + j, left);
      const Vec distance = sub(max(value, lowest), shift);
      store(distances + j, distance);
      store(weights + j, weight);
      store(products + j, mul(weight, distance));
    }
    for (std::size_t j = 0; j < kSumLanes; ++j) {
      const double product = static_cast<double>(products[j]);
      sums[0][j] += static_cast<double>(weights[j]);
      sums[1][j] += product;
      sums[2][j] += product * static_cast<double>(distances[j]);
    }
  }
  for (std::size_t k = 0; k < 3; ++k) a.sums[k] = sum_lanes(sums[k]);
}

inline void rungs(const RungsArgs& a) noexcept {
  const auto last = static_cast<float>(a.count - 1);
  for (std::size_t i = 0; i < a.n; ++i) {
    const float depth = (a.top - a.values[i]) * a.per_unit;
    const float below = depth > 0.0f ? depth : 0.0f;
    const float rung = below < last ? below : last;
    a.rungs[i] = static_cast<std::uint16_t>(static_cast<std::int32_t>(rung));
  }
}

}  // namespace
}  // namespace ryz::RYZ_TIER
