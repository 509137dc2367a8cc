#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

#include "base/error.h"
#include "sampling/logits.h"
#include "sampling/order.h"
#include "sampling/philox.h"

namespace ryz {
namespace {

struct Scratch {
  std::vector<float> edited;
  Logits logits;
  Order order;
};

void require(bool condition, const char* name, double value, const char* range) {
  if (condition) return;
  throw ValidationError(std::string("[sampler] ") + name + " is " + std::to_string(value) +
                        ", expected " + range);
}

// False for NaN.
bool in_range(double value, double low, double high) { return value >= low && value <= high; }

constexpr double kMax = std::numeric_limits<float>::max();

void check_filters(const FilterParams& p) {
  const auto wide = [](auto value) { return static_cast<double>(value); };
  const char* finite = "0 or more, and finite";
  require(in_range(wide(p.temperature), 0.0, kMax), "temperature", wide(p.temperature), finite);
  require(in_range(wide(p.dynatemp_range), 0.0, kMax), "dynatemp_range", wide(p.dynatemp_range),
          finite);
  require(in_range(wide(p.dynatemp_exponent), 0.0, kMax), "dynatemp_exponent",
          wide(p.dynatemp_exponent), finite);
  require(in_range(p.top_n_sigma, 0.0, kMax), "top_n_sigma", p.top_n_sigma, finite);
  require(p.top_k >= 0, "top_k", wide(p.top_k), "0 (off) or more");
  require(p.typical_p > 0.0 && p.typical_p <= 1.0, "typical_p", p.typical_p, "in (0, 1]");
  require(p.top_p > 0.0 && p.top_p <= 1.0, "top_p", p.top_p, "in (0, 1]");
  require(in_range(p.min_p, 0.0, 1.0), "min_p", p.min_p, "in [0, 1]");
  require(in_range(p.xtc_probability, 0.0, 1.0), "xtc_probability", p.xtc_probability, "in [0, 1]");
  require(p.xtc_threshold > 0.0 && p.xtc_threshold <= 1.0, "xtc_threshold", p.xtc_threshold,
          "in (0, 1]");
  require(p.min_keep >= 1, "min_keep", wide(p.min_keep), "1 or more");
}

void check_edits(const SamplerParams& p) {
  const auto wide = [](auto value) { return static_cast<double>(value); };
  const double repetition = wide(p.penalties.repetition);
  require(repetition > 0.0 && repetition <= kMax, "repetition_penalty", repetition,
          "more than 0, and finite");
  for (const auto& [name, penalty] : {std::pair{"frequency_penalty", p.penalties.frequency},
                                      std::pair{"presence_penalty", p.penalties.presence}}) {
    require(in_range(wide(penalty), -kMax, kMax), name, wide(penalty), "a finite number");
  }
  require(p.penalty_last_n >= -1, "penalty_last_n", wide(p.penalty_last_n), "-1 (all) or more");
  require(in_range(wide(p.dry.multiplier), 0.0, kMax), "dry_multiplier", wide(p.dry.multiplier),
          "0 or more, and finite");
  require(in_range(wide(p.dry.base), 1.0, kMax), "dry_base", wide(p.dry.base),
          "1 or more, and finite");
  require(p.dry.allowed_length >= 1, "dry_allowed_length", wide(p.dry.allowed_length), "1 or more");
  require(p.dry_last_n >= -1, "dry_penalty_last_n", wide(p.dry_last_n), "-1 (all) or more");
  require(p.min_tokens >= 0, "min_tokens", wide(p.min_tokens), "0 or more");
  require(p.prompt_length >= 0, "prompt_length", wide(p.prompt_length), "0 or more");
  for (const auto& [token, bias] : p.logit_bias) {
    require(bias <= std::numeric_limits<float>::max(), "logit_bias", wide(bias),
            "a finite number or -inf");
  }
  for (const auto& word : p.bad_words) {
    require(!word.empty(), "the length of a bad word", 0, "1 token or more");
  }
}

void check_tokens(std::span<const std::int32_t> tokens, std::size_t vocab, const char* name) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && static_cast<std::size_t>(tokens[i]) < vocab) continue;
    throw ValidationError(std::string("[sample] ") + name + "[" + std::to_string(i) + "] is " +
                          std::to_string(tokens[i]) + ", outside the vocabulary of " +
                          std::to_string(vocab));
  }
}

