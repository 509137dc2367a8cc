// The LM head: float activations against rows stored in f32, f16 or bf16.
//
// Each (row, token) sum lives in one vector accumulator that walks k in order, so its bits do not
// depend on the tile; tiles only share loads. One token is bound by reading the weights: kRowTile
// rows keep that many accumulators in flight, which covers the latency of fma.
#pragma once

#include "kernels/ops.h"
#include "kernels/vector/formats.h"

namespace ryz::RYZ_TIER {
namespace {

template <typename Format, std::size_t kRows, std::size_t kTokens>
inline void dense_tile(const DenseLinearArgs& a, std::size_t row, std::size_t token) {
  const auto* w = static_cast<const typename Format::Element*>(a.weights) + row * a.k;
  const float* x = a.x + token * a.k;
  Vec sums[kRows][kTokens];
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t t = 0; t < kTokens; ++t) sums[r][t] = zero();
  }
  std::size_t k = 0;
  for (; k + kLanes <= a.k; k += kLanes) {
    Vec xs[kTokens];
    for (std::size_t t = 0; t < kTokens; ++t) xs[t] = load(x + t * a.k + k);
    for (std::size_t r = 0; r < kRows; ++r) {
      const Vec weight = Format::load(w + r * a.k + k);
      for (std::size_t t = 0; t < kTokens; ++t) sums[r][t] = fma(weight, xs[t], sums[r][t]);
    }
  }
  if (k < a.k) {
    const std::size_t n = a.k - k;
    for (std::size_t r = 0; r < kRows; ++r) {
      const Vec weight = load_format_first<Format>(w + r * a.k + k, n);
      for (std::size_t t = 0; t < kTokens; ++t) {
        sums[r][t] = fma(weight, load_first(x + t * a.k + k, n), sums[r][t]);
      }
    }
  }
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t t = 0; t < kTokens; ++t) {
      a.out[(token + t) * a.out_stride + row + r] = reduce_add(sums[r][t]);
    }
  }
}

template <typename Format>
inline void dense_rows(const DenseLinearArgs& a) {
  std::size_t token = 0;
  for (; token + 4 <= a.tokens; token += 4) {
    std::size_t row = a.row_begin;
    for (; row + kRowTile / 2 <= a.row_end; row += kRowTile / 2) {
      dense_tile<Format, kRowTile / 2, 4>(a, row, token);
    }
    for (; row < a.row_end; ++row) dense_tile<Format, 1, 4>(a, row, token);
  }
  for (; token < a.tokens; ++token) {
    std::size_t row = a.row_begin;
    for (; row + kRowTile <= a.row_end; row += kRowTile) {
      dense_tile<Format, kRowTile, 1>(a, row, token);
    }
    for (; row < a.row_end; ++row) dense_tile<Format, 1, 1>(a, row, token);
  }
}

inline void dense_linear(const DenseLinearArgs& a) noexcept {
  switch (a.dtype) {
    case DType::kF32:
      return dense_rows<F32>(a);
    case DType::kF16:
      return dense_rows<F16>(a);
    case DType::kBF16:
      return dense_rows<BF16>(a);
  }
}

}  // namespace
}  // namespace ryz::RYZ_TIER
