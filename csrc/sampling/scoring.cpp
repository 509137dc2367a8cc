#include "sampling/scoring.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "sampling/logits.h"

namespace ryz {
namespace {

struct Scratch {
  Logits logits;
  std::vector<float> weights;
};

Scratch& scratch() {
  thread_local Scratch instance;
  return instance;
}

void check_token(std::int64_t token, std::size_t vocab, const std::string& name) {
  if (token >= 0 && static_cast<std::uint64_t>(token) < vocab) return;
  throw ValidationError(name + " is " + std::to_string(token) + ", outside the vocabulary of " +
                        std::to_string(vocab));
}

// log sum exp(values), relative to nothing: subtract it from a logit.
double log_normaliser(const Logits& logits, std::vector<float>& weights) {
  weights.resize(logits.values().size());
  const double total = softmax_weights(logits.values(), logits.max(), 1.0f, weights.data());
  return static_cast<double>(logits.max()) + std::log(total);
}

}  // namespace

LogProbs log_probs(std::span<const float> logits, std::int64_t token, std::int64_t top) {
  check_token(token, logits.size(), "[log_probs] token");
  if (top < 0 || static_cast<std::uint64_t>(top) > logits.size()) {
    throw ValidationError("[log_probs] top is " + std::to_string(top) + ", expected 0 to " +
                          std::to_string(logits.size()));
  }
  auto& [row, weights] = scratch();
  row.scan(logits, "log_probs");
  const double normaliser = log_normaliser(row, weights);
  LogProbs result;
  result.chosen = static_cast<double>(logits[static_cast<std::size_t>(token)]) - normaliser;
  if (top == 0) return result;
  std::vector<Candidate> best;
  row.top(static_cast<std::size_t>(top), best);
  std::sort(best.begin(), best.end(), precedes);
  for (const Candidate& candidate : best) {
    result.top.emplace_back(candidate.id, static_cast<double>(candidate.logit) - normaliser);
  }
  return result;
}

void score_rows(std::span<const float> logits, std::size_t vocab,
                std::span<const std::int32_t> targets, float* out) {
  auto& [row, weights] = scratch();
  for (std::size_t r = 0; r < targets.size(); ++r) {
    const std::string name = "[score_rows] targets[" + std::to_string(r) + "]";
    check_token(targets[r], vocab, name);
    const std::span<const float> values = logits.subspan(r * vocab, vocab);
    row.scan(values, "score_rows");
    const double logit = static_cast<double>(values[static_cast<std::size_t>(targets[r])]);
    out[r] = static_cast<float>(logit - log_normaliser(row, weights));
  }
}

}  // namespace ryz
