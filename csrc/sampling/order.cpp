#include "sampling/order.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <ranges>

namespace ryz {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Up to this many candidates, sorting costs less than a ladder over the row.
constexpr std::size_t kSortAll = 2048;
// Candidates tried before the ladder: a trained model rarely puts a draw beyond them, and finding
// four times as many would cost every draw half of what a ladder costs the rare one.
constexpr std::size_t kHead = 128;
// Weights are rounded to a grid. A most likely candidate with less than exp(-7) gets a new
// reference, so that those of all candidates keep 24 bits.
constexpr float kDeep = 7.0f;

// The lowest logit >= from + offset.
float floor_from(float from, double offset) {
  const double exact = static_cast<double>(from) + offset;
  const auto floor = static_cast<float>(exact);
  return static_cast<double>(floor) < exact ? std::nextafter(floor, kInfinity) : floor;
}

}  // namespace

void Order::start(const Logits& row) {
  temperature_ = inv_temperature_ = 1.0f;
  ids_.clear();
  take_all(row);
  reference_ = row_max_;
}

void Order::take_all(const Logits& row) {
  row_ = &row;
  begin_ = 0;
  end_ = row.values().size();
  row_max_ = row.max();
  sorted_.clear();
  is_head_sorted_ = false;
  forget_masses();
  if (end_ <= kSortAll) keep_first(end_);
}

Candidate Order::with_id(Candidate candidate) const {
  if (!ids_.empty()) candidate.id = ids_[static_cast<std::size_t>(candidate.id)];
  return candidate;
}

void Order::set_temperature(float temperature) {
  temperature_ = temperature;
  inv_temperature_ = std::min(1.0f / temperature, std::numeric_limits<float>::max());
  shorten_row();
  reference_ = top_logit();
  forget_masses();
}

// New masses cost as much as the row is long, and this a fraction of it. Without a ladder, finding
// the candidates would cost more than it saves. Once a draw: no order has two temperatures.
void Order::shorten_row() {
  if (row_ == nullptr || !is_ladder_built_ || size() > row_->values().size() / 4) return;
  gathered_.clear();
  gather_candidates(ladder_.rung_of(at(begin_).logit), ladder_.rung_of(at(end_ - 1).logit) + 1);
  short_values_.clear();
  for (const Candidate& candidate : gathered_) {
    short_values_.push_back(candidate.logit);
    ids_.push_back(candidate.id);
  }
  short_row_.scan(short_values_, "sample");
  take_all(short_row_);
}

double Order::mass_of(float logit) const {
  float weight = logit;
  softmax_weights({&weight, 1}, reference_, inv_temperature_, &weight);
  return static_cast<double>(weight);
}

float Order::floor_of_total(double share) {
  return floor_from(reference_, static_cast<double>(temperature_) * std::log(share * total()));
}

float Order::floor_of_top(double share) {
  return floor_from(top_logit(), static_cast<double>(temperature_) * std::log(share));
}

std::size_t Order::count_to(double share) {
  const double before = mass_of_first(begin_);
  const double target = before + share * (mass_of_first(end_) - before);
  return std::clamp(find(target, Crossing::kReach), begin_, end_ - 1) - begin_ + 1;
}

Candidate Order::draw(double uniform) {
  const double before = mass_of_first(begin_);
  const double after = mass_of_first(end_);
  // Below the end even when the product rounds up to it.
  const double target = std::min(before + uniform * (after - before), std::nextafter(after, 0.0));
  return with_id(at(find(target, Crossing::kExceed)));
}

void Order::keep_first(std::size_t count) {
  end_ = std::min(end_, begin_ + count);
  if (row_ == nullptr) return;
  if (end_ > sorted_.size()) {
    // Beyond as many as there are blocks, Logits::top() would look at every token.
    const std::size_t tokens = row_->values().size();
    const std::size_t blocks = row_->blocks();
    if (end_ > (tokens <= kSortAll ? tokens : std::min(kSortAll, blocks))) return;
    row_->top(end_, sorted_);
    sort_candidates(sorted_);
    sorted_mass_.clear();
  }
  row_ = nullptr;
}

void Order::drop_first(std::size_t count) {
  begin_ += count;
  if ((reference_ - top_logit()) * inv_temperature_ <= kDeep) return;
  reference_ = top_logit();
  forget_masses();
}

