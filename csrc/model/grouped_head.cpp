#include "model/grouped_head.h"

#include <algorithm>
#include <exception>
#include <vector>

namespace ryz {

GroupedHead::GroupedHead(const DenseMatrix& weights, int bits, const KernelTable& kernels)
    : kernels_(kernels),
      matrix_(weights.rows, weights.columns,
              {static_cast<std::uint8_t>(bits), kScaleBlock, DType::kF16, false}) {}

void GroupedHead::build(const DenseMatrix& weights, ThreadPool& pool) {
  const std::size_t row_bytes = weights.columns * size_of(weights.dtype);
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(pool.threads()));
  auto body = [&](ThreadPool::Context& ctx) {
    const auto [first, last] = ctx.share(weights.rows);
    try {
      matrix_.pack_float(first, static_cast<const std::uint8_t*>(weights.data) + first * row_bytes,
                         weights.dtype, last - first);
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
