#include "model/lm_head.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>

namespace ryz {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// Above this, one forward stream over all rows beats gathering them, and filters that need to know
// the mass of what they keep may come to see the rows that screening hides.
constexpr std::size_t kMaxCandidates = 2048;
// Full rows are handed out in lots that fill a kernel's row tile.
constexpr std::size_t kLot = 8;

}  // namespace

LmHead::LmHead(DenseMatrix weights, const KernelTable& kernels)
    : weights_(weights), kernels_(kernels) {}

void LmHead::build_screen(ThreadPool& pool) {
  screen_ = ScreenMatrix(weights_.rows, weights_.columns);
  Scratch<float> scratch("the head's screen");
  scratch.reserve(weights_.columns * static_cast<std::size_t>(pool.threads()));
  auto body = [&](ThreadPool::Context& ctx) {
    const auto [begin, end] = ctx.share(weights_.rows);
    screen_.fill(weights_.data, weights_.dtype, begin, end,
                 scratch.data() + static_cast<std::size_t>(ctx.index()) * weights_.columns);
  };
  pool.run(body);
}

void LmHead::adopt_screen(std::map<std::string, Buffer> stored) {
  screen_ = ScreenMatrix(weights_.rows, weights_.columns);
  adopt_buffers(screen_.buffers(), std::move(stored));
}

LmHead::Counters LmHead::counters() const {
  return {full_rows_.load(), screened_rows_.load(), candidates_.load(), fallback_rows_.load()};
}

void LmHead::prepare(std::size_t rows, std::span<const Screening> screening, int threads) {
  rows_ = rows;
  screened_.clear();
  is_screened_.assign(rows, false);
  most_top_ = 0;
  for (std::size_t i = 0; i < screening.size() && has_screen(); ++i) {
    const auto top = static_cast<std::size_t>(screening[i].top);
    if (top == 0 || top > kMaxCandidates || top >= weights_.rows) continue;
    screened_.push_back({i, screening[i]});
    is_screened_[i] = true;
    most_top_ = std::max(most_top_, top);
  }
  const std::size_t n = screened_.size();
  const auto workers = static_cast<std::size_t>(threads);
  const std::size_t width = screen_.steps() * kPlaneColumns;
  hi_.reserve(n * width);
  lo_.reserve(n * width);
  x_values_.reserve(3 * n);
  lower_.reserve(n * screen_.panels() * kPanelRows);
  upper_.reserve(n * screen_.panels() * kPanelRows);
  tops_.reserve(workers * (n + workers) * most_top_);
  counts_.reserve(workers * n);
  full_rows_ += rows - n;
}

// This thread's share of the screened rows.
void LmHead::quantize(ThreadPool::Context& ctx, const float* hidden) {
  const std::size_t n = screened_.size();
  const std::size_t width = screen_.steps() * kPlaneColumns;
  const auto [first, last] = ctx.share(n);
  for (std::size_t s = first; s < last; ++s) {
    const ScreenActivation x =
        screen_quantize(hidden + screened_[s].index * weights_.columns, weights_.columns,
                        hi_.data() + s * width, lo_.data() + s * width);
    x_values_.data()[s] = x.scale;
    x_values_.data()[n + s] = x.norm;
    x_values_.data()[2 * n + s] = x.error;
  }
}

void LmHead::dense(const float* hidden, float* logits, std::size_t row, std::size_t rows,
                   std::size_t begin, std::size_t end) {
  kernels_.dense_linear({weights_.data, weights_.dtype, weights_.columns, begin, end,
                         hidden + row * weights_.columns, rows, logits + row * weights_.rows,
                         weights_.rows});
}

// Runs of neighbouring full rows go together: they share the weights.
void LmHead::full_rows(const float* hidden, float* logits, std::size_t begin, std::size_t end) {
  for (std::size_t row = 0; row < rows_;) {
    std::size_t stop = row;
    while (stop < rows_ && !is_screened_[stop]) ++stop;
    if (stop > row) dense(hidden, logits, row, stop - row, begin, end);
    row = stop + 1;
  }
}

