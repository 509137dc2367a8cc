#include "sampling/logits.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <numeric>
#include <string>

#include "base/error.h"

namespace ryz {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The loops below run over this many independent lanes with a fixed trip count, which compilers
// turn into SSE2 (or any other) vectors without being allowed to reorder float arithmetic.
constexpr std::size_t kLanes = 16;

using NanFlags = std::int32_t[kLanes];

// The maximum of a whole block; comparisons with NaN are false, hence the separate flags.
float block_max(const float* values, NanFlags& nan) {
  float lanes[kLanes];
  for (std::size_t j = 0; j < kLanes; ++j) lanes[j] = values[j];
  for (std::size_t j = 0; j < kLanes; ++j) nan[j] |= values[j] != values[j];
  for (std::size_t i = kLanes; i < Logits::kBlock; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      const float value = values[i + j];
      lanes[j] = value > lanes[j] ? value : lanes[j];
      nan[j] |= value != value;
    }
  }
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t j = 0; j < half; ++j) {
      lanes[j] = lanes[j + half] > lanes[j] ? lanes[j + half] : lanes[j];
    }
  }
  return lanes[0];
}

// exp(min(x, 0)), 0 below -87 and for NaN, by exp(x) = 2^n * exp(r), |r| <= ln(2)/2, with a
// minimax polynomial of degree 6 (3e-9 relative). Only IEEE operations in a fixed order: the same
// bits on every machine. Without a branch, because a clamp would keep GCC from vectorising: what is
// below -87 computes garbage, -inf even a NaN, which the mask then clears.
inline float exp_nonpositive(float x) {
  x = x > 0.0f ? 0.0f : x;
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693145752f;  // 15 significant bits: n * kLn2High is exact
  constexpr float kLn2Low = 1.42860677e-6f;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the pattern.
  constexpr float kRound = 12582912.0f;
  constexpr auto kRoundBits = std::bit_cast<std::uint32_t>(kRound);
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.38145987e-3f;
  p = p * r + 8.36871658e-3f;
  p = p * r + 4.16683890e-2f;
  p = p * r + 0.166665211f;
  p = p * r + 0.49999994f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const std::uint32_t exponent = (std::bit_cast<std::uint32_t>(shifted) - kRoundBits) << 23;
  const std::uint32_t mask = x >= -87.0f ? ~std::uint32_t{0} : std::uint32_t{0};
  return std::bit_cast<float>((std::bit_cast<std::uint32_t>(p) + exponent) & mask);
}

// To a multiple of 2^-34: no sum from 2^-11 up has finer bits. Costs one bit of the larger weights.
inline float round_to_grid(float weight) {
  constexpr float kFloor = 0x1p-11f;
  return (weight + kFloor) - kFloor;
}

// Exact whatever the order, as softmax_weights() promises; the lanes are for speed.
double sum_exactly(std::span<const float> weights) {
  constexpr std::size_t kSums = 4;
  double sums[kSums] = {};
  std::size_t i = 0;
  for (; i + kSums <= weights.size(); i += kSums) {
    for (std::size_t j = 0; j < kSums; ++j) sums[j] += static_cast<double>(weights[i + j]);
  }
  for (; i < weights.size(); ++i) sums[0] += static_cast<double>(weights[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace

void Logits::scan(std::span<const float> values, const char* where) {
  values_ = values;
  block_max_.resize((values.size() + kBlock - 1) / kBlock);
  NanFlags nan = {};
  const std::size_t whole = values.size() / kBlock;
  for (std::size_t b = 0; b < whole; ++b) block_max_[b] = block_max(&values[b * kBlock], nan);
  if (whole < block_max_.size()) {
    float padded[kBlock];
    std::fill_n(padded, kBlock, -kInfinity);
    std::copy_n(&values[whole * kBlock], values.size() - whole * kBlock, padded);
    block_max_[whole] = block_max(padded, nan);
  }
  max_ = -kInfinity;
  for (const float value : block_max_) max_ = std::max(max_, value);
  const std::string prefix = std::string("[") + where + "] ";
  if (std::any_of(std::begin(nan), std::end(nan), [](std::int32_t flag) { return flag != 0; })) {
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
    std::size_t kept = out.size();
    out.resize(kept + (end - begin));
    for (std::size_t i = begin; i < end; ++i) {
      out[kept] = {values_[i], static_cast<std::int32_t>(i)};
      kept += values_[i] >= threshold ? 1 : 0;
    }
    out.resize(kept);
  }
}

void Logits::top(std::size_t count, std::vector<Candidate>& out) const {
  gather(threshold_for(count), out);
  if (out.size() <= count) return;
  const auto end = out.begin() + static_cast<std::ptrdiff_t>(count);
  std::nth_element(out.begin(), end, out.end(), precedes);
  out.resize(count);
}

void sort_candidates(std::vector<Candidate>& candidates) {
  if (std::is_sorted(candidates.begin(), candidates.end(), precedes)) return;
  std::sort(candidates.begin(), candidates.end(), precedes);
}

double softmax_weights(std::span<const float> values, float max, float inv_temperature,
                       float* weights) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    weights[i] = round_to_grid(exp_nonpositive((values[i] - max) * inv_temperature));
  }
  return sum_exactly({weights, values.size()});
}

Moments weighted_moments(std::span<const float> values, std::span<const float> weights,
                         float shift) {
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  double sums[3][kLanes] = {};
  const auto add = [&](std::size_t lane, float value, float w) {
    const double d =
        static_cast<double>(value > kLowest ? value : kLowest) - static_cast<double>(shift);
    const double weight = static_cast<double>(w);
    sums[0][lane] += weight;
    sums[1][lane] += weight * d;
    sums[2][lane] += weight * d * d;
  };
  std::size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) add(j, values[i + j], weights[i + j]);
  }
  for (std::size_t j = 0; i + j < values.size(); ++j) add(j, values[i + j], weights[i + j]);
  const auto total = [](const double* lanes) {
    return std::accumulate(lanes, lanes + kLanes, 0.0);
  };
  return {total(sums[0]), total(sums[1]), total(sums[2])};
}

}  // namespace ryz
