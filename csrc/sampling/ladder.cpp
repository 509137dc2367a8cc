#include "sampling/ladder.h"

#include <algorithm>
#include <limits>

namespace ryz {
namespace {

// 128 rungs per unit of log-mass, down to exp(-32); the last one takes everything below.
constexpr std::size_t kRungs = 4096;
constexpr float kRungsPerUnit = 128.0f;
// Tokens whose rungs are looked at in one vector test.
constexpr std::size_t kTested = 64;

}  // namespace

void Ladder::build(std::span<const float> values, std::span<const float> weights, float max,
                   float scale) {
  values_ = values;
  weights_ = weights;
  sorted_rung_ = kRungs;
  rung_of_.resize(values.size());
  const float per_unit = std::min(scale * kRungsPerUnit, std::numeric_limits<float>::max());
  rungs_of(values, max, per_unit, kRungs, rung_of_.data());
  rungs_.assign(kRungs, {0.0, 0.0});
  for (std::size_t i = 0; i < values.size(); ++i) {
    Rung& rung = rungs_[rung_of_[i]];
    rung.mass += static_cast<double>(weights[i]);
    rung.count += 1.0;
  }
}

// `first` and `mass` become those of what precedes the rung.
std::size_t Ladder::rung_of_place(std::size_t place, std::size_t& first, double& mass) const {
  std::size_t rung = 0;
  first = 0;
  mass = 0.0;
  while (first + rungs_[rung].size() <= place) {
    first += rungs_[rung].size();
    mass += rungs_[rung].mass;
    ++rung;
  }
  return rung;
}

Candidate Ladder::at(std::size_t place) {
  std::size_t first = 0;
  double mass = 0.0;
  sort_rung(rung_of_place(place, first, mass));
  return members_[place - first];
}

double Ladder::mass_of_first(std::size_t count) {
  if (count == 0) return 0.0;
  std::size_t first = 0;
  double mass = 0.0;
  const std::size_t rung = rung_of_place(count - 1, first, mass);
  if (rungs_[rung].mass == 0.0) return mass;
  if (first + rungs_[rung].size() == count) return mass + rungs_[rung].mass;
  sort_rung(rung);
  for (std::size_t i = 0; first + i < count; ++i) {
    mass += static_cast<double>(weights_[static_cast<std::size_t>(members_[i].id)]);
  }
  return mass;
}

std::size_t Ladder::find(double target, Crossing crossing) {
  // Where the walk stops: it crosses there, or no rung after it has mass.
  std::size_t stop = 0;
  std::size_t stop_place = 0;
  double stop_mass = 0.0;
  std::size_t place = 0;
  double mass = 0.0;
  for (std::size_t rung = 0; rung < kRungs; ++rung) {
    if (rungs_[rung].mass > 0.0) {
      stop = rung;
      stop_place = place;
      stop_mass = mass;
      if (crosses(mass + rungs_[rung].mass, target, crossing)) break;
    }
    place += rungs_[rung].size();
    mass += rungs_[rung].mass;
  }
  sort_rung(stop);
  std::size_t last = 0;
  mass = stop_mass;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    const float weight = weights_[static_cast<std::size_t>(members_[i].id)];
    if (weight == 0.0f) continue;
    last = i;
    mass += static_cast<double>(weight);
    if (crosses(mass, target, crossing)) break;
  }
  return stop_place + last;
}

void Ladder::sort_rung(std::size_t rung) {
  if (rung == sorted_rung_) return;
  sorted_rung_ = rung;
  const auto wanted = static_cast<std::uint16_t>(rung);
  members_.clear();
  for (std::size_t begin = 0; begin < values_.size(); begin += kTested) {
    const std::size_t end = std::min(begin + kTested, values_.size());
    std::uint16_t any = 0;
    if (end - begin == kTested) {  // a fixed count, which compilers make one vector of
      for (std::size_t i = 0; i < kTested; ++i) {
        any |= static_cast<std::uint16_t>(rung_of_[begin + i] == wanted ? 1 : 0);
      }
    }
    if (any == 0 && end - begin == kTested) continue;
    // Write every token, keep it by moving the end: no branch to mispredict.
    Candidate found[kTested];
    std::size_t kept = 0;
    for (std::size_t i = begin; i < end; ++i) {
      found[kept] = {values_[i], static_cast<std::int32_t>(i)};
      kept += rung_of_[i] == wanted ? 1 : 0;
    }
    members_.insert(members_.end(), found, found + kept);
  }
  sort_candidates(members_);
}

}  // namespace ryz