std::span<const std::int32_t> last(std::span<const std::int32_t> tokens, std::int64_t count) {
  if (count < 0) return tokens;
  return tokens.last(std::min(tokens.size(), static_cast<std::size_t>(count)));
}

}  // namespace

Sampler::Sampler(SamplerParams params)
    : params_(std::move(params)),
      mu_(params_.mirostat.mu.value_or(2.0 * params_.mirostat.tau)),
      drawn_mu_(mu_) {
  check_filters(params_.filters);
  check_edits(params_);
  const Mirostat& mirostat = params_.mirostat;
  require(in_range(mirostat.tau, 0.0, kMax), "mirostat_tau", mirostat.tau, "0 or more, and finite");
  require(in_range(mirostat.eta, 0.0, kMax), "mirostat_eta", mirostat.eta, "0 or more, and finite");
  require(std::isfinite(mu_), "mirostat_mu", mu_, "a finite number");
  std::sort(params_.dry.breakers.begin(), params_.dry.breakers.end());
  const std::vector<std::string>& order = params_.order;
  for (auto name = order.begin(); name != order.end(); ++name) {
    if (std::find(order.begin(), name, *name) != name) {
      throw ValidationError("[sampler] order has '" + *name + "' twice");
    }
    const Filter& filter = find_filter(*name);
    if (filter.is_active(params_.filters)) chain_.push_back(&filter);
  }
}

std::int32_t Sampler::sample(std::span<const float> logits, std::span<const std::int32_t> history,
                             std::int64_t position) {
  if (logits.empty()) throw ValidationError("[sample] logits are empty");
  if (position < 0) {
    throw ValidationError("[sample] position is " + std::to_string(position) + ", expected >= 0");
  }
  check_tokens(history, logits.size(), "history");
  thread_local Scratch scratch;
  if (edits_logits()) {
    scratch.edited.assign(logits.begin(), logits.end());
    edit_logits(history, scratch.edited);
    logits = scratch.edited;
  }
  scratch.logits.scan(logits, "sample");
  if (params_.filters.temperature == 0.0f) return scratch.logits.argmax();

  const Draws draws(params_.seed, static_cast<std::uint64_t>(position));
  scratch.order.start(scratch.logits);
  for (const Filter* filter : chain_) filter->apply(params_.filters, draws, scratch.order);
  if (!params_.mirostat.is_on) return scratch.order.draw(draws.uniform(Draw::kToken)).id;
  if (position != drawn_position_) drawn_mu_ = mu_;
  drawn_position_ = position;
  mu_ = drawn_mu_;
  return draw_mirostat(scratch.order, draws, params_.mirostat.tau, params_.mirostat.eta, mu_);
}

Sampler Sampler::fork(std::uint64_t seed) const {
  Sampler copy = *this;
  copy.params_.seed = seed;
  return copy;
}

bool Sampler::edits_logits() const {
  return params_.penalties.is_active() || params_.dry.is_active() || !params_.logit_bias.empty() ||
         !params_.bad_words.empty() || params_.min_tokens > 0;
}

void Sampler::edit_logits(std::span<const std::int32_t> history, std::span<float> logits) const {
  const std::size_t vocab = logits.size();
  for (const auto& [token, bias] : params_.logit_bias) {
    check_tokens({&token, 1}, vocab, "logit_bias");
    logits[static_cast<std::size_t>(token)] += bias;
  }
  const auto prompt_length = static_cast<std::size_t>(params_.prompt_length);
  const auto generated = history.subspan(std::min(prompt_length, history.size()));
  for (const auto& word : params_.bad_words) check_tokens(word, vocab, "bad_words");
  ban_words(params_.bad_words, generated, logits);
  if (generated.size() < static_cast<std::size_t>(params_.min_tokens)) {
    check_tokens(params_.stop_ids, vocab, "stop_ids");
    for (const std::int32_t token : params_.stop_ids) {
      logits[static_cast<std::size_t>(token)] = -std::numeric_limits<float>::infinity();
    }
  }
  if (params_.penalties.is_active()) {
    const auto seen = last(history, params_.penalty_last_n);
    penalise(params_.penalties, seen, params_.penalty_last_n < 0 ? generated : seen, logits);
  }
  if (params_.dry.is_active()) {
    penalise_repeats(params_.dry, last(history, params_.dry_last_n), logits);
  }
}

}  // namespace ryz
