// The sampling chain: repetition penalty, temperature, top-k, top-p, min-p, then one draw.
//
// The order and the meaning of each filter are those of Hugging Face transformers; top-p and the
// draw renormalise over what the filters before them left. All three filters keep a prefix of the
// order "descending logit, ties by ascending id", and the draw inverts the cumulative mass in that
// order, so the token is a pure function of (seed, position, logits, history).
#pragma once

#include <cstdint>
#include <span>

namespace ryz {

struct SamplerParams {
  float temperature = 1.0f;         // 0: greedy, the lowest id on ties
  std::int64_t top_k = 0;           // 0: off
  double top_p = 1.0;               // 1: off
  double min_p = 0.0;               // 0: off
  float repetition_penalty = 1.0f;  // 1: off
  std::uint64_t seed = 0;
};

class Sampler {
 public:
  // Throws ValidationError on a parameter out of range.
  explicit Sampler(const SamplerParams& params);

  // Returns a token id. `history` is every token so far, prompt included; `position` numbers the
  // draws of one seed. Throws ValidationError on an id outside [0, V) and DistributionError when no
  // distribution exists. Scratch memory belongs to the calling thread.
  std::int32_t sample(std::span<const float> logits, std::span<const std::int32_t> history,
                      std::int64_t position) const;

 private:
  SamplerParams params_;
};

}  // namespace ryz
