// Dense linears and the LM head: float activations against rows stored in f32, f16 or bf16.
//
// A (row, token) sum is two vectors, the even and the odd vectors of k, added up at the end: a
// fixed order, whatever the path. One token is bound by reading the weights: one row at a time, in
// a single forward stream, or a few where the activations do not fit L1 beside it. A few tokens
// share what is loaded in tiles of kFewRows rows. Many are bound by multiplying: a block of
// kDenseRows rows is expanded to floats once, side by side, and each of the two vectors is then
// summed for kDenseTokens tokens at a time, so that a tile has a register for every sum.
#pragma once

#include "kernels/ops.h"
#include "kernels/vector/formats.h"

namespace ryz::RYZ_TIER {
namespace {

constexpr std::size_t kDenseSums = 2;
constexpr std::size_t kDenseStep = kDenseSums * kLanes;
constexpr std::size_t kDensePrefetch = 4096;  // bytes
constexpr std::size_t kDenseBlock = 1024;     // of k
constexpr std::size_t kDenseGroup = 48;       // tokens
constexpr std::size_t kDenseFew = 8;          // tokens
constexpr std::size_t kDenseNear = 4096;      // activations that stay in L1

inline void dense_store(const DenseLinearArgs& a, std::size_t row, std::size_t token, float sum) {
  const std::size_t at = token * a.out_stride + row;
  a.out[at] = a.residual == nullptr ? sum : sum + a.residual[at];
}

// kLanes weights, or fewer at the end of a row.
template <typename Format>
inline Vec dense_load(const typename Format::Element* w, std::size_t n) {
  return n >= kLanes ? Format::load(w) : load_format_first<Format>(w, n);
}

template <typename Format, std::size_t kRows, std::size_t kTokens>
inline void dense_tile(const DenseLinearArgs& a, std::size_t row, std::size_t token) {
  // Weights are on their way for the first tokens only, and one row alone is not part of a stream.
  const bool is_stream = token == 0 && a.row_end - a.row_begin > 1;
  const std::size_t ahead = is_stream ? kDensePrefetch : 0;
  const auto* w = static_cast<const typename Format::Element*>(a.weights) + row * a.k;
  const float* x = a.x + token * a.k;
  Vec sums[kRows][kTokens][kDenseSums];
  for (auto& row_sums : sums) {
    for (auto& token_sums : row_sums) {
      for (Vec& sum : token_sums) sum = zero();
    }
  }
  std::size_t k = 0;
  for (; k + kDenseStep <= a.k; k += kDenseStep) {
    for (std::size_t r = 0; r < kRows; ++r) {
      prefetch_ahead<kDenseStep * sizeof(*w)>(w + r * a.k + k, ahead);
    }
    for (std::size_t i = 0; i < kDenseSums; ++i) {
      Vec xs[kTokens];
      for (std::size_t t = 0; t < kTokens; ++t) xs[t] = load(x + t * a.k + k + i * kLanes);
      for (std::size_t r = 0; r < kRows; ++r) {
        const Vec weight = in_register(Format::load(w + r * a.k + k + i * kLanes));
        for (std::size_t t = 0; t < kTokens; ++t) {
          sums[r][t][i] = fma(weight, xs[t], sums[r][t][i]);
        }
      }
    }
  }
  for (; k < a.k; k += kLanes) {
    for (std::size_t r = 0; r < kRows; ++r) {
      const Vec weight = dense_load<Format>(w + r * a.k + k, a.k - k);
      for (std::size_t t = 0; t < kTokens; ++t) {
        sums[r][t][0] = fma(weight, load_first(x + t * a.k + k, a.k - k), sums[r][t][0]);
      }
    }
  }
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t t = 0; t < kTokens; ++t) {
      dense_store(a, row + r, token + t, reduce_add(add(sums[r][t][0], sums[r][t][1])));
    }
  }
}

// kRows rows for tokens [token, a.tokens), the last of them in a smaller tile.
template <typename Format, std::size_t kRows, std::size_t kTokens>
inline void dense_tiles(const DenseLinearArgs& a, std::size_t row, std::size_t token) {
  for (; token + kTokens <= a.tokens; token += kTokens) {
    dense_tile<Format, kRows, kTokens>(a, row, token);
  }
  if constexpr (kTokens > 1) dense_tiles<Format, kRows, kTokens - 1>(a, row, token);
}

// Rows [row, a.row_end).
template <typename Format>
inline void dense_few(const DenseLinearArgs& a, std::size_t row) {
  if (a.tokens > 1 || a.k > kDenseNear) {
    for (; row + kFewRows <= a.row_end; row += kFewRows) {
      dense_tiles<Format, kFewRows, kFewTokens>(a, row, 0);
    }
  }
  for (; row < a.row_end; ++row) dense_tiles<Format, 1, kFewTokens>(a, row, 0);
}

// kDenseRows rows at a time for many tokens.
template <typename Format>
class DenseBlocks {
 public:
  explicit DenseBlocks(const DenseLinearArgs& a)
      : a_(a), steps_end_(a.k / kDenseStep * kDenseStep) {}

