#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/numpy_view.h"
#include "model/decoder.h"

namespace py = pybind11;

namespace ryz {
namespace {

using OptionalVector = std::optional<Array<float>>;

std::vector<float> optional_vector(const OptionalVector& array, const char* name) {
  return array ? to_vector(*array, name) : std::vector<float>{};
}

std::shared_ptr<DenseMatrix> make_dense(const py::array& array) {
  auto matrix = std::make_shared<DenseMatrix>(dense_view(array, "array"));
  matrix->owner = keep(array);
  return matrix;
}

// What Python passes as a matrix: as Matrix, with the holders that pybind11 knows.
using AnyMatrix = std::variant<std::shared_ptr<TernaryMatrix>, std::shared_ptr<DenseMatrix>,
                               std::shared_ptr<GroupedMatrix>>;

Linear make_linear(const AnyMatrix& matrix, const OptionalVector& norm, float norm_eps,
                   const std::string& kernel, const OptionalVector& bias) {
  Linear linear{{}, optional_vector(norm, "norm"), norm_eps, kernel, optional_vector(bias, "bias")};
  std::visit([&](const auto& kind) { linear.matrix = kind; }, matrix);
  return linear;
}

LayerWeights make_layer(const Array<float>& input_norm, std::vector<Linear> attn_in, Linear o_proj,
                        const Array<float>& ffn_norm, std::vector<Linear> mlp_in, Linear down_proj,
                        const OptionalVector& q_norm, const OptionalVector& k_norm,
                        const OptionalVector& attn_sub_norm, const OptionalVector& attn_output_norm,
                        const OptionalVector& ffn_sub_norm, const OptionalVector& ffn_output_norm,
                        std::size_t sliding_window, std::size_t attention_sinks, std::size_t rope,
                        const std::shared_ptr<TernaryRows>& up_rows,
                        const std::shared_ptr<TernaryRows>& down_columns) {
  return {.input_norm = to_vector(input_norm, "input_norm"),
          .attn_in = std::move(attn_in),
          .q_norm = optional_vector(q_norm, "q_norm"),
          .k_norm = optional_vector(k_norm, "k_norm"),
          .sliding_window = sliding_window,
          .attention_sinks = attention_sinks,
          .rope = rope,
          .attn_sub_norm = optional_vector(attn_sub_norm, "attn_sub_norm"),
          .o_proj = std::move(o_proj),
          .attn_output_norm = optional_vector(attn_output_norm, "attn_output_norm"),
          .ffn_norm = to_vector(ffn_norm, "ffn_norm"),
          .mlp_in = std::move(mlp_in),
          .ffn_sub_norm = optional_vector(ffn_sub_norm, "ffn_sub_norm"),
          .down_proj = std::move(down_proj),
          .ffn_output_norm = optional_vector(ffn_output_norm, "ffn_output_norm"),
          .up_rows = up_rows,
          .down_columns = down_columns};
}

DecoderConfig make_config(std::size_t hidden_size, std::size_t num_heads, std::size_t num_kv_heads,
                          std::size_t head_dim, std::size_t intermediate_size,
                          std::size_t vocab_size, float rms_norm_eps, const std::string& activation,
                          const Array<double>& inv_freq,
                          const std::optional<Array<double>>& rope_attention_factors,
                          float embedding_scale, std::optional<float> attention_scale,
                          float attention_softcap, float final_softcap) {
  expect_ndim(inv_freq, 3, "inv_freq");
  const std::size_t ropes = dim(inv_freq, 1);
  return {
      .hidden_size = hidden_size,
      .num_heads = num_heads,
      .num_kv_heads = num_kv_heads,
      .head_dim = head_dim,
      .intermediate_size = intermediate_size,
      .vocab_size = vocab_size,
      .rms_norm_eps = rms_norm_eps,
      .activation = parse_activation(activation),
      .inv_freq = {inv_freq.data(), inv_freq.data() + inv_freq.size()},
      .ropes = ropes,
      .rope_sets = dim(inv_freq, 0),
      .rope_attention_factors = rope_attention_factors
                                    ? to_vector(*rope_attention_factors, "rope_attention_factors")
                                    : std::vector<double>(ropes, 1.0),
      .embedding_scale = embedding_scale,
      .attention_scale = attention_scale.value_or(1.0f / std::sqrt(static_cast<float>(head_dim))),
      .attention_softcap = attention_softcap,
      .final_softcap = final_softcap};
}

constexpr const char* kHeadKinds[] = {"dense", "exact", "int7",
                                      "int5",  "int8",  "int4"};  // as HeadKind counts

HeadKind parse_head_kind(const std::string& name) {
  for (std::size_t i = 0; i < std::size(kHeadKinds); ++i) {
    if (name == kHeadKinds[i]) return static_cast<HeadKind>(i);
  }
  throw ValidationError("[decoder] head_kind '" + name +
                        "' is not one of: dense, exact, int7, int5, int8, int4");
}

using Vocabulary = std::variant<std::shared_ptr<GroupedMatrix>, py::array>;

VocabularyMatrix vocabulary(const Vocabulary& matrix, const char* name) {
  if (const auto* grouped = std::get_if<std::shared_ptr<GroupedMatrix>>(&matrix)) {
    return VocabularyMatrix(*grouped);
  }
  return VocabularyMatrix(dense_view(std::get<py::array>(matrix), name));
}

std::unique_ptr<Decoder> make_decoder(const DecoderConfig& config, std::vector<LayerWeights> layers,
                                      const Vocabulary& embedding, const Array<float>& final_norm,
                                      const std::optional<Vocabulary>& lm_head,
                                      const std::string& head_kind,
                                      const std::optional<ArrayMap>& coded_head, int threads,
                                      const std::optional<std::string>& isa,
                                      std::size_t small_step) {
  const VocabularyMatrix table = vocabulary(embedding, "embedding");
  const VocabularyMatrix head = lm_head ? vocabulary(*lm_head, "lm_head") : table;
  return std::make_unique<Decoder>(
      config, std::move(layers), table, to_vector(final_norm, "final_norm"), head,
      parse_head_kind(head_kind), borrow(coded_head.value_or(ArrayMap{})), threads,
      resolve_isa(isa.value_or("")), small_step);
}

float* hidden_view(const std::optional<Array<float>>& hidden, const Decoder& decoder,
                   std::size_t tokens) {
  if (!hidden) return nullptr;
  expect_ndim(*hidden, 3, "hidden_states");
  if (dim(*hidden, 0) != decoder.num_layers() + 1 || dim(*hidden, 1) != tokens ||
      dim(*hidden, 2) != decoder.config().hidden_size) {
    throw ValidationError("[step] hidden_states has shape " + shape_text(*hidden) +
                          ", expected [layers + 1, tokens, hidden]");
  }
  Array<float> writable = *hidden;
  return writable.mutable_data();
}

std::vector<Screening> screenings(const std::optional<Array<std::int32_t>>& top,
                                  const std::optional<Array<float>>& margin,
                                  const std::vector<Array<std::int32_t>>& known) {
  if (top.has_value() != margin.has_value()) {
    throw ValidationError("[step] screen_top and screen_margin come together");
  }
  if (!top) return {};
  const auto tops = view(*top, "screen_top");
  const auto margins = view(*margin, "screen_margin");
  if (tops.size() != margins.size()) {
    throw ValidationError("[step] screen_top and screen_margin differ in length");
  }
  if (!known.empty() && known.size() != tops.size()) {
    throw ValidationError("[step] screen_known and screen_top differ in length");
  }
  std::vector<Screening> out;
  for (std::size_t i = 0; i < tops.size(); ++i) out.push_back({tops[i], margins[i], {}});
  for (std::size_t i = 0; i < known.size(); ++i) out[i].known = view(known[i], "screen_known");
  return out;
}

py::dict head_counters(const Decoder& decoder) {
  const LmHead::Counters counters = decoder.head().counters();
  py::dict out;
  out["full_rows"] = counters.full_rows;
  out["screened_rows"] = counters.screened_rows;
  out["survivors"] = counters.survivors;
  out["candidates"] = counters.candidates;
  out["fallback_rows"] = counters.fallback_rows;
  return out;
}

std::vector<py::dict> channel_counts(const Decoder& decoder) {
  std::vector<py::dict> out;
  const std::vector<LayerWeights>& layers = decoder.layers();
  for (const ChannelCounts& counts : decoder.channel_counts()) {
    py::dict layer;
    layer["channels"] = layers[out.size()].channels();
    layer["steps"] = counts.steps;
    layer["open_gates"] = counts.open_gates;
    layer["nonzero"] = counts.nonzero;
    out.push_back(std::move(layer));
  }
  return out;
}

py::dict weight_bytes(const Decoder& decoder) {
  py::dict out;
  out["linears"] = decoder.linear_bytes();
  std::size_t columns = 0;
  for (const LayerWeights& layer : decoder.layers()) {
    if (layer.down_columns != nullptr) columns += layer.down_columns->bytes();
  }
  out["down_columns"] = columns;
  out["head"] = decoder.head().bytes();
  out["screen"] = decoder.head().coded_bytes() - decoder.head().rest_bytes();
  out["screen_rest"] = decoder.head().rest_bytes();
  return out;
}

Array<float> step(Decoder& decoder, const Array<std::int32_t>& token_ids,
                  const Array<std::int32_t>& positions, const Array<std::int32_t>& seq_starts,
                  const Array<std::int32_t>& slots, const Array<std::int32_t>& block_tables,
                  const Array<std::int32_t>& logit_rows, PagedCache& cache,
                  const std::optional<Array<float>>& hidden_states,
                  const std::optional<Array<std::int32_t>>& screen_top,
                  const std::optional<Array<float>>& screen_margin,
                  const std::vector<Array<std::int32_t>>& screen_known,
                  const std::optional<Array<std::int32_t>>& rope_sets) {
  expect_ndim(block_tables, 2, "block_tables");
  const std::vector<Screening> screening = screenings(screen_top, screen_margin, screen_known);
  const StepBatch batch{
      view(token_ids, "token_ids"),
      view(positions, "positions"),
      view(seq_starts, "seq_starts"),
      view(slots, "slots"),
      {block_tables.data(), static_cast<std::size_t>(block_tables.size())},
      dim(block_tables, 1),
      view(logit_rows, "logit_rows"),
      screening,
      rope_sets ? view(*rope_sets, "rope_sets") : std::span<const std::int32_t>{}};
  float* hidden = hidden_view(hidden_states, decoder, batch.tokens());
  Array<float> logits({batch.logit_rows.size(), decoder.config().vocab_size});
  float* out = logits.mutable_data();
  {
    const py::gil_scoped_release release;
    decoder.step(batch, cache, out, hidden);
  }
  return logits;
}

void bind_weights(py::module_& m) {
  py::class_<DenseMatrix, std::shared_ptr<DenseMatrix>>(m, "DenseMatrix")
      .def(py::init(&make_dense), py::arg("array"))
      .def_property_readonly("out_features", [](const DenseMatrix& d) { return d.rows; })
      .def_property_readonly("in_features", [](const DenseMatrix& d) { return d.columns; })
      .def_property_readonly(
          "nbytes", [](const DenseMatrix& d) { return d.rows * d.columns * size_of(d.dtype); });
  py::class_<Linear>(m, "Linear")
      .def(py::init(&make_linear), py::arg("matrix").none(false),
           py::arg("norm").noconvert() = py::none(), py::arg("norm_eps") = 1e-6f,
           py::arg("kernel") = "", py::arg("bias").noconvert() = py::none())
      .def_property_readonly("matrix", [](const Linear& linear) { return linear.matrix; });
  py::class_<LayerWeights>(m, "LayerWeights")
      .def(py::init(&make_layer), py::kw_only(), py::arg("input_norm").noconvert(),
           py::arg("attn_in"), py::arg("o_proj"), py::arg("ffn_norm").noconvert(),
           py::arg("mlp_in"), py::arg("down_proj"), py::arg("q_norm").noconvert() = py::none(),
           py::arg("k_norm").noconvert() = py::none(),
           py::arg("attn_sub_norm").noconvert() = py::none(),
           py::arg("attn_output_norm").noconvert() = py::none(),
           py::arg("ffn_sub_norm").noconvert() = py::none(),
           py::arg("ffn_output_norm").noconvert() = py::none(), py::arg("sliding_window") = 0,
           py::arg("attention_sinks") = 0, py::arg("rope") = 0, py::arg("up_rows") = py::none(),
           py::arg("down_columns") = py::none());
  py::class_<DecoderConfig>(m, "DecoderConfig")
      .def(py::init(&make_config), py::kw_only(), py::arg("hidden_size"), py::arg("num_heads"),
           py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("intermediate_size"),
           py::arg("vocab_size"), py::arg("rms_norm_eps"), py::arg("activation"),
           py::arg("inv_freq").noconvert(),
           py::arg("rope_attention_factors").noconvert() = py::none(),
           py::arg("embedding_scale") = 1.0f, py::arg("attention_scale") = py::none(),
           py::arg("attention_softcap") = 0.0f, py::arg("final_softcap") = 0.0f);
}

}  // namespace

void bind_model(py::module_& m) {
  bind_weights(m);
  // The decoder reads embedding and head in place: keep_alive ties them to it.
  py::class_<Decoder>(m, "Decoder")
      .def(py::init(&make_decoder), py::arg("config"), py::arg("layers"),
           py::arg("embedding").none(false), py::arg("final_norm").noconvert(),
           py::arg("lm_head") = py::none(), py::kw_only(), py::arg("head_kind") = "dense",
           py::arg("coded_head").noconvert() = py::none(), py::arg("threads") = 1,
           py::arg("isa") = py::none(), py::arg("small_step") = std::size_t{1} << 24,
           py::keep_alive<1, 4>(), py::keep_alive<1, 6>())
      .def_property_readonly("isa", [](const Decoder& d) { return isa_name(d.isa()); })
      .def_property_readonly("threads", &Decoder::threads)
      .def_property_readonly(
          "head_kind",
          [](const Decoder& d) { return kHeadKinds[static_cast<std::size_t>(d.head().kind())]; })
      .def_property_readonly("multiplications_per_token", &Decoder::multiplications_per_token)
      .def("step", &step, py::arg("token_ids").noconvert(), py::arg("positions").noconvert(),
           py::arg("seq_starts").noconvert(), py::arg("slots").noconvert(),
           py::arg("block_tables").noconvert(), py::arg("logit_rows").noconvert(), py::arg("cache"),
           py::arg("hidden_states").noconvert() = py::none(),
           py::arg("screen_top").noconvert() = py::none(),
           py::arg("screen_margin").noconvert() = py::none(),
           py::arg("screen_known").noconvert() = py::list(),
           py::arg("rope_sets").noconvert() = py::none())
      .def("head_counters", &head_counters)
      .def("channel_counts", &channel_counts)
      .def("coded_head_arrays",
           [](const py::object& self) {
             return array_views(self.cast<Decoder&>().coded_head_buffers(), self);
           })
      .def("weight_bytes", &weight_bytes);
}

}  // namespace ryz
