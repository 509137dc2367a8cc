// Stores one token's key and value in a page of ops.h's layout.
#pragma once

#include "kernels/ops.h"
#include "kernels/vector/formats.h"

namespace ryz::RYZ_TIER {
namespace {

template <typename Format>
inline void write_floats(const KvWriteArgs& a) {
  using Element = typename Format::Element;
  auto* keys = static_cast<Element*>(a.page);
  const std::size_t padded = padded_head_dim(a.head_dim);
  Element* value = keys + page_key_elements(a.head_dim, a.dtype) + a.offset * padded;
  for (std::size_t d = 0; d < padded; d += kLanes) {
    const std::size_t n = d < a.head_dim ? a.head_dim - d : 0;
    Element column[kLanes];
    Format::store(column, load_first(a.key + d, n));
    for (std::size_t i = 0; i < kLanes && i < n; ++i) {
      keys[(d + i) * kPageTokens + a.offset] = column[i];
    }
    Format::store(value + d, load_first(a.value + d, n));
  }
}

inline void write_int8(const KvWriteArgs& a) {
  const std::size_t padded = padded_head_dim(a.head_dim);
  auto* keys = static_cast<std::int8_t*>(a.page);
  std::int8_t* values = keys + page_key_elements(a.head_dim, a.dtype);
  auto* scales = reinterpret_cast<float*>(values + kPageTokens * padded);
  const Int8Row key(FloatRow{a.key}, a.head_dim);
  const Int8Row value(FloatRow{a.value}, a.head_dim);
  scales[a.offset] = key.scale();
  scales[kPageTokens + a.offset] = value.scale();
  // Pairs lie side by side: of the head dimension in keys, of keys in values.
  std::int8_t* value_row = values + a.offset / 2 * 2 * padded + a.offset % 2;
  for (std::size_t d = 0; d < padded; d += kLanes) {
    std::int8_t key_codes[kLanes], value_codes[kLanes];
    store_i8(key_codes, key.codes(d));
    store_i8(value_codes, value.codes(d));
    for (std::size_t i = 0; i < kLanes; ++i) {
      const std::size_t at = d + i;
      if (at < (a.head_dim + 1) / 2 * 2) {
        keys[(at / 2 * kPageTokens + a.offset) * 2 + at % 2] = key_codes[i];
      }
      value_row[at * 2] = value_codes[i];
    }
  }
}

inline void kv_write(const KvWriteArgs& a) noexcept {
  switch (a.dtype) {
    case KvDtype::kF32:
      return write_floats<F32>(a);
    case KvDtype::kF16:
      return write_floats<F16>(a);
    case KvDtype::kInt8:
      return write_int8(a);
  }
}

}  // namespace
}  // namespace ryz::RYZ_TIER
