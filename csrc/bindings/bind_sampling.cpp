#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/numpy_view.h"
#include "sampling/sampler.h"
#include "sampling/scoring.h"

namespace py = pybind11;

namespace ryz {
namespace {

std::int32_t sample(const Sampler& sampler, const Array<float>& logits,
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
  py::class_<Sampler>(m, "Sampler")
      .def(py::init([](float temperature, std::int64_t top_k, double top_p, double min_p,
                       float repetition_penalty, std::uint64_t seed) {
             return Sampler({temperature, top_k, top_p, min_p, repetition_penalty, seed});
           }),
           py::kw_only(), py::arg("temperature") = 1.0f, py::arg("top_k") = 0,
           py::arg("top_p") = 1.0, py::arg("min_p") = 0.0, py::arg("repetition_penalty") = 1.0f,
           py::arg("seed") = 0)
      .def("sample", &sample, py::arg("logits").noconvert(), py::arg("history").noconvert(),
           py::arg("position"));
  m.def("log_probs", &bound_log_probs, py::arg("logits").noconvert(), py::arg("token"),
        py::arg("top"));
  m.def("score_rows", &bound_score_rows, py::arg("logits").noconvert(),
        py::arg("targets").noconvert());
}

}  // namespace ryz
