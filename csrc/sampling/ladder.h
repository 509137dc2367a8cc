// Tokens in descending order of value with their cumulative mass, of which only what is asked for
// gets sorted.
//
// Tokens fall into rungs of equal width in value; of a rung only the count and the mass are
// computed. A question is answered by finding the rung where it stops, and sorting that one.
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

// A beginning of the order: how many tokens, and their mass. The count is a double and the whole
// aligned, so that one vector addition in memory counts a token in.
struct alignas(16) Prefix {
  double mass = 0.0;
  double count = 0.0;
  std::size_t size() const { return static_cast<std::size_t>(count); }
};

class Ladder {
 public:
  // 128 rungs per unit of log-mass, down to exp(-32); the last one takes everything below.
  static constexpr std::size_t kRungs = 4096;

  // The first rung begins at `top` and takes what is above it too; `scale` is what makes a step in
  // values a step in log-mass. Both spans must outlive the calls below.
  void build(std::span<const float> values, std::span<const float> weights, float top, float scale);

  // The candidate at a place of the order, from 0.
  Candidate at(std::size_t place);

  // Mass of the first `count` candidates.
  double mass_of_first(std::size_t count);

  // The first place that crosses; a target beyond all gives the last place that has mass.
  std::size_t find(double target, Crossing crossing);

  // The rung that a value falls into, and what is in the rungs before one of 0 to kRungs. A rung
  // has no value below those of later rungs.
  std::size_t rung_of(float value) const;
  const Prefix& before(std::size_t rung) const { return before_[rung]; }

  // Appends the candidates of the rungs [begin, end), by ascending id.
  void gather(std::size_t begin, std::size_t end, std::vector<Candidate>& out);

 private:
  void sort_rung(std::size_t rung);
  std::size_t rung_of_place(std::size_t place) const;

  std::span<const float> values_;
  std::span<const float> weights_;
  float top_ = 0.0f;
  float per_unit_ = 0.0f;
  std::vector<std::uint16_t> rung_of_;  // each token
  std::vector<Prefix> before_;          // each rung, and the end
  std::vector<std::int32_t> ids_;
  std::vector<Candidate> members_;  // of the sorted rung, in order
  std::size_t sorted_rung_ = 0;
};

}  // namespace ryz