  // Tokens [token, token + count), count <= kDenseGroup.
  void run(std::size_t row, std::size_t token, std::size_t count) {
    for (std::size_t i = 0; i < count * kTokenSums; ++i) sums_[i] = 0.0f;
    for (std::size_t k = 0; k < steps_end_; k += kDenseBlock) {
      const std::size_t left = steps_end_ - k;
      const std::size_t steps = (left < kDenseBlock ? left : kDenseBlock) / kDenseStep;
      expand(row, k, steps);
      for (std::size_t sum = 0; sum < kDenseSums; ++sum) {
        std::size_t t = 0;
        for (; t + kDenseTokens <= count; t += kDenseTokens) {
          multiply<kDenseTokens>(sum, token, t, k, steps);
        }
        multiply_rest<kDenseTokens - 1>(sum, token, t, count - t, k, steps);
      }
    }
    finish(row, token, count);
  }

 private:
  using Element = typename Format::Element;
  static constexpr std::size_t kRowLanes = kDenseRows * kLanes;
  static constexpr std::size_t kTokenSums = kDenseSums * kRowLanes;

  const Element* weights(std::size_t row) const {
    return static_cast<const Element*>(a_.weights) + row * a_.k;
  }
  float* block(std::size_t sum) { return block_ + sum * (kDenseBlock / kDenseSums * kDenseRows); }

  void expand(std::size_t row, std::size_t k, std::size_t steps) {
    for (std::size_t r = 0; r < kDenseRows; ++r) {
      const Element* w = weights(row + r) + k;
      for (std::size_t i = 0; i < steps; ++i) {
        for (std::size_t sum = 0; sum < kDenseSums; ++sum) {
          store(block(sum) + i * kRowLanes + r * kLanes,
                Format::load(w + (i * kDenseSums + sum) * kLanes));
        }
      }
    }
  }

  // Adds a block to one sum of kTokens tokens.
  template <std::size_t kTokens>
  void multiply(std::size_t sum, std::size_t token, std::size_t t, std::size_t k,
                std::size_t steps) {
    const float* x = a_.x + (token + t) * a_.k + k + sum * kLanes;
    const float* w = block(sum);
    float* held = sums_ + t * kTokenSums + sum * kRowLanes;
    Vec sums[kTokens][kDenseRows];
#pragma GCC unroll 8
    for (std::size_t j = 0; j < kTokens; ++j) {
#pragma GCC unroll 8
      for (std::size_t r = 0; r < kDenseRows; ++r) {
        sums[j][r] = load(held + j * kTokenSums + r * kLanes);
      }
    }
    for (std::size_t i = 0; i < steps; ++i) {
      Vec xs[kTokens];
#pragma GCC unroll 8
      for (std::size_t j = 0; j < kTokens; ++j) xs[j] = load(x + j * a_.k + i * kDenseStep);
#pragma GCC unroll 8
      for (std::size_t r = 0; r < kDenseRows; ++r) {
        const Vec weight = in_register(load(w + i * kRowLanes + r * kLanes));
#pragma GCC unroll 8
        for (std::size_t j = 0; j < kTokens; ++j) sums[j][r] = fma(weight, xs[j], sums[j][r]);
      }
    }
#pragma GCC unroll 8
    for (std::size_t j = 0; j < kTokens; ++j) {
#pragma GCC unroll 8
      for (std::size_t r = 0; r < kDenseRows; ++r) {
        store(held + j * kTokenSums + r * kLanes, sums[j][r]);
      }
    }
  }

  // The last tokens of a group, fewer than a tile has.
  template <std::size_t kTokens>
  void multiply_rest(std::size_t sum, std::size_t token, std::size_t t, std::size_t left,
                     std::size_t k, std::size_t steps) {
    if constexpr (kTokens > 0) {
      if (left == kTokens) return multiply<kTokens>(sum, token, t, k, steps);
      multiply_rest<kTokens - 1>(sum, token, t, left, k, steps);
    }
  }

  // Row after row of a token: what they store lies side by side.
  void finish(std::size_t row, std::size_t token, std::size_t count) {
    for (std::size_t t = 0; t < count; ++t) {
      const float* x = a_.x + (token + t) * a_.k;
      for (std::size_t r = 0; r < kDenseRows; ++r) {
        const float* held = sums_ + t * kTokenSums + r * kLanes;
        Vec even = load(held);
        for (std::size_t k = steps_end_; k < a_.k; k += kLanes) {
          const Vec weight = dense_load<Format>(weights(row + r) + k, a_.k - k);
          even = fma(weight, load_first(x + k, a_.k - k), even);
        }
        dense_store(a_, row + r, token + t, reduce_add(add(even, load(held + kRowLanes))));
      }
    }
  }

  const DenseLinearArgs& a_;
  const std::size_t steps_end_;
  alignas(64) float block_[kDenseBlock * kDenseRows];  // [sum, step, row, lane]
  alignas(64) float sums_[kDenseGroup * kTokenSums];   // [token, sum, row, lane]
};

template <typename Format>
inline void dense_many(const DenseLinearArgs& a) {
  DenseBlocks<Format> blocks(a);
  const std::size_t end = a.row_begin + (a.row_end - a.row_begin) / kDenseRows * kDenseRows;
  for (std::size_t token = 0; token < a.tokens; token += kDenseGroup) {
    const std::size_t left = a.tokens - token;
    const std::size_t count = left < kDenseGroup ? left : kDenseGroup;
    for (std::size_t row = a.row_begin; row < end; row += kDenseRows) blocks.run(row, token, count);
  }
  dense_few<Format>(a, end);
}

template <typename Format>
inline void dense_rows(const DenseLinearArgs& a) {
  a.tokens > kDenseFew ? dense_many<Format>(a) : dense_few<Format>(a, a.row_begin);
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