void Order::keep_nearest(float centre, double share, std::size_t min_keep) {
  const double target = share * total();
  const std::size_t least = std::min(min_keep, size());
  const auto [sure, possible] = find_undecided(centre, target, least);
  distances_.resize(gathered_.size());
  undecided_weights_.resize(gathered_.size());
  for (std::size_t i = 0; i < gathered_.size(); ++i) distances_[i] = gathered_[i].logit;
  softmax_weights(distances_, reference_, inv_temperature_, undecided_weights_.data());
  for (float& distance : distances_) distance = -std::fabs(distance - centre);
  nearest_.build(distances_, undecided_weights_, 0.0f, inv_temperature_);
  const std::size_t missing = least > sure.size() ? least - sure.size() : 1;
  const std::size_t last =
      std::max(nearest_.find(target - sure.mass(), Crossing::kReach), missing - 1);
  const float reach = nearest_.at(last).logit;
  std::size_t begin = possible.begin.size();
  std::size_t end = possible.end.size();
  for (std::size_t i = 0; i < gathered_.size(); ++i) {
    const bool is_beyond = distances_[i] < reach;
    const bool is_above = gathered_[i].logit >= centre;
    begin += is_beyond & is_above ? 1 : 0;
    end -= is_beyond & !is_above ? 1 : 0;
  }
  keep_first(end - begin_);
  drop_first(begin - begin_);
}

// A token at most n rungs from the centre's own is nearer than the width of n + 1, any other is
// further than that of n. So where n rungs are the fewest that suffice, the last token to be kept
// is between the widths of n - 1 and n + 1, and undecided are a few rungs on either side; one more
// than that, since rungs and distances are rounded differently.
Order::Nearest Order::find_undecided(float centre, double target, std::size_t least) {
  const Run all = candidates();
  if (row_ == nullptr) {
    gathered_.assign(sorted_.begin() + static_cast<std::ptrdiff_t>(begin_),
                     sorted_.begin() + static_cast<std::ptrdiff_t>(end_));
    return {{}, all};
  }
  struct Rungs {
    std::size_t begin;
    std::size_t end;
  };
  constexpr int kAll = static_cast<int>(Ladder::kRungs);
  Ladder& ladder = this->ladder();
  const int middle = static_cast<int>(ladder.rung_of(centre));
  const auto within = [=](int n) -> Rungs {
    const int begin = n < 0 ? middle : std::max(middle - n, 0);
    const int end = n < 0 ? middle : std::min(middle + n + 1, kAll);
    return {static_cast<std::size_t>(begin), static_cast<std::size_t>(end)};
  };
  const auto run_of = [&](Rungs rungs) -> Run {
    const auto shorter = [](const Prefix& a, const Prefix& b) { return a.count < b.count; };
    return {std::clamp(ladder.before(rungs.begin), all.begin, all.end, shorter),
            std::clamp(ladder.before(rungs.end), all.begin, all.end, shorter)};
  };
  const int n = *std::ranges::partition_point(std::views::iota(0, kAll), [&](int rungs) {
    const Run run = run_of(within(rungs));
    return run.mass() < target || run.size() < least;
  });
  // The last rung has no width: what is in it may be at any distance.
  const bool is_last_in = middle + n + 2 >= kAll - 1;
  const Rungs sure = within(is_last_in ? std::min(n - 3, kAll - 2 - middle) : n - 3);
  const Rungs possible = is_last_in ? Rungs{0, Ladder::kRungs} : within(n + 2);
  gathered_.clear();
  gather_candidates(possible.begin, sure.begin);
  gather_candidates(sure.end, possible.end);
  return {run_of(sure), run_of(possible)};
}

void Order::gather_candidates(std::size_t begin, std::size_t end) {
  const std::size_t before = gathered_.size();
  ladder().gather(begin, end, gathered_);
  if (size() == row_->values().size()) return;
  const Candidate first = at(begin_);
  const Candidate last = at(end_ - 1);
  const auto is_none = [=](const Candidate& candidate) {
    return precedes(candidate, first) || precedes(last, candidate);
  };
  const auto added = gathered_.begin() + static_cast<std::ptrdiff_t>(before);
  gathered_.erase(std::remove_if(added, gathered_.end(), is_none), gathered_.end());
}

double Order::entropy() {
  const std::span<const float> values = logits();
  const Moments moments = weighted_moments(values, weights(inv_temperature_), reference_);
  const double mass = total();
  return std::log(mass) - static_cast<double>(inv_temperature_) * moments.first / mass;
}

float Order::typical_logit() {
  // -ln p = entropy, p = exp((logit - reference) / temperature) / total
  return static_cast<float>(static_cast<double>(reference_) +
                            static_cast<double>(temperature_) * (std::log(total()) - entropy()));
}

Spread Order::spread() {
  // At an infinite temperature every finite logit weighs the same.
  const std::span<const float> values = logits();
  const Moments moments = weighted_moments(values, weights(0.0f), reference_);
  const auto count = static_cast<double>(count_finite());
  const double offset = moments.first / count;
  const double variance = moments.second / count - offset * offset;
  return {static_cast<double>(reference_) + offset, std::sqrt(std::max(variance, 0.0))};
}

