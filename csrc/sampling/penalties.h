// Changes to single logits that come before every filter: biases, bans, and penalties for what the
// text so far holds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace ryz {

// Added to logits, -inf included, whatever the text.
using LogitBias = std::vector<std::pair<std::int32_t, float>>;

// Words that generated text must not hold, as token ids: the last one of a word is banned where
// the others are the end of the text.
using BadWords = std::vector<std::vector<std::int32_t>>;

void ban_words(const BadWords& words, std::span<const std::int32_t> generated,
               std::span<float> logits);

struct RepetitionPenalties {
  float repetition = 1.0f;
  float frequency = 0.0f;
  float presence = 0.0f;

  bool is_active() const { return repetition != 1.0f || frequency != 0.0f || presence != 0.0f; }
};

// For each distinct token: l = l > 0 ? l / repetition : l * repetition if it is among `seen`,
// then l -= count * frequency + (count > 0) * presence, count being that among `counted`.
void penalise(const RepetitionPenalties& penalties, std::span<const std::int32_t> seen,
              std::span<const std::int32_t> counted, std::span<float> logits);

// DRY, "don't repeat yourself" (text-generation-webui#5677): where the end of the text, n tokens
// long, stood before, the token that followed it there loses
// multiplier * base^(n - allowed_length), the longest such n counting, if n >= allowed_length. No
// repeat reaches back over a breaker, and breakers are not penalised.
struct DryPenalty {
  float multiplier = 0.0f;
  float base = 1.75f;
  std::size_t allowed_length = 2;
  std::vector<std::int32_t> breakers;  // ascending

  bool is_active() const { return multiplier > 0.0f; }
};

void penalise_repeats(const DryPenalty& dry, std::span<const std::int32_t> text,
                      std::span<float> logits);

}  // namespace ryz
