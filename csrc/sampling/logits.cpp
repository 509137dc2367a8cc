#include "sampling/logits.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <string>

#include "base/error.h"
#include "cpu/features.h"
#include "kernels/dispatch.h"

namespace ryz {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The tier that everything takes by default: all give the same bits.
const KernelTable& kernels() {
  static const KernelTable& table = kernel_table(resolve_isa(""));
  return table;
}

}  // namespace

void Logits::scan(std::span<const float> values, const char* where) {
  values_ = values;
  block_max_.resize((values.size() + kBlock - 1) / kBlock);
  const std::size_t whole = values.size() / kBlock;
  bool has_nan = false;
  kernels().block_max({values.data(), whole, block_max_.data(), &has_nan});
  if (whole < block_max_.size()) {
    float padded[kBlock];
    std::fill_n(padded, kBlock, -kInfinity);
    std::copy_n(&values[whole * kBlock], values.size() - whole * kBlock, padded);
    bool is_tail_nan = false;
    kernels().block_max({padded, 1, &block_max_[whole], &is_tail_nan});
    has_nan = has_nan || is_tail_nan;
  }
  max_ = -kInfinity;
  for (const float value : block_max_) max_ = std::max(max_, value);
  const std::string prefix = std::string("[") + where + "] ";
  if (has_nan) {
    const auto bad = std::find_if(values.begin(), values.end(), [](float v) { return v != v; });
    throw DistributionError(prefix + "the logit of token " + std::to_string(bad - values.begin()) +
                            " is NaN");
  }
  if (max_ == kInfinity) {
    throw DistributionError(prefix + "the logit of token " + std::to_string(argmax()) + " is +inf");
  }
  if (max_ == -kInfinity) {
    throw DistributionError(prefix + "every logit is -inf: no token is left to choose from");
  }
}

std::int32_t Logits::argmax() const {
  const auto block = std::find(block_max_.begin(), block_max_.end(), max_);
  const auto begin = values_.begin() + (block - block_max_.begin()) * std::ptrdiff_t{kBlock};
  return static_cast<std::int32_t>(std::find(begin, values_.end(), max_) - values_.begin());
}

float Logits::threshold_for(std::size_t count) const {
  // The count-th largest block maximum: that many blocks hold at least one value each.
  if (count == 0 || count > blocks()) return -kInfinity;
  ranked_ = block_max_;
  const auto nth = ranked_.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(ranked_.begin(), nth, ranked_.end(), std::greater<>());
  return *nth;
}

void Logits::gather(float threshold, std::vector<Candidate>& out) const {
  out.clear();
  for (std::size_t b = 0; b < block_max_.size(); ++b) {
    if (block_max_[b] < threshold) continue;
    const std::size_t begin = b * kBlock;
    const std::size_t end = std::min(begin + kBlock, values_.size());
    // Write every value, keep it by moving the end: no branch to mispredict.
    Candidate found[kBlock];
    std::size_t kept = 0;
    for (std::size_t i = begin; i < end; ++i) {
      found[kept] = {values_[i], static_cast<std::int32_t>(i)};
      kept += values_[i] >= threshold ? 1 : 0;
    }
    out.insert(out.end(), found, found + kept);
  }
}

std::size_t Logits::count_from(float floor) const {
  std::size_t found = 0;
  for (std::size_t b = 0; b < block_max_.size(); ++b) {
    if (block_max_[b] < floor) continue;
    const std::size_t end = std::min((b + 1) * kBlock, values_.size());
    std::uint32_t in_block = 0;
    for (std::size_t i = b * kBlock; i < end; ++i) in_block += values_[i] >= floor ? 1u : 0u;
    found += in_block;
  }
  return found;
}

void Logits::top(std::size_t count, std::vector<Candidate>& out) const {
  gather(threshold_for(count), out);
  if (out.size() <= count) return;
  const auto end = out.begin() + static_cast<std::ptrdiff_t>(count);
  std::nth_element(out.begin(), end, out.end(), precedes);
  out.resize(count);
}

void sort_candidates(std::vector<Candidate>& candidates) {
  // A lambda is inlined where a pointer to precedes() is called.
  const auto order = [](const Candidate& a, const Candidate& b) { return precedes(a, b); };
  if (std::is_sorted(candidates.begin(), candidates.end(), order)) return;
  std::sort(candidates.begin(), candidates.end(), order);
}

double softmax_weights(std::span<const float> values, float reference, float inv_temperature,
                       float* weights) {
  double total = 0.0;
  kernels().softmax_weights(
      {values.data(), values.size(), reference, inv_temperature, weights, &total});
  return total;
}

Moments weighted_moments(std::span<const float> values, std::span<const float> weights,
                         float shift) {
  double sums[2];
  kernels().weighted_moments({values.data(), weights.data(), values.size(), shift, sums});
  return {sums[0], sums[1]};
}

void rungs_of(std::span<const float> values, float top, float per_unit, std::size_t count,
              std::uint16_t* rungs) {
  kernels().rungs({values.data(), values.size(), top, per_unit, count, rungs});
}

std::size_t rung_members(std::span<const std::uint16_t> rungs, std::uint16_t first,
                         std::uint16_t last, std::int32_t* ids) {
  std::size_t count = 0;
  kernels().rung_members({rungs.data(), rungs.size(), first, last, ids, &count});
  return count;
}

}  // namespace ryz
