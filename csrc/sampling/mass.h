// Cumulative probability mass in descending order of logit: the order in which top-k, top-p and
// min-p cut and a draw walks. Both classes answer the same questions; which one is cheaper depends
// on how many candidates there are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sampling/logits.h"

namespace ryz {

// exp((logit - max) * inv_temperature) is a candidate's mass.
struct Softmax {
  float max;
  float inv_temperature;
};

// A place in the order: the candidate there, and the mass of everything up to and including it.
struct Place {
  std::int32_t id;
  double mass;
};

// When a walk stops: at the first place whose mass is >= the target (a top-p cut), or > it (a
// draw).
enum class Crossing { kReach, kExceed };

// Few candidates, sorted.
class SortedMass {
 public:
  // Takes the candidates by swapping buffers.
  void build(std::vector<Candidate>& candidates, Softmax softmax);

  double total() const { return total_; }

  // Mass of the candidates with logit >= threshold.
  double mass_from(float threshold) const;

  // The first place that crosses; a target beyond all gives the last candidate that has mass.
  // `before` is the mass of what precedes these candidates.
  Place find(double target, Crossing crossing, double before = 0.0) const;

 private:
  std::vector<Candidate> candidates_;
  std::vector<float> weights_;
  double total_ = 0.0;
};

// A whole row, not sorted: tokens fall into rungs of equal logit width, of which only the mass is
// computed. A walk steps over rungs and sorts the one where it stops. Answers as SortedMass would.
class LadderMass {
 public:
  // `weights` are softmax_weights() of the row; both must outlive the calls below.
  void build(const Logits& logits, std::span<const float> weights, Softmax softmax);

  double mass_from(float threshold);
  Place find(double target, Crossing crossing);

 private:
  void sort_rung(std::size_t rung);

  const Logits* logits_ = nullptr;
  Softmax softmax_{};
  std::vector<std::uint16_t> rungs_;  // of each token
  std::vector<double> mass_;          // of each rung
  std::vector<Candidate> members_;
  SortedMass sorted_;
  std::size_t sorted_rung_ = 0;  // the one in sorted_
};

}  // namespace ryz
