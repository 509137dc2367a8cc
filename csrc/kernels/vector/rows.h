// Ops on rows: rms_norm, quantize, rope, gate, gate_quantize, embed, softcap, add_bias.
#pragma once

#include "kernels/ops.h"
#include "kernels/vector/formats.h"
#include "kernels/vector/math.h"

namespace ryz::RYZ_TIER {
namespace {

// Sum of squares of value(i, n), the n elements from i on, in four independent vectors, so that
// adds overlap; their order is fixed.
template <typename Value>
inline float sum_of_squares(std::size_t k, Value value) {
  Vec sums[4] = {zero(), zero(), zero(), zero()};
  std::size_t i = 0;
  for (; i + 4 * kLanes <= k; i += 4 * kLanes) {
    for (std::size_t j = 0; j < 4; ++j) {
      const Vec v = value(i + j * kLanes, kLanes);
      sums[j] = fma(v, v, sums[j]);
    }
  }
  for (; i < k; i += kLanes) {
    const Vec v = value(i, k - i);
    sums[0] = fma(v, v, sums[0]);
  }
  return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

inline float sum_of_squares(const float* x, std::size_t k) {
  return sum_of_squares(k, FloatRow{x});
}

inline Vec inverse_rms(float squares, std::size_t count, float eps) {
  const float mean = squares / static_cast<float>(count);
  return div(broadcast(1.0f), sqrt(broadcast(mean + eps)));
}

inline void rms_norm(const RmsNormArgs& a) noexcept {
  const Vec inverse = inverse_rms(sum_of_squares(a.x, a.k), a.k, a.eps);
  for_lanes(a.k, [&](std::size_t i, std::size_t n) {
    const Vec scaled = mul(load_first(a.x + i, n), inverse);
    Vec out = mul(scaled, load_first(a.gain + i, n));
    if (a.residual != nullptr) out = add(out, load_first(a.residual + i, n));
    store_first(a.out + i, out, n);
  });
}

// Each value is asked for twice: cheaper than to store and load it.
template <typename Values>
inline void quantize_values(const QuantizeArgs& a, const Values& values) {
  const Int8Row row(values, a.k);
  VecI sum = zero_i();
  for (std::size_t i = 0; i < a.k_padded; i += kLanes) {
    const VecI q = row.codes(i);
    sum = add_i(sum, q);
    store_i8(a.q + i, q);
  }
  *a.scale = row.scale();
  *a.sum = reduce_add_i(sum);
}

// `squares` is the sum of squares of x, for the norm.
inline void quantize_normed(const QuantizeArgs& a, float squares) {
  const Vec inverse = inverse_rms(squares, a.mean_count, a.eps);
  quantize_values(a, [&](std::size_t i, std::size_t n) {
    return mul(mul(load_first(a.x + i, n), inverse), load_first(a.gain + i, n));
  });
}

inline void quantize_plain(const QuantizeArgs& a) { quantize_values(a, FloatRow{a.x}); }

inline void quantize(const QuantizeArgs& a) noexcept {
  a.gain == nullptr ? quantize_plain(a) : quantize_normed(a, sum_of_squares(a.x, a.k));
}

// One block of values(i, n), the first n of those from i on, as quantize_blocks has it.
template <typename Values>
inline void quantize_block(const QuantizeBlocksArgs& a, std::size_t block, const Values& values) {
  constexpr std::size_t kVecs = kScaleBlock / kLanes;
  Vec y[kVecs];
  VecI largest = zero_i();
  const auto left = [&](std::size_t v) {
    const std::size_t i = block * kScaleBlock + v * kLanes;
    return i < a.k ? a.k - i : 0;
  };
  for (std::size_t v = 0; v < kVecs; ++v) {
    y[v] = values(block * kScaleBlock + v * kLanes, left(v));
    largest = max_i(largest, abs_bits(y[v]));
  }
  float top = float_of_bits(reduce_max_i(largest));  // bits of NaN are above all numbers
  top = top < 1e-30f ? 1e-30f : top;
  const Vec factor = broadcast(127.0f / top);
  std::int8_t* q = a.q + block * a.block_stride * kScaleBlock;
  VecI sums[2] = {zero_i(), zero_i()};
  for (std::size_t v = 0; v < kVecs; ++v) {
    // Zeros past the end even where the factor is NaN.
    const VecI code = clamp_i8(to_int(select_first(mul(y[v], factor), left(v), zero())));
    sums[v / (kVecs / 2)] = add_i(sums[v / (kVecs / 2)], code);
    store_i8(q + v * kLanes, code);
  }
  const std::int32_t low = reduce_add_i(sums[0]);
  const std::int32_t high = reduce_add_i(sums[1]);
  a.blocks[block * a.block_stride] = {top / 127.0f, -(low + high), {-low, -high}};
}

inline void quantize_blocks(const QuantizeBlocksArgs& a) noexcept {
  const auto quantize_all = [&](const auto& values) {
    for (std::size_t block = 0; block < a.blocks_padded; ++block) quantize_block(a, block, values);
  };
  if (a.gain == nullptr) return quantize_all(FloatRow{a.x});
  const Vec inverse = inverse_rms(sum_of_squares(a.x, a.k), a.k, a.eps);
  quantize_all([&](std::size_t i, std::size_t n) {
    return mul(mul(load_first(a.x + i, n), inverse), load_first(a.gain + i, n));
  });
}

inline void rope(const RopeArgs& a) noexcept {
  const std::size_t half = a.head_dim / 2;
  for (std::size_t h = 0; h < a.heads; ++h) {
    float* low = a.x + h * a.head_dim;
    float* high = low + half;
    for_lanes(half, [&](std::size_t i, std::size_t n) {
      const Vec x = load_first(low + i, n);
      const Vec y = load_first(high + i, n);
      const Vec c = load_first(a.cos + i, n);
      const Vec s = load_first(a.sin + i, n);
      store_first(low + i, sub(mul(x, c), mul(y, s)), n);
      store_first(high + i, add(mul(y, c), mul(x, s)), n);
    });
  }
}

inline Vec activated(Activation activation, Vec g) {
  switch (activation) {
    case Activation::kSilu:
      return div(g, add(broadcast(1.0f), exp(sub(zero(), g))));
    case Activation::kRelu2: {
      const Vec positive = max(zero(), g);  // g second: NaN passes
      return mul(positive, positive);
    }
    case Activation::kGeluTanh: {
      const Vec cubic = fma(mul(mul(g, g), g), broadcast(0.044715f), g);
      const Vec exponent = mul(cubic, broadcast(-1.59576912f));  // -2 * sqrt(2 / pi)
      return div(g, add(broadcast(1.0f), exp(exponent)));
    }
  }
  return g;
}

inline Vec gated(const GateArgs& a, std::size_t i, std::size_t n) {
  const Vec g = load_first(a.gate + i, n);
  return mul(activated(a.activation, g), load_first(a.up + i, n));
}

inline void gate(const GateArgs& a) noexcept {
  for_lanes(a.n, [&](std::size_t i, std::size_t n) { store_first(a.out + i, gated(a, i, n), n); });
}

inline void gate_quantize(const GateQuantizeArgs& a) noexcept {
  if (a.quantize.gain == nullptr) {
    gate(a.gate);
    return quantize_plain(a.quantize);
  }
  const float squares = sum_of_squares(a.gate.n, [&](std::size_t i, std::size_t n) {
    const Vec v = gated(a.gate, i, n);
    store_first(a.gate.out + i, v, n);
    return v;
  });
  quantize_normed(a.quantize, squares);
}

template <typename Format>
inline void embed_row(const EmbedArgs& a) {
  const auto* row = static_cast<const typename Format::Element*>(a.weights) + a.row * a.k;
  for_lanes(a.k, [&](std::size_t i, std::size_t n) {
    const Vec v = n == kLanes ? Format::load(row + i) : load_format_first<Format>(row + i, n);
    store_first(a.out + i, mul(v, broadcast(a.scale)), n);
  });
}

inline void embed(const EmbedArgs& a) noexcept {
  switch (a.dtype) {
    case DType::kF32:
      return embed_row<F32>(a);
    case DType::kF16:
      return embed_row<F16>(a);
    case DType::kBF16:
      return embed_row<BF16>(a);
  }
}

inline void softcap(const SoftcapArgs& a) noexcept {
  for_lanes(a.n, [&](std::size_t i, std::size_t n) {
    store_first(a.x + i, soft_capped(load_first(a.x + i, n), a.softcap), n);
  });
}

inline void add_bias(const AddBiasArgs& a) noexcept {
  for (std::size_t t = 0; t < a.tokens; ++t) {
    float* out = a.out + t * a.out_stride + a.begin;
    for_lanes(a.end - a.begin, [&](std::size_t i, std::size_t n) {
      store_first(out + i, add(load_first(out + i, n), load_first(a.bias + a.begin + i, n)), n);
    });
  }
}

}  // namespace
}  // namespace ryz::RYZ_TIER
