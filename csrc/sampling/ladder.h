// Tokens in descending order of value with their cumulative mass, of which only what is asked for
// gets sorted.
//
// Tokens fall into rungs of equal width in value; of a rung only the count and the mass are
// computed. A question is answered by stepping over rungs and sorting the one where it stops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sampling/logits.h"

namespace ryz {

// When a walk down the order stops: at the first place whose mass is >= the target (a top-p cut),
// or > it (a draw).
enum class Crossing { kReach, kExceed };

inline bool crosses(double mass, double target, Crossing crossing) {
  return crossing == Crossing::kReach ? mass >= target : mass > target;
}

class Ladder {
 public:
  // Values are at most `max`; `scale` is what makes a step in them a step in log-mass. Both spans
  // must outlive the calls below.
  void build(std::span<const float> values, std::span<const float> weights, float max, float scale);

  // The candidate at a place of the order, from 0.
  Candidate at(std::size_t place);

  // Mass of the first `count` candidates.
  double mass_of_first(std::size_t count);

  // The first place that crosses; a target beyond all gives the last place that has mass.
  std::size_t find(double target, Crossing crossing);

 private:
  void sort_rung(std::size_t rung);
  std::size_t rung_of_place(std::size_t place, std::size_t& first, double& mass) const;

  std::span<const float> values_;
  std::span<const float> weights_;
  // Two doubles, which one vector addition counts a token in.
  struct Rung {
    double mass;
    double count;
    std::size_t size() const { return static_cast<std::size_t>(count); }
  };

  std::vector<std::uint16_t> rung_of_;  // each token
  std::vector<Rung> rungs_;
  std::vector<Candidate> members_;  // of the sorted rung, in order
  std::size_t sorted_rung_ = 0;
};

}  // namespace ryz
