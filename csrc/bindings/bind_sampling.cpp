#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/numpy_view.h"
#include "sampling/sampler.h"
#include "sampling/scoring.h"

namespace py = pybind11;

namespace ryz {
namespace {

// What does nothing unless a parameter asks for it, in the order of transformers.
const std::vector<std::string> kOrder = {"temperature", "top_n_sigma", "top_k", "top_p",
                                         "min_p",       "typical_p",   "xtc"};

Sampler make_sampler(const std::vector<std::string>& order, float temperature, float dynatemp_range,
                     float dynatemp_exponent, double top_n_sigma, std::int64_t top_k,
                     double typical_p, double top_p, double min_p, double xtc_probability,
                     double xtc_threshold, std::int64_t min_keep, int mirostat, double mirostat_tau,
                     double mirostat_eta, std::optional<double> mirostat_mu,
                     const LogitBias& logit_bias, const BadWords& bad_words,
                     std::int64_t min_tokens, const std::vector<std::int32_t>& stop_ids,
                     std::int64_t prompt_length, float repetition_penalty, float frequency_penalty,
                     float presence_penalty, std::int64_t penalty_last_n, float dry_multiplier,
                     float dry_base, std::size_t dry_allowed_length,
                     std::int64_t dry_penalty_last_n, const std::vector<std::int32_t>& dry_breakers,
                     std::uint64_t seed) {
  if (mirostat != 0 && mirostat != 2) {
    throw ValidationError("[sampler] mirostat is " + std::to_string(mirostat) +
                          ", expected 0 (off) or 2");
  }
  SamplerParams params;
  params.filters = {
      temperature, dynatemp_range, dynatemp_exponent, top_n_sigma,   top_k,   typical_p,
      top_p,       min_p,          xtc_probability,   xtc_threshold, min_keep};
  params.order = order;
  params.mirostat = {mirostat == 2, mirostat_tau, mirostat_eta, mirostat_mu};
  params.logit_bias = logit_bias;
  params.bad_words = bad_words;
  params.min_tokens = min_tokens;
  params.stop_ids = stop_ids;
  params.prompt_length = prompt_length;
  params.penalties = {repetition_penalty, frequency_penalty, presence_penalty};
  params.penalty_last_n = penalty_last_n;
  params.dry = {dry_multiplier, dry_base, dry_allowed_length, dry_breakers};
  params.dry_last_n = dry_penalty_last_n;
  params.seed = seed;
  return Sampler(std::move(params));
}

std::int32_t sample(Sampler& sampler, const Array<float>& logits,
                    const Array<std::int32_t>& history, std::int64_t position) {
  const auto logits_view = view(logits, "logits");
  const auto history_view = view(history, "history");
  const py::gil_scoped_release release;
  return sampler.sample(logits_view, history_view, position);
}

std::pair<double, std::vector<std::pair<std::int32_t, double>>> bound_log_probs(
    const Array<float>& logits, std::int64_t token, std::int64_t top) {
  const auto logits_view = view(logits, "logits");
  const py::gil_scoped_release release;
  LogProbs result = log_probs(logits_view, token, top);
  return {result.chosen, std::move(result.top)};
}

Array<float> bound_score_rows(const Array<float>& logits, const Array<std::int32_t>& targets) {
  expect_ndim(logits, 2, "logits");
  const auto targets_view = view(targets, "targets");
  if (dim(logits, 0) != targets_view.size()) {
    throw ValidationError("[score_rows] logits has shape " + shape_text(logits) + ", targets " +
                          shape_text(targets) + ": expected one target per row");
  }
  const std::span<const float> logits_view{logits.data(), static_cast<std::size_t>(logits.size())};
  const std::size_t vocab = dim(logits, 1);
  Array<float> scores(targets.size());
  float* out = scores.mutable_data();
  {
    const py::gil_scoped_release release;
    score_rows(logits_view, vocab, targets_view, out);
  }
  return scores;
}

}  // namespace

void bind_sampling(py::module_& m) {
  const FilterParams filters;
  const DryPenalty dry;
  const Mirostat mirostat;
  py::class_<Sampler>(m, "Sampler")
      .def(py::init(&make_sampler), py::kw_only(), py::arg("order") = kOrder,
           py::arg("temperature") = filters.temperature,
           py::arg("dynatemp_range") = filters.dynatemp_range,
           py::arg("dynatemp_exponent") = filters.dynatemp_exponent,
           py::arg("top_n_sigma") = filters.top_n_sigma, py::arg("top_k") = filters.top_k,
           py::arg("typical_p") = filters.typical_p, py::arg("top_p") = filters.top_p,
           py::arg("min_p") = filters.min_p, py::arg("xtc_probability") = filters.xtc_probability,
           py::arg("xtc_threshold") = filters.xtc_threshold, py::arg("min_keep") = filters.min_keep,
           py::arg("mirostat") = 0, py::arg("mirostat_tau") = mirostat.tau,
           py::arg("mirostat_eta") = mirostat.eta, py::arg("mirostat_mu") = std::nullopt,
           py::arg("logit_bias") = LogitBias(), py::arg("bad_words") = BadWords(),
           py::arg("min_tokens") = 0, py::arg("stop_ids") = std::vector<std::int32_t>(),
           py::arg("prompt_length") = 0, py::arg("repetition_penalty") = 1.0f,
           py::arg("frequency_penalty") = 0.0f, py::arg("presence_penalty") = 0.0f,
           py::arg("penalty_last_n") = -1, py::arg("dry_multiplier") = dry.multiplier,
           py::arg("dry_base") = dry.base, py::arg("dry_allowed_length") = dry.allowed_length,
           py::arg("dry_penalty_last_n") = -1, py::arg("dry_breakers") = dry.breakers,
           py::arg("seed") = 0)
      .def("sample", &sample, py::arg("logits").noconvert(), py::arg("history").noconvert(),
           py::arg("position"))
      .def("fork", &Sampler::fork, py::arg("seed"))
      .def_property_readonly("mu", &Sampler::mu);
  m.def("log_probs", &bound_log_probs, py::arg("logits").noconvert(), py::arg("token"),
        py::arg("top"));
  m.def("score_rows", &bound_score_rows, py::arg("logits").noconvert(),
        py::arg("targets").noconvert());
}

}  // namespace ryz
