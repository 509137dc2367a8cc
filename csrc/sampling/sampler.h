// The sampling chain: biases and penalties on single logits, filters in the order that is asked
// for, then one draw.
//
// The draw inverts the cumulative mass in descending order of logit, ties by ascending id, so the
// token is a pure function of (seed, position, logits, history), under Mirostat of its state too.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sampling/filters.h"
#include "sampling/penalties.h"

namespace ryz {

struct Mirostat {
  bool is_on = false;
  double tau = 5.0;
  double eta = 0.1;
  std::optional<double> mu;  // to go on from; 2 tau where a text begins
};

struct SamplerParams {
  FilterParams filters;            // temperature 0: greedy, the lowest id on ties
  std::vector<std::string> order;  // names of filters, each once
  Mirostat mirostat;               // in place of every filter but temperature

  LogitBias logit_bias;
  BadWords bad_words;
  std::int64_t min_tokens = 0;         // so many generated tokens before
  std::vector<std::int32_t> stop_ids;  // one of these may be drawn
  std::int64_t prompt_length = 0;      // tokens of the history that were not generated
  RepetitionPenalties penalties;
  // Tokens at the end of the history that penalties look at, prompt included. -1: repetition at
  // all, frequency and presence at the generated ones.
  std::int64_t penalty_last_n = -1;
  DryPenalty dry;
  std::int64_t dry_last_n = -1;  // tokens at the end of the history, -1: all

  std::uint64_t seed = 0;
};

class Sampler {
 public:
  // Throws ValidationError on a parameter out of range.
  explicit Sampler(SamplerParams params);

  // Returns a token id. `history` is every token so far, prompt included; `position` numbers the
  // draws of one seed. Drawing again at the position of the last draw gives the same token. Throws
  // ValidationError on an id outside [0, V) and DistributionError when no distribution exists.
  // Scratch memory belongs to the calling thread.
  std::int32_t sample(std::span<const float> logits, std::span<const std::int32_t> history,
                      std::int64_t position);

  // As this one from here on, under another seed.
  Sampler fork(std::uint64_t seed) const;

  // Mirostat's bound on the surprise of the next token, in bits: the state of a sequence.
  double mu() const { return mu_; }

 private:
  bool edits_logits() const;
  void edit_logits(std::span<const std::int32_t> history, std::span<float> logits) const;

  SamplerParams params_;
  std::vector<const Filter*> chain_;
  double mu_;
  double drawn_mu_;                   // what mu_ was
  std::int64_t drawn_position_ = -1;  // at the last draw
};

}  // namespace ryz