Candidate Order::at(std::size_t place) {
  if (place >= sorted_.size()) sort_head();
  return place < sorted_.size() ? sorted_[place] : ladder().at(place);
}

Order::Run Order::candidates() {
  const auto first = [this](std::size_t count) -> Prefix {
    return {mass_of_first(count), static_cast<double>(count)};
  };
  return {first(begin_), first(end_)};
}

double Order::mass_of_first(std::size_t count) {
  if (row_ == nullptr || count <= sorted_.size()) return sorted_mass()[count];
  weigh_row();
  return count == row_weights_.size() ? row_total_ : ladder().mass_of_first(count);
}

std::size_t Order::find(double target, Crossing crossing) {
  sort_head();
  const std::vector<double>& mass = sorted_mass();
  const auto crossed = std::partition_point(mass.begin() + 1, mass.end(), [&](double reached) {
    return !crosses(reached, target, crossing);
  });
  if (crossed == mass.end() && row_ != nullptr) return ladder().find(target, crossing);
  return static_cast<std::size_t>(crossed - mass.begin()) - 1;
}

const std::vector<double>& Order::sorted_mass() {
  if (!sorted_mass_.empty()) return sorted_mass_;
  sorted_weights_.resize(sorted_.size());
  for (std::size_t i = 0; i < sorted_.size(); ++i) sorted_weights_[i] = sorted_[i].logit;
  softmax_weights(sorted_weights_, reference_, inv_temperature_, sorted_weights_.data());
  sorted_mass_.assign(1, 0.0);
  for (const float weight : sorted_weights_) {
    sorted_mass_.push_back(sorted_mass_.back() + static_cast<double>(weight));
  }
  return sorted_mass_;
}

void Order::forget_masses() {
  sorted_mass_.clear();
  is_row_weighed_ = is_ladder_built_ = false;
}

void Order::sort_head() {
  if (row_ == nullptr || is_head_sorted_) return;
  is_head_sorted_ = true;
  row_->gather(row_->threshold_for(kHead), sorted_);
  if (sorted_.size() > kSortAll) sorted_.clear();
  sort_candidates(sorted_);
  sorted_mass_.clear();
}

void Order::weigh_row() {
  if (is_row_weighed_) return;
  is_row_weighed_ = true;
  row_weights_.resize(row_->values().size());
  row_total_ = softmax_weights(row_->values(), reference_, inv_temperature_, row_weights_.data());
}

Ladder& Order::ladder() {
  if (!is_ladder_built_) {
    weigh_row();
    ladder_.build(row_->values(), row_weights_, reference_, inv_temperature_);
    is_ladder_built_ = true;
  }
  return ladder_;
}

std::span<const float> Order::logits() {
  if (row_ != nullptr) return row_->values();
  sorted_values_.resize(size());
  for (std::size_t i = 0; i < size(); ++i) sorted_values_[i] = sorted_[begin_ + i].logit;
  return sorted_values_;
}

std::span<const float> Order::weights(float inv_temperature) {
  const std::span<const float> values = logits();
  const bool are_all = size() == values.size();
  if (row_ != nullptr && inv_temperature == inv_temperature_) {
    weigh_row();
    if (are_all) return row_weights_;
    candidate_weights_ = row_weights_;
  } else {
    candidate_weights_.resize(values.size());
    softmax_weights(values, reference_, inv_temperature, candidate_weights_.data());
    if (are_all) return candidate_weights_;
  }
  const Candidate first = at(begin_);
  const Candidate last = at(end_ - 1);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    const bool starts = (values[i] < first.logit) | ((values[i] == first.logit) & (id >= first.id));
    const bool ends = (values[i] > last.logit) | ((values[i] == last.logit) & (id <= last.id));
    candidate_weights_[i] = starts & ends ? candidate_weights_[i] : 0.0f;
  }
  return candidate_weights_;
}

std::size_t Order::count_from(float floor) {
  // No candidate is on the floor's rung or below.
  if (is_ladder_built_ && ladder_.before(ladder_.rung_of(floor)).size() >= end_) return size();
  const auto stop =
      std::partition_point(sorted_.begin(), sorted_.end(),
                           [=](const Candidate& candidate) { return candidate.logit >= floor; });
  auto count = static_cast<std::size_t>(stop - sorted_.begin());
  if (row_ != nullptr && stop == sorted_.end()) count = row_->count_from(floor);
  return std::clamp(count, begin_, end_) - begin_;
}

std::size_t Order::count_finite() { return count_from(std::numeric_limits<float>::lowest()); }

}  // namespace ryz
