// Storage formats as load/store policies, for bodies templated on what they read.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

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

// Calls body(first, count) for each vector of [0, n); count < kLanes only for the last one.
template <typename Body>
inline void for_lanes(std::size_t n, Body body) {
  for (std::size_t i = 0; i < n; i += kLanes) body(i, n - i < kLanes ? n - i : kLanes);
}

}  // namespace
}  // namespace ryz::RYZ_TIER