// Keeps the `top` highest lower bounds of rows [begin, end), in this thread's part of tops_.
void LmHead::collect_top(std::size_t thread, std::size_t slot, std::size_t begin, std::size_t end) {
  const auto top = static_cast<std::size_t>(screened_[slot].screening.top);
  const float* lower = lower_.data() + slot * screen_.panels() * kPanelRows;
  float* heap = tops_.data() + (thread * screened_.size() + slot) * most_top_;
  std::fill_n(heap, top, kMinusInfinity);  // a heap of equals, least first
  for (std::size_t n = begin; n < end; ++n) {
    if (!(lower[n] > heap[0])) continue;
    std::pop_heap(heap, heap + top, std::greater<>());
    heap[top - 1] = lower[n];
    std::push_heap(heap, heap + top, std::greater<>());
  }
}

// The least upper bound that a candidate must reach. Every thread works it out for itself.
float LmHead::threshold(std::size_t slot, std::size_t threads, std::size_t thread) {
  const auto top = static_cast<std::size_t>(screened_[slot].screening.top);
  const std::size_t n = screened_.size();
  float* merged = tops_.data() + threads * (n + thread) * most_top_;
  for (std::size_t t = 0; t < threads; ++t) {
    std::copy_n(tops_.data() + (t * n + slot) * most_top_, top, merged + t * top);
  }
  std::nth_element(merged, merged + (top - 1), merged + threads * top, std::greater<>());
  return merged[top - 1] - screened_[slot].screening.margin;
}

// Exact logits where the upper bound reaches `least`, -infinity elsewhere; returns how many.
std::size_t LmHead::fill_candidates(std::size_t slot, float least, const float* hidden,
                                    float* logits, std::size_t begin, std::size_t end) {
  const std::size_t row = screened_[slot].index;
  const float* upper = upper_.data() + slot * screen_.panels() * kPanelRows;
  float* out = logits + row * weights_.rows;
  std::size_t count = 0;
  for (std::size_t n = begin; n < end; ++n) {
    out[n] = kMinusInfinity;
    if (upper[n] < least) continue;
    if (++count <= kMaxCandidates) dense(hidden, logits, row, 1, n, n + 1);
  }
  return count;
}

void LmHead::run(ThreadPool::Context& ctx, const float* hidden, float* logits) {
  const auto me = static_cast<std::size_t>(ctx.index());
  const auto threads = static_cast<std::size_t>(ctx.threads());
  const std::size_t vocab = weights_.rows;
  const std::size_t n = screened_.size();
  if (n < rows_) {
    const auto [lot, last] = ctx.share((vocab + kLot - 1) / kLot);
    full_rows(hidden, logits, lot * kLot, std::min(last * kLot, vocab));
  }
  if (n == 0) return;
  quantize(ctx, hidden);
  ctx.barrier();

  const auto [panel, last_panel] = ctx.share(screen_.panels());
  const std::size_t begin = std::min(panel * kPanelRows, vocab);
  const std::size_t end = std::min(last_panel * kPanelRows, vocab);
  kernels_.screen_linear({screen_.packed(), screen_.scale(), screen_.offset(),
                          screen_.weight_error(), screen_.weight_norm(), screen_.steps(), panel,
                          last_panel, hi_.data(), lo_.data(), screen_.steps() * kPlaneColumns,
                          x_values_.data(), x_values_.data() + n, x_values_.data() + 2 * n, n,
                          lower_.data(), upper_.data(), screen_.panels() * kPanelRows});
  for (std::size_t slot = 0; slot < n; ++slot) collect_top(me, slot, begin, end);
  ctx.barrier();
  for (std::size_t slot = 0; slot < n; ++slot) {
    counts_.data()[me * n + slot] = static_cast<std::int32_t>(
        fill_candidates(slot, threshold(slot, threads, me), hidden, logits, begin, end));
  }
  ctx.barrier();
  for (std::size_t slot = 0; slot < n; ++slot) {
    std::size_t count = 0;
    for (std::size_t t = 0; t < threads; ++t) {
      count += static_cast<std::size_t>(counts_.data()[t * n + slot]);
    }
    // NaN bounds fail every comparison above and leave no row below the threshold.
    const bool falls_back = count > kMaxCandidates;
    if (falls_back) dense(hidden, logits, screened_[slot].index, 1, begin, end);
    if (me != 0) continue;
    (falls_back ? fallback_rows_ : screened_rows_) += 1;
    if (!falls_back) candidates_ += count;
  }
}

}  // namespace ryz
