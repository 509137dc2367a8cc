// Dense linears and the LM head: float activations against rows stored in f32, f16 or bf16.
//
// A (row, token) sum is two vectors, the even and the odd vectors of k, added up at the end: a
// fixed order, whatever the tile. One token is bound by reading the weights, and one row at a time
// keeps that a single forward stream. Several tokens are bound by multiplying: kDenseRows rows
// share what is loaded of kDenseTokens tokens, whose weights are expanded once. Many tokens go in
// groups whose activations stay in L2 while all rows pass by.
#pragma once

#include "kernels/ops.h"
#include "kernels/vector/formats.h"

namespace ryz::RYZ_TIER {
namespace {

constexpr std::size_t kDenseSums = 2;
constexpr std::size_t kDensePrefetch = 4096;  // bytes
constexpr std::size_t kDenseGroupBytes = std::size_t{1} << 19;

template <typename Format, std::size_t kRows, std::size_t kTokens>
inline void dense_tile(const DenseLinearArgs& a, std::size_t row, std::size_t token) {
  constexpr std::size_t kStep = kDenseSums * kLanes;
  // One row alone is not part of a stream.
  const std::size_t ahead = a.row_end - a.row_begin > 1 ? kDensePrefetch : 0;
  const auto* w = static_cast<const typename Format::Element*>(a.weights) + row * a.k;
  const float* x = a.x + token * a.k;
  Vec sums[kRows][kTokens][kDenseSums];
  for (auto& row_sums : sums) {
    for (auto& token_sums : row_sums) {
      for (Vec& sum : token_sums) sum = zero();
    }
  }
  std::size_t k = 0;
  for (; k + kStep <= a.k; k += kStep) {
    for (std::size_t r = 0; r < kRows; ++r) {
      prefetch_ahead<kStep * sizeof(*w)>(w + r * a.k + k, ahead);
    }
    for (std::size_t i = 0; i < kDenseSums; ++i) {
      Vec xs[kTokens];
      for (std::size_t t = 0; t < kTokens; ++t) xs[t] = load(x + t * a.k + k + i * kLanes);
      for (std::size_t r = 0; r < kRows; ++r) {
        const Vec weight = Format::load(w + r * a.k + k + i * kLanes);
        for (std::size_t t = 0; t < kTokens; ++t) {
          sums[r][t][i] = fma(weight, xs[t], sums[r][t][i]);
        }
      }
    }
  }
  for (; k < a.k; k += kLanes) {
    const std::size_t n = a.k - k;
    for (std::size_t r = 0; r < kRows; ++r) {
      const auto* tail = w + r * a.k + k;
      const Vec weight = n >= kLanes ? Format::load(tail) : load_format_first<Format>(tail, n);
      for (std::size_t t = 0; t < kTokens; ++t) {
        sums[r][t][0] = fma(weight, load_first(x + t * a.k + k, n), sums[r][t][0]);
      }
    }
  }
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t t = 0; t < kTokens; ++t) {
      const std::size_t at = (token + t) * a.out_stride + row + r;
      const float sum = reduce_add(add(sums[r][t][0], sums[r][t][1]));
      a.out[at] = a.residual == nullptr ? sum : sum + a.residual[at];
    }
  }
}

// Tokens [token, end) of kRows rows.
template <typename Format, std::size_t kRows>
inline void dense_tokens(const DenseLinearArgs& a, std::size_t row, std::size_t token,
                         std::size_t end) {
  for (; token + kDenseTokens <= end; token += kDenseTokens) {
    dense_tile<Format, kRows, kDenseTokens>(a, row, token);
  }
  for (; token < end; ++token) dense_tile<Format, kRows, 1>(a, row, token);
}

template <typename Format>
inline void dense_rows(const DenseLinearArgs& a) {
  const std::size_t fit = kDenseGroupBytes / (a.k * sizeof(float)) / kDenseTokens * kDenseTokens;
  const std::size_t group = fit == 0 ? kDenseTokens : fit;
  for (std::size_t token = 0; token < a.tokens; token += group) {
    const std::size_t end = token + group < a.tokens ? token + group : a.tokens;
    std::size_t row = a.row_begin;
    if (a.tokens > 1) {
      for (; row + kDenseRows <= a.row_end; row += kDenseRows)
        dense_tokens<Format, kDenseRows>(a, row, token, end);
    }
    for (; row < a.row_end; ++row) dense_tokens<Format, 1>(a, row, token, end);
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
