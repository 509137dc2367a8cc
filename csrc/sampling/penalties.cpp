#include "sampling/penalties.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ryz {
namespace {

// For each k in 1..n-1: how long a common end the text and the text without its last k tokens
// have (the Z function of the reversed text), at most `limit`. Linear: a window of what is known to
// match moves towards the beginning.
void common_ends(std::span<const std::int32_t> text, std::size_t limit,
                 std::vector<std::size_t>& lengths) {
  const std::size_t n = text.size();
  lengths.assign(n, 0);
  const auto from_end = [&](std::size_t i) { return text[n - 1 - i]; };
  std::size_t left = 0;
  std::size_t right = 0;  // the window is [left, right)
  for (std::size_t k = 1; k < n; ++k) {
    std::size_t length = k < right ? std::min(lengths[k - left], right - k) : 0;
    while (k + length < n && from_end(length) == from_end(k + length)) ++length;
    lengths[k] = length;
    if (k + length > right) {
      left = k;
      right = k + length;
    }
  }
  for (std::size_t& length : lengths) length = std::min(length, limit);
}

// Of a breaker's tokens none is penalised, and none before it counts.
bool breaks(const DryPenalty& dry, std::int32_t token) {
  return std::binary_search(dry.breakers.begin(), dry.breakers.end(), token);
}

}  // namespace

void ban_words(const BadWords& words, std::span<const std::int32_t> generated,
               std::span<float> logits) {
  for (const std::vector<std::int32_t>& word : words) {
    const std::size_t before = word.size() - 1;
    if (before > generated.size()) continue;
    const auto end = generated.last(before);
    if (!std::equal(end.begin(), end.end(), word.begin())) continue;
    logits[static_cast<std::size_t>(word.back())] = -std::numeric_limits<float>::infinity();
  }
}

void penalise(const RepetitionPenalties& penalties, std::span<const std::int32_t> seen,
              std::span<const std::int32_t> counted, std::span<float> logits) {
  // Zero between calls: only what was touched is cleared.
  struct Tally {
    std::uint32_t count = 0;
    bool seen = false;
  };
  thread_local std::vector<Tally> tallies;
  if (tallies.size() < logits.size()) tallies.resize(logits.size());
  for (const std::int32_t token : seen) tallies[static_cast<std::size_t>(token)].seen = true;
  for (const std::int32_t token : counted) ++tallies[static_cast<std::size_t>(token)].count;
  const auto settle = [&](std::int32_t token) {
    Tally& tally = tallies[static_cast<std::size_t>(token)];
    float& logit = logits[static_cast<std::size_t>(token)];
    if (tally.seen)
      logit = logit > 0.0f ? logit / penalties.repetition : logit * penalties.repetition;
    if (tally.count > 0) {
      logit -= static_cast<float>(tally.count) * penalties.frequency + penalties.presence;
    }
    tally = {};
  };
  for (const std::int32_t token : seen) settle(token);
  for (const std::int32_t token : counted) settle(token);
}

void penalise_repeats(const DryPenalty& dry, std::span<const std::int32_t> text,
                      std::span<float> logits) {
  const auto last_breaker = std::find_if(text.rbegin(), text.rend(),
                                         [&](std::int32_t token) { return breaks(dry, token); });
  const auto limit = static_cast<std::size_t>(last_breaker - text.rbegin());
  if (limit < dry.allowed_length) return;
  thread_local std::vector<std::size_t> lengths;
  common_ends(text, limit, lengths);
  // The longest repeat that each token would go on with; a few tokens mostly.
  thread_local std::vector<std::pair<std::int32_t, std::size_t>> repeats;
  repeats.clear();
  for (std::size_t k = 1; k < text.size(); ++k) {
    const std::int32_t next = text[text.size() - k];
    if (lengths[k] >= dry.allowed_length && !breaks(dry, next))
      repeats.emplace_back(next, lengths[k]);
  }
  std::sort(repeats.begin(), repeats.end());
  for (std::size_t i = 0; i < repeats.size(); ++i) {
    const auto [token, length] = repeats[i];
    if (i + 1 < repeats.size() && repeats[i + 1].first == token) continue;
    // Clamped to what a float holds, or a long repeat would turn a logit into -inf.
    const double penalty =
        static_cast<double>(dry.multiplier) *
        std::pow(static_cast<double>(dry.base), static_cast<double>(length - dry.allowed_length));
    constexpr double kMost = std::numeric_limits<float>::max() / 4;
    logits[static_cast<std::size_t>(token)] -= static_cast<float>(std::min(penalty, kMost));
  }
}

}  // namespace ryz
