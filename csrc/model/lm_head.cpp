#include "model/lm_head.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "base/error.h"
#include "model/vocabulary_linear.h"

namespace ryz {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// Above this, one forward stream over all rows beats gathering them, and filters that need to know
// the mass of what they keep may come to see the rows that screening hides.
constexpr std::size_t kMaxCandidates = 2048;
// A row of codes is computed with its whole panel: candidates may be as many as half the panels.
constexpr std::size_t kPanelsPerCandidate = 2;
// Rows screened for one token after the other: their low plane fits the second-level cache.
constexpr std::size_t kPieceRows = 8 * kPanelRows;
// What two soft-capped logits may err by together, in caps; the kernel's tanh errs by 5e-7.
constexpr double kSoftcapError = 4e-6;

// The least logit that, soft-capped, may come within `margin` below `logit`, soft-capped.
float uncapped(float logit, float margin, float cap) {
  const auto width = static_cast<double>(cap);
  const double reached = std::tanh(static_cast<double>(logit) / width) -
                         static_cast<double>(margin) / width - kSoftcapError;
  return reached > -1.0 ? static_cast<float>(width * std::atanh(reached)) : kMinusInfinity;
}

}  // namespace

LmHead::LmHead(VocabularyMatrix weights, HeadKind kind, float softcap, const KernelTable& kernels)
    : weights_(std::move(weights)),
      kind_(kind),
      softcap_(softcap),
      kernels_(kernels),
      max_candidates_(kMaxCandidates) {
  const bool is_grouped = kind == HeadKind::kInt8 || kind == HeadKind::kInt4;
  const GroupedMatrix* codes = weights_.grouped();
  if (codes != nullptr && (kind == HeadKind::kDense || kind == HeadKind::kExact)) {
    if (!has_weight_only_linear(codes->format())) {
      throw ValidationError("[decoder] a dense or exact head of codes has 2, 4 or 8 bits, not " +
                            std::to_string(codes->format().bits));
    }
    // A value is rounded twice where the kernel rounds once: bounds do not allow for that.
    if (kind == HeadKind::kExact && codes->format().has_minimum) {
      throw ValidationError(
          "[decoder] an exact head narrows down plain numbers, or codes without minima; use "
          "head_kind='dense'");
    }
    max_candidates_ = std::min(kMaxCandidates, codes->panels() / kPanelsPerCandidate);
  }
  if (is_grouped) grouped_.emplace(weights_, kind == HeadKind::kInt8 ? 8 : 4, kernels);
}

void LmHead::reserve() {
  const auto planes =
      kind_ == HeadKind::kInt5 ? ScreenMatrix::Planes::kHigh : ScreenMatrix::Planes::kBoth;
  coded_ = ScreenMatrix(weights_.rows, weights_.columns, planes);
}

void LmHead::build(ThreadPool& pool) {
  if (kind_ == HeadKind::kDense) return;
  if (grouped_) return grouped_->build(weights_, pool);
  reserve();
  const std::size_t scratch_bytes = ScreenMatrix::scratch_bytes(weights_.columns);
  Scratch<std::uint8_t> scratch("the coded head");
  Scratch<float> decoded("the coded head");
  scratch.reserve(scratch_bytes * static_cast<std::size_t>(pool.threads()));
  decoded.reserve(weights_.columns * static_cast<std::size_t>(pool.threads()));
  auto body = [&](ThreadPool::Context& ctx) {
    const auto me = static_cast<std::size_t>(ctx.index());
    const auto [panel, last] = ctx.share(coded_.panels());
    for (std::size_t row = panel * kPanelRows; row < std::min(last * kPanelRows, weights_.rows);
         ++row) {
      const DenseMatrix values =
          weights_.slice(row, row + 1, decoded.data() + me * weights_.columns);
      coded_.fill(values.data, values.dtype, row, row + 1, scratch.data() + me * scratch_bytes);
    }
  };
  pool.run(body);
}

void LmHead::adopt(std::map<std::string, Buffer> stored) {
  if (kind_ == HeadKind::kDense) {
    throw ValidationError("[decoder] a dense head has no use for the arrays of a coded one");
  }
  if (grouped_) return grouped_->matrix().adopt(std::move(stored));
  reserve();
  adopt_buffers(coded_.buffers(), std::move(stored));
}

LmHead::Counters LmHead::counters() const {
  return {full_rows_.load(), screened_rows_.load(), survivors_.load(), candidates_.load(),
          fallback_rows_.load()};
}

