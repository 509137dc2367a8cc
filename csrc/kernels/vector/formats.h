// Storage formats as load/store policies, for bodies templated on what they read.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "kernels/vector/math.h"

namespace ryz::RYZ_TIER {
namespace {

struct F32 {
  using Element = float;
  static Vec load(const Element* p) { return RYZ_TIER::load(p); }
  static void store(Element* p, Vec v) { RYZ_TIER::store(p, v); }
};

struct F16 {
  using Element = std::uint16_t;
  static Vec load(const Element* p) { return load_f16(p); }
  static void store(Element* p, Vec v) { store_f16(p, v); }
};

struct BF16 {
  using Element = std::uint16_t;
  static Vec load(const Element* p) { return load_bf16(p); }
};

// The first n < kLanes elements, zeros after them: never reads past the end of a mapped file.
template <typename Format>
inline Vec load_format_first(const typename Format::Element* p, std::size_t n) {
  typename Format::Element lanes[kLanes] = {};
  for (std::size_t i = 0; i < n; ++i) lanes[i] = p[i];
  return Format::load(lanes);
}

// A row as quantize of ops.h has it: int8 codes, and one scale that makes floats of them.
// values(i, n) are the first n of those from i on.
template <typename Values>
class Int8Row {
 public:
  Int8Row(const Values& values, std::size_t n) : values_(values), n_(n) {
    const float top = abs_max(values, n);
    abs_max_ = top < 1e-5f ? 1e-5f : top;  // NaN stays
    inverse_ = broadcast(127.0f / abs_max_);
  }
  float scale() const { return abs_max_ / 127.0f; }
  // kLanes codes from i on, zeros past the end, even where the scale is NaN.
  VecI codes(std::size_t i) const {
    const std::size_t n = i < n_ ? n_ - i : 0;
    const Vec scaled = select_first(mul(values_(i, n), inverse_), n, zero());
    return clamp_i8(to_int(scaled));
  }

 private:
  const Values values_;
  std::size_t n_;
  float abs_max_;
  Vec inverse_;
};

// Calls body(first, count) for each vector of [0, n); count < kLanes only for the last one.
template <typename Body>
inline void for_lanes(std::size_t n, Body body) {
  for (std::size_t i = 0; i < n; i += kLanes) body(i, n - i < kLanes ? n - i : kLanes);
}

template <std::size_t kCount>
struct Size {
  static constexpr std::size_t value = kCount;
};

// Cuts [begin, end) into tiles of kMost, then of the halves of it: body(Size<n>{}, first).
template <std::size_t kMost, typename Body>
inline void for_tiles(std::size_t begin, std::size_t end, const Body& body) {
  for (; begin + kMost <= end; begin += kMost) body(Size<kMost>{}, begin);
  if constexpr (kMost > 1) for_tiles<kMost / 2>(begin, end, body);
}

}  // namespace
}  // namespace ryz::RYZ_TIER
