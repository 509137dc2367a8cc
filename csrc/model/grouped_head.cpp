#include "model/grouped_head.h"

#include <algorithm>
#include <exception>
#include <vector>

namespace ryz {

GroupedHead::GroupedHead(const VocabularyMatrix& weights, int bits, const KernelTable& kernels)
    : kernels_(kernels),
      matrix_(weights.rows, weights.columns,
              {static_cast<std::uint8_t>(bits), kScaleBlock, DType::kF16, false}) {}

void GroupedHead::build(const VocabularyMatrix& weights, ThreadPool& pool) {
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(pool.threads()));
  auto body = [&](ThreadPool::Context& ctx) {
    const auto [first, last] = ctx.share(weights.rows);
    try {
      std::vector<float> decoded(weights.columns);
      for (std::size_t row = first; row < last; ++row) {
        const DenseMatrix values = weights.slice(row, row + 1, decoded.data());
        matrix_.pack_float(row, values.data, values.dtype, 1);
      }
    } catch (...) {
      errors[static_cast<std::size_t>(ctx.index())] = std::current_exception();
    }
  };
  pool.run(body);
  for (const std::exception_ptr& error : errors) {
    if (error != nullptr) std::rethrow_exception(error);
  }
}

void GroupedHead::prepare(std::size_t rows) {
  rows_ = rows;
  q_.reserve(rows * matrix_.blocks() * kScaleBlock);
  blocks_.reserve(rows * matrix_.blocks());
}

void GroupedHead::run(ThreadPool::Context& ctx, const float* hidden, float* logits) {
  const auto [first_row, last_row] = ctx.share(rows_);
  const std::size_t k = matrix_.in_features();
  for (std::size_t r = first_row; r < last_row; ++r) {
    kernels_.quantize_blocks({hidden + r * k, k, matrix_.blocks(), nullptr, 0.0f,
                              q_.data() + r * kScaleBlock, blocks_.data() + r, rows_});
  }
  ctx.barrier();
  const auto [first, last] = ctx.share(matrix_.panels());
  const std::size_t vocab = matrix_.out_features();
  kernels_.grouped_linear({matrix_.packed(), matrix_.format(), vocab, matrix_.records(), first,
                           last, q_.data(), blocks_.data(), rows_, rows_, logits, vocab, nullptr});
}

}  // namespace ryz
