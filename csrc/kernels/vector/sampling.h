// Ops on a row of logits: block_max, softmax_weights, weighted_moments, rungs, rung_members. Every
// tier gives the same bits: no fma, and sums in 16 lanes by place.
#pragma once

#include "kernels/ops.h"

namespace ryz::RYZ_TIER {
namespace {

inline double sum_lanes(const Sums& sums) {
  double lanes[kSumLanes];
  std::memcpy(lanes, &sums, sizeof lanes);
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

// Vectors that grid_exp2() computes side by side: alone, each would wait for its own last result.
constexpr std::size_t kChains = 8;
constexpr std::size_t kWeighed = kChains * kLanes;

// exp(x) of x * log2(e) as 2^n * 2^f, |f| <= 1/2, with a minimax polynomial of degree 5 (1e-7
// relative). To a multiple of 2^-34: no sum from 2^-11 up has finer bits. That costs one bit of
// the larger weights.
inline void grid_exp2(Vec (&x)[kChains]) {
  Vec n[kChains];
  for (std::size_t k = 0; k < kChains; ++k) {
    // The bounds are second operands: MAXPS and MINPS return it when x is NaN, which is -inf * 0.
    x[k] = min(max(x[k], broadcast(-126.0f)), zero());
    n[k] = round_even(x[k]);
    x[k] = sub(x[k], n[k]);
  }
  constexpr float kSeries[] = {9.67151299e-3f, 5.55073358e-2f, 0.240222424f, 0.693147004f, 1.0f};
  Vec p[kChains];
  for (Vec& each : p) each = broadcast(1.32647273e-3f);
  for (const float coefficient : kSeries) {
    for (std::size_t k = 0; k < kChains; ++k) {
      p[k] = in_register(add(mul(p[k], x[k]), broadcast(coefficient)));
    }
  }
  const Vec floor = broadcast(0x1p-11f);
  for (std::size_t k = 0; k < kChains; ++k) {
    x[k] = sub(add(mul(p[k], exp2_int(n[k])), floor), floor);
  }
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

inline void weigh(const float* values, Vec reference, Vec scale, float* weights, Sums& total) {
  Vec x[kChains];
  for (std::size_t k = 0; k < kChains; ++k) {
    x[k] = mul(sub(load(values + k * kLanes), reference), scale);
  }
  grid_exp2(x);
  for (std::size_t k = 0; k < kChains; ++k) {
    store(weights + k * kLanes, x[k]);
    add_to(total, 0, x[k]);  // exact in any lane; the same few leave registers to the chains
  }
}

inline void softmax_weights(const SoftmaxWeightsArgs& a) noexcept {
  const Vec reference = broadcast(a.reference);
  // Finite, since infinity times the reference's own 0 would be NaN.
  const Vec scale = min(broadcast(a.inv_temperature * 1.44269504f), broadcast(3.4e38f));
  Sums total = {};
  std::size_t i = 0;
  for (; i + kWeighed <= a.n; i += kWeighed) {
    weigh(a.values + i, reference, scale, a.weights + i, total);
  }
  if (i < a.n) {
    float tail[kWeighed];
    for (float& value : tail) value = -__builtin_inff();
    std::memcpy(tail, a.values + i, (a.n - i) * sizeof(float));
    weigh(tail, reference, scale, tail, total);
    std::memcpy(a.weights + i, tail, (a.n - i) * sizeof(float));
  }
  *a.total = sum_lanes(total);
}

inline void add_moments(const float* values, const float* weights, Vec shift, Sums (&sums)[2]) {
  // In place of -inf, which 0 times would be NaN.
  const Vec lowest = broadcast(-1e38f);
  for (std::size_t j = 0; j < kSumLanes; j += kLanes) {
    const Vec distance = sub(max(load(values + j), lowest), shift);
    const Vec product = mul(load(weights + j), distance);
    add_to(sums[0], j, product);
    add_products_to(sums[1], j, product, distance);
  }
}

inline void weighted_moments(const WeightedMomentsArgs& a) noexcept {
  const Vec shift = broadcast(a.shift);
  Sums sums[2] = {};
  std::size_t i = 0;
  for (; i + kSumLanes <= a.n; i += kSumLanes) {
    add_moments(a.values + i, a.weights + i, shift, sums);
  }
  if (i < a.n) {
    float values[kSumLanes] = {};
    float weights[kSumLanes] = {};
    std::memcpy(values, a.values + i, (a.n - i) * sizeof(float));
    std::memcpy(weights, a.weights + i, (a.n - i) * sizeof(float));
    add_moments(values, weights, shift, sums);
  }
  for (std::size_t k = 0; k < 2; ++k) a.sums[k] = sum_lanes(sums[k]);
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

inline void rung_members(const RungMembersArgs& a) noexcept {
  constexpr std::size_t kBits = 32;
  std::size_t found = 0;
  std::size_t i = 0;
  for (; i + kBits <= a.n; i += kBits) {
    std::uint32_t bits = bits_between(a.rungs + i, a.first, a.last);
    for (; bits != 0; bits &= bits - 1) {
      a.ids[found++] = static_cast<std::int32_t>(i) + __builtin_ctz(bits);
    }
  }
  for (; i < a.n; ++i) {
    if (a.rungs[i] >= a.first && a.rungs[i] <= a.last)
      a.ids[found++] = static_cast<std::int32_t>(i);
  }
  *a.count = found;
}

}  // namespace
}  // namespace ryz::RYZ_TIER
