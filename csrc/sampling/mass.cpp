#include "sampling/mass.h"

#include <algorithm>
#include <limits>

namespace ryz {
namespace {

// 64 rungs per unit of scaled logit, down to exp(-32); the last one takes everything below.
constexpr std::size_t kRungs = 2048;
constexpr float kRungsPerUnit = 64.0f;
constexpr std::size_t kBlock = Logits::kBlock;

bool crosses(double mass, double target, Crossing crossing) {
  return crossing == Crossing::kReach ? mass >= target : mass > target;
}

// Falls monotonically with the logit, so rungs partition the order.
class RungOf {
 public:
  explicit RungOf(Softmax softmax)
      : max_(softmax.max),
        scale_(
            std::min(softmax.inv_temperature * kRungsPerUnit, std::numeric_limits<float>::max())) {}

  std::uint16_t operator()(float logit) const {
    constexpr float kLast = static_cast<float>(kRungs - 1);
    const float depth = (max_ - logit) * scale_;
    return static_cast<std::uint16_t>(static_cast<std::int32_t>(depth < kLast ? depth : kLast));
  }

 private:
  float max_;
  float scale_;
};

}  // namespace

void SortedMass::build(std::vector<Candidate>& candidates, Softmax softmax) {
  candidates_.swap(candidates);
  // Equal logits arrive in order of id: a row of ties, the worst case for sorting, needs none.
  if (!std::is_sorted(candidates_.begin(), candidates_.end(), precedes)) {
    std::sort(candidates_.begin(), candidates_.end(), precedes);
  }
  weights_.resize(candidates_.size());
  for (std::size_t i = 0; i < weights_.size(); ++i) weights_[i] = candidates_[i].logit;
  softmax_weights(weights_, softmax.max, softmax.inv_temperature, weights_.data());
  total_ = 0.0;
  for (const float weight : weights_) total_ += static_cast<double>(weight);
}

double SortedMass::mass_from(float threshold) const {
  double mass = 0.0;
  for (std::size_t i = 0; i < weights_.size() && candidates_[i].logit >= threshold; ++i) {
    mass += static_cast<double>(weights_[i]);
  }
  return mass;
}

Place SortedMass::find(double target, Crossing crossing, double before) const {
  Place place{candidates_.front().id, before};
  for (std::size_t i = 0; i < weights_.size() && weights_[i] > 0.0f; ++i) {
    place = {candidates_[i].id, place.mass + static_cast<double>(weights_[i])};
    if (crosses(place.mass, target, crossing)) break;
  }
  return place;
}

void LadderMass::build(const Logits& logits, std::span<const float> weights, Softmax softmax) {
  logits_ = &logits;
  softmax_ = softmax;
  sorted_rung_ = kRungs;
  rungs_.resize(weights.size());
  std::transform(logits.values().begin(), logits.values().end(), rungs_.begin(), RungOf(softmax));
  mass_.assign(kRungs, 0.0);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    mass_[rungs_[i]] += static_cast<double>(weights[i]);
  }
}

double LadderMass::mass_from(float threshold) {
  const std::size_t last = RungOf(softmax_)(threshold);
  double before = 0.0;
  for (std::size_t rung = 0; rung < last; ++rung) before += mass_[rung];
  sort_rung(last);
  return before + sorted_.mass_from(threshold);
}

Place LadderMass::find(double target, Crossing crossing) {
  double before = 0.0;
  double before_last = 0.0;
  std::size_t last = 0;  // where the walk stops: it crosses there, or no rung after it has mass
  for (std::size_t rung = 0; rung < kRungs; ++rung) {
    if (mass_[rung] == 0.0) continue;
    last = rung;
    before_last = before;
    before += mass_[rung];
    if (crosses(before, target, crossing)) break;
  }
  sort_rung(last);
  return sorted_.find(target, crossing, before_last);
}

void LadderMass::sort_rung(std::size_t rung) {
  if (rung == sorted_rung_) return;
  sorted_rung_ = rung;
  const std::span<const float> values = logits_->values();
  const auto wanted = static_cast<std::uint16_t>(rung);
  members_.clear();
  for (std::size_t begin = 0; begin < values.size(); begin += kBlock) {
    const std::size_t end = std::min(begin + kBlock, values.size());
    // One vector test per block finds the few blocks that have a member.
    std::uint16_t any = 0;
    for (std::size_t i = begin; i < end; ++i) {
      any |= static_cast<std::uint16_t>(rungs_[i] == wanted ? 1 : 0);
    }
    for (std::size_t i = begin; any != 0 && i < end; ++i) {
      if (rungs_[i] == wanted) members_.push_back({values[i], static_cast<std::int32_t>(i)});
    }
  }
  sorted_.build(members_, softmax_);
}

}  // namespace ryz
