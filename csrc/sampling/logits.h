// One row of logits, prepared for selection: what every sampling and scoring path reads first.
//
// The row is cut into blocks of 64 whose maxima are kept. They cost nothing beside the scan for the
// overall maximum, and let a threshold skip the blocks that have no candidate: picking 40 of 128256
// values then reads 40 blocks, not the row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ryz {

struct Candidate {
  float logit;
  std::int32_t id;
};

// The order of every draw and listing: descending logit, ties by ascending id.
constexpr bool precedes(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Equal logits mostly arrive in order of id: a row of ties, the worst case for sorting, needs none.
void sort_candidates(std::vector<Candidate>& candidates);

class Logits {
 public:
  static constexpr std::size_t kBlock = 64;

  // Keeps a view of `values`. Throws DistributionError (message prefixed by `where`) when no
  // distribution exists: a NaN, +inf, or every value -inf. Reuses its buffers between calls.
  void scan(std::span<const float> values, const char* where);

  std::span<const float> values() const { return values_; }
  std::size_t blocks() const { return block_max_.size(); }
  float max() const { return max_; }

  // Lowest id that has the maximum.
  std::int32_t argmax() const;

  // A value with at least `count` logits >= it, close to the count-th largest; -inf if count
  // exceeds the number of blocks.
  float threshold_for(std::size_t count) const;

  // Every candidate with logit >= threshold, by ascending id.
  void gather(float threshold, std::vector<Candidate>& out) const;

  // The `count` first candidates in order of precedes().
  void top(std::size_t count, std::vector<Candidate>& out) const;

 private:
  std::span<const float> values_;
  std::vector<float> block_max_;
  mutable std::vector<float> ranked_;
  float max_ = 0;
};

// weights[i] = exp(min(values[i] - max, 0) * inv_temperature) with a relative error below 3e-7,
// rounded to a multiple of 2^-34, and 0 where a value is -inf; returns their sum.
//
// The rounding makes every sum of up to 2^19 weights exact in double. Cumulative masses are then
// the same in any order of summation, so shortcuts through the row cannot change a draw.
double softmax_weights(std::span<const float> values, float max, float inv_temperature,
                       float* weights);

// Sums of weight, of weight * d and of weight * d^2, d = value - shift. A value of -inf must have
// weight 0.
struct Moments {
  double total;
  double first;
  double second;
};
Moments weighted_moments(std::span<const float> values, std::span<const float> weights,
                         float shift);

}  // namespace ryz
