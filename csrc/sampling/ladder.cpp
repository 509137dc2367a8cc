#include "sampling/ladder.h"

#include <algorithm>
#include <limits>

namespace ryz {
namespace {

constexpr float kRungsPerUnit = 128.0f;

}  // namespace

void Ladder::build(std::span<const float> values, std::span<const float> weights, float top,
                   float scale) {
  values_ = values;
  weights_ = weights;
  top_ = top;
  per_unit_ = std::min(scale * kRungsPerUnit, std::numeric_limits<float>::max());
  sorted_rung_ = kRungs;
  rung_of_.resize(values.size());
  rungs_of(values, top_, per_unit_, kRungs, rung_of_.data());
  before_.assign(kRungs + 1, {});
  for (std::size_t i = 0; i < values.size(); ++i) {
    Prefix& rung = before_[rung_of_[i]];
    rung.mass += static_cast<double>(weights[i]);
    rung.count += 1.0;
  }
  Prefix sum;
  for (Prefix& rung : before_) {
    const Prefix own = rung;
    rung = sum;
    sum.mass += own.mass;
    sum.count += own.count;
  }
}

std::size_t Ladder::rung_of_place(std::size_t place) const {
  const auto after =
      std::partition_point(before_.begin() + 1, before_.end(),
                           [place](const Prefix& prefix) { return prefix.size() <= place; });
  return static_cast<std::size_t>(after - before_.begin()) - 1;
}

Candidate Ladder::at(std::size_t place) {
  const std::size_t rung = rung_of_place(place);
  sort_rung(rung);
  return members_[place - before_[rung].size()];
}

double Ladder::mass_of_first(std::size_t count) {
  if (count == before_.back().size()) return before_.back().mass;
  const std::size_t rung = rung_of_place(count);
  double mass = before_[rung].mass;
  if (before_[rung].size() == count || before_[rung + 1].mass == mass) return mass;
  sort_rung(rung);
  for (std::size_t i = 0; before_[rung].size() + i < count; ++i) {
    mass += static_cast<double>(weights_[static_cast<std::size_t>(members_[i].id)]);
  }
  return mass;
}

std::size_t Ladder::find(double target, Crossing crossing) {
  const auto first = before_.begin() + 1;
  auto stop = std::partition_point(first, before_.end(), [=](const Prefix& prefix) {
    return !crosses(prefix.mass, target, crossing);
  });
  if (stop == before_.end()) {
    stop = std::partition_point(
        first, before_.end(), [=, this](const Prefix& p) { return p.mass < before_.back().mass; });
  }
  const auto rung = static_cast<std::size_t>(stop - first);
  sort_rung(rung);
  std::size_t last = 0;
  double mass = before_[rung].mass;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    const float weight = weights_[static_cast<std::size_t>(members_[i].id)];
    if (weight == 0.0f) continue;
    last = i;
    mass += static_cast<double>(weight);
    if (crosses(mass, target, crossing)) break;
  }
  return before_[rung].size() + last;
}

std::size_t Ladder::rung_of(float value) const {
  std::uint16_t rung = 0;
  rungs_of({&value, 1}, top_, per_unit_, kRungs, &rung);
  return rung;
}

void Ladder::gather(std::size_t begin, std::size_t end, std::vector<Candidate>& out) {
  if (begin >= end) return;
  ids_.resize(values_.size());
  const std::size_t count = rung_members(rung_of_, static_cast<std::uint16_t>(begin),
                                         static_cast<std::uint16_t>(end - 1), ids_.data());
  for (std::size_t i = 0; i < count; ++i) {
    out.push_back({values_[static_cast<std::size_t>(ids_[i])], ids_[i]});
  }
}

void Ladder::sort_rung(std::size_t rung) {
  if (rung == sorted_rung_) return;
  sorted_rung_ = rung;
  members_.clear();
  gather(rung, rung + 1, members_);
  sort_candidates(members_);
}

}  // namespace ryz
