// One row of logits, prepared for selection: what every sampling and scoring path reads first.
//
// The row is cut into blocks of 64 whose maxima are kept. They cost nothing beside the scan for the
// overall maximum, and let a threshold skip the blocks that have no candidate: picking 40 of 128256
// values then reads 40 blocks, not the row.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ops.h"

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
  static constexpr std::size_t kBlock = BlockMaxArgs::kBlock;

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

  // How many logits are >= floor.
  std::size_t count_from(float floor) const;

  // The `count` first candidates in order of precedes().
  void top(std::size_t count, std::vector<Candidate>& out) const;

 private:
  std::span<const float> values_;
  std::vector<float> block_max_;
  mutable std::vector<float> ranked_;
  float max_ = 0;
};

// The row ops of kernels/ops.h, in the tier that is taken by default.
//
// Weights are rounded so that every sum of up to 2^19 of them is exact in double: cumulative masses
// are the same in any order of summation, and shortcuts through the row cannot change a draw.
double softmax_weights(std::span<const float> values, float reference, float inv_temperature,
                       float* weights);

// Sums of weight * d and of weight * d^2, d = value - shift.
struct Moments {
  double first;
  double second;
};
Moments weighted_moments(std::span<const float> values, std::span<const float> weights,
                         float shift);

void rungs_of(std::span<const float> values, float top, float per_unit, std::size_t count,
              std::uint16_t* rungs);

// Writes the places of rungs within [first, last] to `ids`, which has room for all; returns how
// many.
std::size_t rung_members(std::span<const std::uint16_t> rungs, std::uint16_t first,
                         std::uint16_t last, std::int32_t* ids);

}  // namespace ryz
