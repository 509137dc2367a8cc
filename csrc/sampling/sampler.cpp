#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "base/error.h"
#include "sampling/logits.h"
#include "sampling/mass.h"
#include "sampling/philox.h"

namespace ryz {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Up to this many candidates, sorting costs less than a ladder over the row.
constexpr std::size_t kSortAll = 2048;
// Candidates tried before the ladder: a trained model rarely puts a draw beyond them.
constexpr std::size_t kHead = 512;

struct Scratch {
  std::vector<float> penalised;
  std::vector<std::uint64_t> seen;
  std::vector<float> weights;
  std::vector<Candidate> candidates;
  Logits logits;
  SortedMass sorted;
  LadderMass ladder;
};

void require(bool condition, const char* name, double value, const char* range) {
  if (condition) return;
  throw ValidationError(std::string("[sampler] ") + name + " is " + std::to_string(value) +
                        ", expected " + range);
}

void check_history(std::span<const std::int32_t> history, std::size_t vocab) {
  for (std::size_t i = 0; i < history.size(); ++i) {
    if (history[i] >= 0 && static_cast<std::size_t>(history[i]) < vocab) continue;
    throw ValidationError("[sample] history[" + std::to_string(i) + "] is " +
                          std::to_string(history[i]) + ", outside the vocabulary of " +
                          std::to_string(vocab));
  }
}

// Divides positive and multiplies negative logits of seen tokens, once per distinct token.
std::span<const float> penalise(std::span<const float> logits,
                                std::span<const std::int32_t> history, float penalty,
                                Scratch& scratch) {
  scratch.penalised.assign(logits.begin(), logits.end());
  scratch.seen.assign(logits.size() / 64 + 1, 0);
  for (const std::int32_t token : history) {
    const auto id = static_cast<std::size_t>(token);
    const std::uint64_t bit = std::uint64_t{1} << (id % 64);
    if ((scratch.seen[id / 64] & bit) != 0) continue;
    scratch.seen[id / 64] |= bit;
    float& logit = scratch.penalised[id];
    logit = logit > 0.0f ? logit / penalty : logit * penalty;
  }
  return scratch.penalised;
}

// One draw under the filters, from candidates whose mass is known.
class Draw {
 public:
  Draw(const SamplerParams& params, float max, double uniform)
      : top_p_(params.top_p), uniform_(uniform) {
    softmax_ = {max, std::min(1.0f / params.temperature, std::numeric_limits<float>::max())};
    // min-p keeps p >= min_p * p_max, that is logit >= max + T * ln(min_p): no softmax needed.
    if (params.min_p > 0.0) {
      const double floor = static_cast<double>(max) +
                           static_cast<double>(params.temperature) * std::log(params.min_p);
      floor_ = static_cast<float>(floor);
      if (static_cast<double>(floor_) < floor) floor_ = std::nextafter(floor_, kInfinity);
    }
  }

  Softmax softmax() const { return softmax_; }
  float floor() const { return floor_; }
  bool cuts_mass() const { return top_p_ < 1.0; }
  bool cuts_logits() const { return floor_ > -kInfinity; }

  // Whether from() needs no more of an order of mass `total` than its first `head`. Without top-p,
  // min-p must be off: it would ask for the mass down to its own cut.
  bool is_decided_by(double head, double total) const {
    return cuts_mass() ? top_p_ * total <= head : uniform_ * total < head;
  }

  // `mass` is what the filters before top-p left.
  template <typename Order>
  std::int32_t from(Order& order, double mass) const {
    if (cuts_mass()) mass = order.find(top_p_ * mass, Crossing::kReach).mass;
    if (cuts_logits()) mass = std::min(mass, order.mass_from(floor_));
    // Below the mass even when the product rounds up to it.
    const double target = std::min(uniform_ * mass, std::nextafter(mass, 0.0));
    return order.find(target, Crossing::kExceed).id;
  }

 private:
  Softmax softmax_{};
  float floor_ = -kInfinity;
  double top_p_;
  double uniform_;
};

std::int32_t draw_from_candidates(const Draw& draw, Scratch& scratch) {
  scratch.sorted.build(scratch.candidates, draw.softmax());
  return draw.from(scratch.sorted, scratch.sorted.total());
}

// Without top-k the candidates may be the whole vocabulary. Each step gives the same token as the
// last one would, at a lower price when the distribution is as narrow as a trained model's mostly
// is.
std::int32_t draw_from_row(const Draw& draw, Scratch& scratch) {
  const Logits& row = scratch.logits;
  const bool is_min_p_alone = draw.cuts_logits() && !draw.cuts_mass();
  if (is_min_p_alone) {
    row.gather(draw.floor(), scratch.candidates);
    if (scratch.candidates.size() <= kSortAll) return draw_from_candidates(draw, scratch);
  }
  const Softmax softmax = draw.softmax();
  scratch.weights.resize(row.values().size());
  const double total =
      softmax_weights(row.values(), softmax.max, softmax.inv_temperature, scratch.weights.data());
  if (!is_min_p_alone) {
    row.gather(row.threshold_for(kHead), scratch.candidates);
    if (scratch.candidates.size() <= kSortAll) {
      scratch.sorted.build(scratch.candidates, softmax);
      if (draw.is_decided_by(scratch.sorted.total(), total)) {
        return draw.from(scratch.sorted, total);
      }
    }
  }
  scratch.ladder.build(row, scratch.weights, softmax);
  return draw.from(scratch.ladder, total);
}

}  // namespace

Sampler::Sampler(const SamplerParams& params) : params_(params) {
  const auto in_range = [](double value, double low, double high) {
    return value >= low && value <= high;  // false for NaN
  };
  constexpr double kMax = std::numeric_limits<float>::max();
  const double temperature = static_cast<double>(params.temperature);
  const double penalty = static_cast<double>(params.repetition_penalty);
  require(in_range(temperature, 0.0, kMax), "temperature", temperature, "0 or more, and finite");
  require(params.top_k >= 0, "top_k", static_cast<double>(params.top_k), "0 (off) or more");
  require(params.top_p > 0.0 && params.top_p <= 1.0, "top_p", params.top_p, "in (0, 1]");
  require(in_range(params.min_p, 0.0, 1.0), "min_p", params.min_p, "in [0, 1]");
  require(penalty > 0.0 && penalty <= kMax, "repetition_penalty", penalty,
          "more than 0, and finite");
}

std::int32_t Sampler::sample(std::span<const float> logits, std::span<const std::int32_t> history,
                             std::int64_t position) const {
  if (logits.empty()) throw ValidationError("[sample] logits are empty");
  if (position < 0) {
    throw ValidationError("[sample] position is " + std::to_string(position) + ", expected >= 0");
  }
  check_history(history, logits.size());
  thread_local Scratch scratch;
  if (params_.repetition_penalty != 1.0f) {
    logits = penalise(logits, history, params_.repetition_penalty, scratch);
  }
  scratch.logits.scan(logits, "sample");
  if (params_.temperature == 0.0f) return scratch.logits.argmax();

  const Draw draw(params_, scratch.logits.max(),
                  uniform(params_.seed, static_cast<std::uint64_t>(position)));
  const auto top_k = static_cast<std::uint64_t>(params_.top_k);
  if (top_k == 0 || top_k >= logits.size()) return draw_from_row(draw, scratch);
  scratch.logits.top(static_cast<std::size_t>(top_k), scratch.candidates);
  return draw_from_candidates(draw, scratch);
}

}  // namespace ryz
