// Log-probabilities of the unfiltered distribution, log softmax(logits).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace ryz {

struct LogProbs {
  double chosen;
  std::vector<std::pair<std::int32_t, double>> top;  // descending, ties by ascending id
};

// The log-probability of `token` and of the `top` most likely ones. Absolute error below 1e-6.
// Throws ValidationError on a token or a count outside [0, V), DistributionError as Sampler does.
LogProbs log_probs(std::span<const float> logits, std::int64_t token, std::int64_t top);

// out[r] = log_probs(logits[r * vocab, ...], targets[r]), for targets.size() rows.
void score_rows(std::span<const float> logits, std::size_t vocab,
                std::span<const std::int32_t> targets, float* out);

}  // namespace ryz