void LmHead::prepare(std::size_t rows, std::span<const Screening> screening, int threads) {
  rows_ = rows;
  slots_.clear();
  is_coded_.assign(rows, false);
  most_top_ = 0;
  if (grouped_) {
    grouped_->prepare(rows);
    full_rows_ += rows;
    return;
  }
  for (std::size_t i = 0; i < rows && kind_ != HeadKind::kDense; ++i) {
    const Screening asked = screening.empty() ? Screening{} : screening[i];
    const auto top = static_cast<std::size_t>(asked.top);
    if (!is_lossy() && (top == 0 || top > max_candidates_ || top >= weights_.rows)) continue;
    slots_.push_back({i, asked});
    is_coded_[i] = true;
    most_top_ = std::max(most_top_, top);
  }
  const std::size_t n = slots_.size();
  full_rows_ += is_lossy() ? n : rows - n;
  if (n == 0) return;
  const auto workers = static_cast<std::size_t>(threads);
  hi_.reserve(n * screen_width(weights_.columns));
  lo_.reserve(n * screen_width(weights_.columns));
  x_.reserve(n);
  x_scale_.reserve(n);
  x_sums_.reserve(2 * n);
  out_.reserve(n);
  listed_.reserve(coded_.panels() * kPanelRows);
  if (is_lossy()) return;
  tops_.reserve(workers * (n + workers) * most_top_);
  best_.reserve(n * most_top_);
  counts_.reserve(workers * n);
}

// This thread's share of the coded rows' hidden states.
void LmHead::quantize(ThreadPool::Context& ctx, const float* hidden, float* logits) {
  const std::size_t n = slots_.size();
  const std::size_t width = screen_width(weights_.columns);
  const auto [first, last] = ctx.share(n);
  for (std::size_t s = first; s < last; ++s) {
    const ScreenActivation x =
        screen_quantize(hidden + slots_[s].index * weights_.columns, weights_.columns,
                        hi_.data() + s * width, lo_.data() + s * width);
    x_.data()[s] = x;
    x_scale_.data()[s] = x.scale;
    x_sums_.data()[s] = x.hi_sum;
    x_sums_.data()[n + s] = x.lo_sum;
    out_.data()[s] = logits + slots_[s].index * weights_.rows;
  }
}

ScreenActivations LmHead::activations(std::size_t slot) const {
  const std::size_t width = screen_width(weights_.columns);
  return {
      hi_.data() + slot * width, lo_.data() + slot * width, width,
      x_scale_.data() + slot,    x_sums_.data() + slot,     x_sums_.data() + slots_.size() + slot};
}

void LmHead::high_plane(std::size_t panel_begin, std::size_t panel_end) {
  kernels_.screen_linear({coded_.codes(), coded_.scale(), weights_.rows, coded_.blocks(),
                          panel_begin, panel_end, activations(0), slots_.size(), out_.data()});
}

void LmHead::low_plane(std::size_t slot, const std::int32_t* rows, std::size_t count) {
  kernels_.screen_rest({coded_.rest(), coded_.scale(), coded_.rest_bytes() / kRestBytes, rows,
                        count, activations(slot), out_.data()[slot]});
}

// Panel by panel, so that one panel's codes are read from memory once for all tokens.
void LmHead::lossy(const Share& share) {
  for (std::size_t begin = share.begin; begin < share.end; begin += kPanelRows) {
    high_plane(begin / kPanelRows, begin / kPanelRows + 1);
    const std::size_t count = std::min(kPanelRows, share.end - begin);
    std::iota(share.rows, share.rows + count, static_cast<std::int32_t>(begin));
    for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
      if (coded_.has_rest()) low_plane(slot, share.rows, count);
      soften(out_.data()[slot] + begin, count);
    }
  }
}

// Runs of neighbouring full rows go together: they share the weights.
void LmHead::full_rows(const float* hidden, float* logits, std::size_t begin, std::size_t end) {
  const std::size_t vocab = weights_.rows, k = weights_.columns;
  for (std::size_t row = 0; row < rows_;) {
    std::size_t stop = row;
    while (stop < rows_ && !is_coded_[stop]) ++stop;
    if (stop > row) {
      vocabulary_linear(kernels_, weights_, hidden + row * k, stop - row, begin, end,
                        logits + row * vocab);
    }
    for (; row < stop; ++row) soften(logits + row * vocab + begin, end - begin);
    row = stop + 1;
  }
}

// Soft-caps logits, where there is a cap.
void LmHead::soften(float* logits, std::size_t count) const {
  if (softcap_ != 0.0f) kernels_.softcap({logits, count, softcap_});
}

