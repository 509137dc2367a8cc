// What a KV format asks of attention: how a query and its weights are held, and how their products
// with a page are summed.
//
// F32 and F16 sum floats; I8 sums pairs of int16, which int8 pages are widened to. Wide is the
// format of a page expanded to what the multiply takes, for passes that read it many times.
#pragma once

#include "kernels/ops.h"
#include "kernels/vector/formats.h"

namespace ryz::RYZ_TIER {
namespace {

struct FloatSums {
  using Sum = Vec;
  using Operand = float;  // a query element or a weight
  static constexpr std::size_t kDepth = 1;
  static Vec spread(const Operand* p) { return broadcast(*p); }
  static Sum multiply_add(Vec a, Vec b, Sum sum) { return fma(a, b, sum); }

  // A query of n elements, scaled.
  static void hold_query(const float* x, std::size_t n, float scale, Operand* out, float*) {
    for_lanes(n, [&](std::size_t i, std::size_t count) {
      store_first(out + i, mul(load_first(x + i, count), broadcast(scale)), count);
    });
  }
  static Sum empty() { return zero(); }
  static Vec score(Sum sum, const float*, float) { return sum; }
  // A page's part in the output: one running sum.
  static Sum resume(const float* out) { return RYZ_TIER::load(out); }
  static void save(Sum sum, float, float* out) { RYZ_TIER::store(out, sum); }
};

struct KvF32 : FloatSums {
  using Element = float;
  using Wide = KvF32;
  static Vec load(const Element* p) { return RYZ_TIER::load(p); }
  static void store(Element* p, Vec v) { RYZ_TIER::store(p, v); }
};

struct KvF16 : FloatSums {
  using Element = std::uint16_t;
  using Wide = KvF32;
  static Vec load(const Element* p) { return load_f16(p); }
};

struct IntSums {
  using Sum = VecI;
  using Operand = std::int16_t;
  static constexpr std::size_t kDepth = 2;
  static VecI spread(const Operand* p) { return broadcast_pair(p); }
  static Sum multiply_add(VecI a, VecI b, Sum sum) { return dot_pairs(a, b, sum); }

  // A query of n elements in steps of largest / query_limit(n); `factor` undoes them, and scales.
  static void hold_query(const float* x, std::size_t n, float scale, Operand* out, float* factor) {
    const auto limit = static_cast<float>(query_limit(n));
    const float top = abs_max(FloatRow{x}, n);
    const float largest = top < 1e-30f ? 1e-30f : top;  // NaN stays
    for (std::size_t i = 0; i < padded_head_dim(n); i += kLanes) {
      const Vec x_i = load_first(x + i, i < n ? n - i : 0);
      store_i16(out + i, to_int(mul(x_i, broadcast(limit / largest))));
    }
    *factor = largest / limit * scale;
  }
  static Sum empty() { return zero_i(); }
  static Vec score(Sum sum, const float* key_scales, float factor) {
    return mul(mul(to_float(sum), RYZ_TIER::load(key_scales)), broadcast(factor));
  }
  // A page's part in the output: an exact sum, scaled and added.
  static Sum resume(const float*) { return zero_i(); }
  static void save(Sum sum, float factor, float* out) {
    const Vec before = RYZ_TIER::load(out);
    RYZ_TIER::store(out, fma(to_float(sum), broadcast(factor), before));
  }
};

struct KvI16 : IntSums {
  using Element = std::int16_t;
  static VecI load(const Element* p) { return load_pairs(p); }
  static void store(Element* p, VecI v) { store_pairs(p, v); }
};

struct KvI8 : IntSums {
  using Element = std::int8_t;
  using Wide = KvI16;
  static VecI load(const Element* p) { return load_pairs(p); }
};

}  // namespace
}  // namespace ryz::RYZ_TIER