void LmHead::run(ThreadPool::Context& ctx, const float* hidden, float* logits) {
  const std::size_t vocab = weights_.rows;
  if (grouped_) {
    grouped_->run(ctx, hidden, logits);
    const auto [panel, last] = ctx.share(grouped_->matrix().panels());
    const std::size_t begin = panel * kPanelRows, end = std::min(last * kPanelRows, vocab);
    for (std::size_t r = 0; r < rows_; ++r) soften(logits + r * vocab + begin, end - begin);
    return;
  }
  if (slots_.size() < rows_) {
    const std::size_t unit = unit_rows(weights_);
    const auto [first, last] = ctx.share((vocab + unit - 1) / unit);
    const std::size_t begin = first * unit, end = std::min(last * unit, vocab);
    full_rows(hidden, logits, begin, end);
  }
  if (slots_.empty()) return;
  quantize(ctx, hidden, logits);
  ctx.barrier();
  const auto [panel, last_panel] = ctx.share(coded_.panels());
  const Share share{static_cast<std::size_t>(ctx.index()), static_cast<std::size_t>(ctx.threads()),
                    panel * kPanelRows, std::min(last_panel * kPanelRows, vocab),
                    listed_.data() + panel * kPanelRows};
  if (is_lossy()) {
    lossy(share);
  } else {
    screen(ctx, share, hidden);
  }
}

// Logit rows hold approximate logits at first, and what is read in the end after fill_candidates().
void LmHead::screen(ThreadPool::Context& ctx, const Share& share, const float* hidden) {
  const std::size_t n = slots_.size();
  high_plane(share.begin / kPanelRows, (share.end + kPanelRows - 1) / kPanelRows);
  for (std::size_t slot = 0; slot < n; ++slot) collect_top(share, slot);
  ctx.barrier();
  for (std::size_t slot = 0; slot < n; ++slot) score_best(share, slot, hidden);
  ctx.barrier();
  fill_candidates(share, hidden);
  ctx.barrier();
  for (std::size_t slot = 0; slot < n; ++slot) settle(share, slot, hidden);
}

// Higher values first, then lower rows: the same order however the rows are shared out.
bool LmHead::precedes(const Ranked& a, const Ranked& b) {
  return a.value > b.value || (a.value == b.value && a.row < b.row);
}

// Keeps the `top` highest approximate logits of the share's rows, but for known ones: these neither
// set the threshold nor have to reach it.
void LmHead::collect_top(const Share& share, std::size_t slot) {
  const auto top = static_cast<std::size_t>(slots_[slot].screening.top);
  float* out = out_.data()[slot];
  for (const std::int32_t id : slots_[slot].screening.known) {
    const auto row = static_cast<std::size_t>(id);
    if (row >= share.begin && row < share.end) out[row] = kMinusInfinity;
  }
  Ranked* const first = tops_.data() + (share.thread * slots_.size() + slot) * most_top_;
  Ranked* const last = first + top;
  std::fill(first, last, Ranked{kMinusInfinity, -1});  // a heap of equals, least first
  for (std::size_t begin = share.begin; begin < share.end; begin += kPanelRows) {
    const std::size_t end = std::min(begin + kPanelRows, share.end);
    float most = kMinusInfinity;
    for (std::size_t n = begin; n < end; ++n) most = out[n] > most ? out[n] : most;
    for (std::size_t n = most > first->value ? begin : end; n < end; ++n) {
      if (!(out[n] > first->value)) continue;
      std::pop_heap(first, last, precedes);
      last[-1] = {out[n], static_cast<std::int32_t>(n)};
      std::push_heap(first, last, precedes);
    }
  }
}

// Exact logits of the rows that look best: the lowest of them bounds the top-th best from below.
void LmHead::score_best(const Share& share, std::size_t slot, const float* hidden) {
  const auto top = static_cast<std::size_t>(slots_[slot].screening.top);
  const std::size_t n = slots_.size();
  Ranked* merged = tops_.data() + share.threads * (n + share.thread) * most_top_;
  for (std::size_t t = 0; t < share.threads; ++t) {
    std::copy_n(tops_.data() + (t * n + slot) * most_top_, top, merged + t * top);
  }
  std::nth_element(merged, merged + (top - 1), merged + share.threads * top, precedes);
  for (std::size_t i = share.thread; i < top; i += share.threads) {
    float* best = best_.data() + slot * most_top_ + i;
    *best = kMinusInfinity;
    if (merged[i].row < 0) continue;
    vocabulary_rows(kernels_, weights_, hidden + slots_[slot].index * weights_.columns,
                    &merged[i].row, 1, best);
  }
}

// The least upper bound that a candidate must reach. Where there is none, or a NaN is in its way,
// everything but known rows reaches it.
float LmHead::threshold(std::size_t slot) const {
  const Screening& asked = slots_[slot].screening;
  const float* best = best_.data() + slot * most_top_;
  float least = best[0];
  for (std::int32_t i = 1; i < asked.top; ++i)
    least = best[i] < least || best[i] != best[i] ? best[i] : least;
  least = softcap_ == 0.0f ? least - asked.margin : uncapped(least, asked.margin, softcap_);
  return std::max(std::numeric_limits<float>::lowest(), least);
}

// Lists the rows of [begin, end) whose upper bound reaches `least`; all others become -infinity.
std::size_t LmHead::find_survivors(std::size_t slot, float least, std::size_t begin,
                                   std::size_t end, std::int32_t* rows) const {
  const ScreenActivation x = x_.data()[slot];
  const float* const error = coded_.high_error();
  const float* const norm = coded_.norm();
  float* const out = out_.data()[slot];
  std::size_t count = 0;
  for (; begin < end; begin += kPanelRows) {
    // Two plain loops: the first in vectors, the second without a branch to mispredict.
    float upper[kPanelRows];
    const std::size_t some = std::min(kPanelRows, end - begin);
    for (std::size_t i = 0; i < some; ++i) {
      const std::size_t n = begin + i;
      upper[i] = out[n] + (error[n] * x.norm + norm[n] * x.error);
      out[n] = upper[i] < least ? kMinusInfinity : out[n];
    }
    for (std::size_t i = 0; i < some; ++i) {
      rows[count] = static_cast<std::int32_t>(begin + i);
      count += static_cast<std::size_t>(!(upper[i] < least));
    }
  }
  return count;
}

// Of listed rows, keeps those whose upper bound by both planes reaches `least`.
std::size_t LmHead::narrow(std::size_t slot, float least, std::int32_t* rows,
                           std::size_t count) const {
  const ScreenActivation x = x_.data()[slot];
  float* const out = out_.data()[slot];
  std::size_t kept = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto n = static_cast<std::size_t>(rows[i]);
    const float upper = out[n] + (coded_.error()[n] * x.norm + coded_.norm()[n] * x.error);
    if (upper < least) {
      out[n] = kMinusInfinity;
    } else {
      rows[kept++] = rows[i];
    }
  }
  return kept;
}

// Exact logits of known rows and where the upper bound reaches the threshold, -infinity elsewhere.
// Piece by piece, so that a piece's low plane is read from memory once for all tokens.
void LmHead::fill_candidates(const Share& share, const float* hidden) {
  const std::size_t n = slots_.size();
  for (std::size_t slot = 0; slot < n; ++slot) {
    counts_.data()[share.thread * n + slot] = {0, 0, threshold(slot)};
  }
  for (std::size_t begin = share.begin; begin < share.end; begin += kPieceRows) {
    const std::size_t end = std::min(begin + kPieceRows, share.end);
    for (std::size_t slot = 0; slot < n; ++slot) {
      Count& count = counts_.data()[share.thread * n + slot];
      const std::size_t found = find_survivors(slot, count.least, begin, end, share.rows);
      low_plane(slot, share.rows, found);
      const std::size_t kept = narrow(slot, count.least, share.rows, found);
      count.survivors += found;
      count.candidates += kept;
      if (count.candidates <= max_candidates_) compute(slot, share.rows, kept, hidden);
    }
  }
  for (std::size_t slot = 0; slot < n; ++slot) {
    for (const std::int32_t id : slots_[slot].screening.known) {
      const auto row = static_cast<std::size_t>(id);
      if (row < share.begin || row >= share.end) continue;
      // Histories repeat themselves: what is finite has been computed.
      if (out_.data()[slot][row] != kMinusInfinity) continue;
      compute(slot, &id, 1, hidden);
      counts_.data()[share.thread * n + slot].candidates += 1;
    }
  }
}

// Exact logits of listed rows, at most those of a piece.
void LmHead::compute(std::size_t slot, const std::int32_t* rows, std::size_t count,
                     const float* hidden) {
  float logits[kPieceRows];
  vocabulary_rows(kernels_, weights_, hidden + slots_[slot].index * weights_.columns, rows, count,
                  logits);
  soften(logits, count);
  for (std::size_t i = 0; i < count; ++i) {
    out_.data()[slot][static_cast<std::size_t>(rows[i])] = logits[i];
  }
}

// Counts, and computes the whole row where the candidates were too many.
void LmHead::settle(const Share& share, std::size_t slot, const float* hidden) {
  std::size_t survivors = 0;
  std::size_t candidates = 0;
  for (std::size_t t = 0; t < share.threads; ++t) {
    const Count& count = counts_.data()[t * slots_.size() + slot];
    survivors += count.survivors;
    candidates += count.candidates;
  }
  const bool falls_back = candidates > max_candidates_;
  if (falls_back) {
    vocabulary_linear(kernels_, weights_, hidden + slots_[slot].index * weights_.columns, 1,
                      share.begin, share.end, out_.data()[slot]);
    soften(out_.data()[slot] + share.begin, share.end - share.begin);
  }
  if (share.thread != 0) return;
  (falls_back ? fallback_rows_ : screened_rows_) += 1;
  survivors_ += survivors;
  if (!falls_back) candidates_ += candidates;
}

}  // namespace ryz
