// Single kernels under a forced tier. Outputs are caller's arrays, so that tests can put them at
// odd addresses between guard bytes.
#include <pybind11/stl.h>

#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/numpy_view.h"
#include "kernels/dispatch.h"
#include "kernels/lookup_format.h"
#include "kv/paged_cache.h"
#include "quant/grouped_matrix.h"
#include "quant/screen.h"
#include "quant/ternary_rows.h"

namespace py = pybind11;

namespace ryz {
namespace {

using Floats = Array<float>;

const KernelTable& table(const std::string& isa) { return kernel_table(resolve_isa(isa)); }

void expect_size(const py::array& array, std::size_t size, const char* name) {
  if (static_cast<std::size_t>(array.size()) != size) {
    throw ValidationError(std::string("[ops] ") + name + " has " + std::to_string(array.size()) +
                          " elements, expected " + std::to_string(size));
  }
}

void rms_norm(const std::string& isa, const Floats& x, const Floats& gain, float eps, Floats out,
              const std::optional<Floats>& residual) {
  const auto k = static_cast<std::size_t>(x.size());
  expect_size(gain, k, "gain");
  expect_size(out, k, "out");
  if (residual) expect_size(*residual, k, "residual");
  table(isa).rms_norm(
      {x.data(), gain.data(), eps, k, out.mutable_data(), residual ? residual->data() : nullptr});
}

// Scale and sum are filled in by the op.
QuantizeArgs quantize_args(const Floats& x, const std::optional<Floats>& gain, float eps,
                           std::optional<std::size_t> mean_count, Array<std::int8_t>& q,
                           float& scale, std::int32_t& sum) {
  const auto k = static_cast<std::size_t>(x.size());
  const auto k_padded = static_cast<std::size_t>(q.size());
  if (k_padded < k || k_padded % 16 != 0) {
    throw ValidationError("[ops] q must hold x and be a multiple of 16 long");
  }
  if (gain) expect_size(*gain, k, "gain");
  return {x.data(),
          k,
          k_padded,
          gain ? gain->data() : nullptr,
          eps,
          mean_count.value_or(k),
          q.mutable_data(),
          &scale,
          &sum};
}

py::tuple quantize(const std::string& isa, const Floats& x, Array<std::int8_t> q,
                   const std::optional<Floats>& gain, float eps,
                   std::optional<std::size_t> mean_count) {
  float scale = 0.0f;
  std::int32_t sum = 0;
  table(isa).quantize(quantize_args(x, gain, eps, mean_count, q, scale, sum));
  return py::make_tuple(scale, sum);
}

void ternary_linear(const std::string& isa, const TernaryMatrix& matrix,
                    const Array<std::int8_t>& q, const Floats& act_scale,
                    const Array<std::int32_t>& act_sum, Floats out,
                    const std::optional<Floats>& residual, const std::string& kernel) {
  expect_ndim(q, 2, "q");
  const std::size_t tokens = dim(q, 0);
  if (dim(q, 1) < matrix.blocks() * block_columns(matrix.format())) {
    throw ValidationError("[ops] q rows must be padded with zeros to whole blocks");
  }
  expect_size(act_scale, tokens, "act_scale");
  expect_size(act_sum, tokens, "act_sum");
  expect_size(out, tokens * matrix.out_features(), "out");
  if (residual) expect_size(*residual, tokens * matrix.out_features(), "residual");
  const TernaryKernel& op = ternary_kernel(resolve_isa(isa), matrix.format(), kernel);
  op.linear({matrix.packed(), matrix.row_scale(), matrix.out_features(), matrix.blocks(), 0,
             matrix.panels(), q.data(), dim(q, 1), act_scale.data(), act_sum.data(), tokens,
             out.mutable_data(), matrix.out_features(), residual ? residual->data() : nullptr});
}

// An ActivationBlock as four dwords; the first is the scale's bits.
using Blocks = Array<std::int32_t>;

void expect_blocks(const Array<std::int8_t>& q, const Blocks& blocks, std::size_t tokens) {
  expect_ndim(q, 3, "q");
  expect_ndim(blocks, 3, "blocks");
  if (dim(q, 1) != tokens || dim(q, 2) != kScaleBlock) {
    throw ValidationError("[ops] q must be [blocks, tokens, 32]");
  }
  expect_size(blocks, dim(q, 0) * tokens * 4, "blocks");
}

void quantize_blocks(const std::string& isa, const Floats& x, Array<std::int8_t> q, Blocks blocks,
                     const std::optional<Floats>& gain, float eps) {
  expect_ndim(x, 2, "x");
  const std::size_t tokens = dim(x, 0), k = dim(x, 1);
  expect_blocks(q, blocks, tokens);
  if (dim(q, 0) * kScaleBlock < k) throw ValidationError("[ops] q must hold x");
  if (gain) expect_size(*gain, k, "gain");
  auto* out = reinterpret_cast<ActivationBlock*>(blocks.mutable_data());
  for (std::size_t t = 0; t < tokens; ++t) {
    table(isa).quantize_blocks({x.data() + t * k, k, dim(q, 0), gain ? gain->data() : nullptr, eps,
                                q.mutable_data() + t * kScaleBlock, out + t, tokens});
  }
}

void grouped_linear(const std::string& isa, const GroupedMatrix& matrix,
                    const Array<std::int8_t>& q, const Blocks& blocks, Floats out,
                    const std::optional<Floats>& residual, const std::string& name) {
  expect_ndim(out, 2, "out");
  const std::size_t tokens = dim(out, 0);
  expect_blocks(q, blocks, tokens);
  const Isa tier = resolve_isa(isa);
  const GroupedKernel& kernel = grouped_kernel(tier, matrix.format().bits, name);
  if (dim(q, 0) < matrix.blocks()) {
    throw ValidationError("[ops] q must be padded with zeros to whole records");
  }
  expect_size(out, tokens * matrix.out_features(), "out");
  if (residual) expect_size(*residual, tokens * matrix.out_features(), "residual");
  GroupedLinearArgs args{matrix.packed(),
                         matrix.format(),
                         matrix.out_features(),
                         matrix.records(),
                         0,
                         matrix.panels(),
                         q.data(),
                         reinterpret_cast<const ActivationBlock*>(blocks.data()),
                         tokens,
                         tokens,
                         out.mutable_data(),
                         matrix.out_features(),
                         residual ? residual->data() : nullptr};
  Buffer tables;
  if (kernel.reads_tables) {
    if (tokens != 1) throw ValidationError("[ops] a kernel that looks up takes one token");
    tables = Buffer(matrix.blocks() * block_table_bytes(matrix.format().bits), "tables");
    kernel_table(tier).lookup_tables(
        {q.data(), matrix.blocks(), matrix.format(), tables.as<std::uint8_t>()});
    args.tables = tables.as<std::uint8_t>();
  }
  kernel.linear(args);
}

Array<std::int32_t> first_of(const std::vector<std::int32_t>& selected, std::size_t count) {
  return Array<std::int32_t>(static_cast<py::ssize_t>(count), selected.data());
}

Array<std::int32_t> select_gates(const std::string& isa, const Floats& gate, std::size_t begin,
                                 std::size_t end) {
  if (begin > end || end > static_cast<std::size_t>(gate.size())) {
    throw ValidationError("[ops] begin..end is not within gate");
  }
  std::vector<std::int32_t> selected(end - begin + kSelectSlack);
  std::size_t count = 0;
  table(isa).select_gates({gate.data(), begin, end, selected.data(), &count});
  return first_of(selected, count);
}

Array<std::int32_t> select_nonzero(const std::string& isa, const Array<std::int8_t>& q) {
  const auto n = static_cast<std::size_t>(q.size());
  if (n % kSelectSlack != 0) throw ValidationError("[ops] q must be a multiple of 16 long");
  std::vector<std::int32_t> selected(n + kSelectSlack);
  std::size_t count = 0;
  table(isa).select_nonzero({q.data(), n, selected.data(), &count});
  return first_of(selected, count);
}

void expect_selected(const Array<std::int32_t>& selected, std::size_t rows) {
  for (const std::int32_t i : view(selected, "selected")) {
    if (i < 0 || static_cast<std::size_t>(i) >= rows) {
      throw ValidationError("[ops] selected lists a row outside the weights");
    }
  }
}

void selected_rows(const std::string& isa, const TernaryRows& weights, const Floats& row_scale,
                   const Array<std::int32_t>& selected, const Array<std::int8_t>& q,
                   float act_scale, std::int32_t act_sum, Floats out) {
  expect_size(row_scale, weights.rows(), "row_scale");
  expect_size(q, weights.units() * kUnitColumns, "q");
  expect_size(out, weights.rows(), "out");
  expect_selected(selected, weights.rows());
  table(isa).selected_rows({weights.packed(), row_scale.data(), weights.units(), selected.data(),
                            static_cast<std::size_t>(selected.size()), q.data(), act_scale, act_sum,
                            out.mutable_data()});
}

void selected_columns(const std::string& isa, const TernaryRows& weights, const Floats& row_scale,
                      const Array<std::int32_t>& selected, const Array<std::int8_t>& q,
                      float act_scale, std::int32_t act_sum, std::size_t unit_begin,
                      std::size_t unit_end, const Floats& residual, Floats out) {
  expect_size(row_scale, weights.columns(), "row_scale");
  expect_size(residual, weights.columns(), "residual");
  expect_size(out, weights.columns(), "out");
  expect_selected(selected, weights.rows());
  if (static_cast<std::size_t>(q.size()) < weights.rows()) {
    throw ValidationError("[ops] q is shorter than the columns");
  }
  if (unit_begin > unit_end || unit_end > weights.units()) {
    throw ValidationError("[ops] units are outside the weights");
  }
  const Buffer scratch(selected_columns_scratch_bytes(weights.columns()), "column sums");
  table(isa).selected_columns(
      {weights.packed(), row_scale.data(), weights.columns(), weights.units(), unit_begin, unit_end,
       selected.data(), static_cast<std::size_t>(selected.size()), q.data(), act_scale, act_sum,
       residual.data(), out.mutable_data(), scratch.as<std::uint8_t>()});
}

void rope(const std::string& isa, Floats x, const Floats& cos, const Floats& sin) {
  expect_ndim(x, 2, "x");
  expect_size(cos, dim(x, 1) / 2, "cos");
  expect_size(sin, dim(x, 1) / 2, "sin");
  table(isa).rope({x.mutable_data(), cos.data(), sin.data(), dim(x, 0), dim(x, 1)});
}

GateArgs gate_args(const std::string& activation, const Floats& gate, const Floats& up,
                   Floats& out) {
  const auto n = static_cast<std::size_t>(gate.size());
  expect_size(up, n, "up");
  expect_size(out, n, "out");
  return {gate.data(), up.data(), parse_activation(activation), n, out.mutable_data()};
}

void gate(const std::string& isa, const std::string& activation, const Floats& gate,
          const Floats& up, Floats out) {
  table(isa).gate(gate_args(activation, gate, up, out));
}

py::tuple gate_quantize(const std::string& isa, const std::string& activation, const Floats& gate,
                        const Floats& up, Floats out, Array<std::int8_t> q,
                        const std::optional<Floats>& gain, float eps) {
  float scale = 0.0f;
  std::int32_t sum = 0;
  table(isa).gate_quantize({gate_args(activation, gate, up, out),
                            quantize_args(out, gain, eps, std::nullopt, q, scale, sum)});
  return py::make_tuple(scale, sum);
}

void kv_write(const std::string& isa, PagedCache& cache, std::size_t block, std::size_t offset,
              const Floats& key, const Floats& value) {
  const std::size_t width = cache.kv_heads() * cache.head_dim();
  expect_size(key, width, "key");
  expect_size(value, width, "value");
  if (block >= cache.blocks() || offset >= kPageTokens) {
    throw ValidationError("[ops] block or offset is outside the cache");
  }
  for (std::size_t g = 0; g < cache.kv_heads(); ++g) {
    table(isa).kv_write({key.data() + g * cache.head_dim(), value.data() + g * cache.head_dim(),
                         cache.head_dim(), cache.page(0, block, g), offset, cache.dtype()});
  }
}

// Layer 0 and one kv head of the cache.
void attention(const std::string& isa, const PagedCache& cache, std::size_t kv_head,
               const Array<std::int32_t>& block_table, std::size_t position, std::size_t key_begin,
               std::size_t key_end, const Floats& q, float scale, Floats max, Floats sum,
               Floats out, float softcap, std::size_t window, std::size_t sinks) {
  expect_ndim(q, 3, "q");
  const std::size_t tokens = dim(q, 0), group = dim(q, 1), rows = tokens * group;
  expect_size(q, rows * cache.head_dim(), "q");
  expect_size(max, rows, "max");
  expect_size(sum, rows, "sum");
  expect_size(out, rows * padded_head_dim(cache.head_dim()), "out");
  if (key_begin % kPageTokens != 0 || key_begin >= key_end || key_begin > position ||
      key_end > static_cast<std::size_t>(block_table.size()) * kPageTokens) {
    throw ValidationError("[ops] key range does not fit the block table or the position");
  }
  for (const std::int32_t block : view(block_table, "block_table")) {
    if (block < 0 || static_cast<std::size_t>(block) >= cache.blocks()) {
      throw ValidationError("[ops] block_table lists a block outside the cache");
    }
  }
  if (kv_head >= cache.kv_heads()) throw ValidationError("[ops] kv_head is outside the cache");
  struct alignas(kCacheLine) Line {
    float floats[kCacheLine / sizeof(float)];
  };
  std::vector<Line> scratch(attention_scratch(rows, cache.head_dim()) / std::size(Line{}.floats) +
                            1);
  table(isa).attention({q.data(),
                        group * cache.head_dim(),
                        tokens,
                        group,
                        cache.head_dim(),
                        scale,
                        softcap,
                        window,
                        sinks,
                        cache.page(0, 0, kv_head),
                        cache.block_bytes(),
                        block_table.data(),
                        cache.dtype(),
                        position,
                        key_begin,
                        key_end,
                        max.mutable_data(),
                        sum.mutable_data(),
                        out.mutable_data(),
                        scratch.front().floats});
}

void attention_merge(const std::string& isa, std::size_t head_dim, const Floats& part_max,
                     const Floats& part_sum, const Floats& part_out, Floats max, Floats sum,
                     Floats out) {
  const auto rows = static_cast<std::size_t>(max.size());
  expect_size(part_max, rows, "part_max");
  expect_size(part_sum, rows, "part_sum");
  expect_size(sum, rows, "sum");
  expect_size(part_out, rows * padded_head_dim(head_dim), "part_out");
  expect_size(out, rows * padded_head_dim(head_dim), "out");
  table(isa).attention_merge({rows, head_dim, part_max.data(), part_sum.data(), part_out.data(),
                              max.mutable_data(), sum.mutable_data(), out.mutable_data()});
}

void attention_finish(const std::string& isa, const Floats& sum, const Floats& rows, Floats out) {
  expect_ndim(out, 2, "out");
  expect_size(sum, dim(out, 0), "sum");
  expect_size(rows, dim(out, 0) * padded_head_dim(dim(out, 1)), "rows");
  table(isa).attention_finish(
      {dim(out, 0), dim(out, 1), sum.data(), rows.data(), out.mutable_data()});
}

void embed(const std::string& isa, const py::array& weights, std::size_t row, Floats out,
           float scale) {
  const DenseMatrix dense = dense_view(weights, "weights");
  expect_size(out, dense.columns, "out");
  if (row >= dense.rows) throw ValidationError("[ops] row is outside the weights");
  table(isa).embed({dense.data, dense.dtype, row, dense.columns, scale, out.mutable_data()});
}

void softcap(const std::string& isa, Floats x, float cap) {
  table(isa).softcap({x.mutable_data(), static_cast<std::size_t>(x.size()), cap});
}

void add_bias(const std::string& isa, const Floats& bias, Floats out, std::size_t begin) {
  expect_ndim(out, 2, "out");
  if (begin > dim(out, 1)) throw ValidationError("[ops] begin is outside out");
  expect_size(bias, dim(out, 1), "bias");
  table(isa).add_bias(
      {bias.data(), begin, dim(out, 1), dim(out, 0), out.mutable_data(), dim(out, 1)});
}

void dense_linear(const std::string& isa, const py::array& weights, const Floats& x, Floats out,
                  const std::optional<Floats>& residual) {
  const DenseMatrix dense = dense_view(weights, "weights");
  expect_ndim(x, 2, "x");
  expect_size(x, dim(x, 0) * dense.columns, "x");
  expect_size(out, dim(x, 0) * dense.rows, "out");
  if (residual) expect_size(*residual, dim(x, 0) * dense.rows, "residual");
  table(isa).dense_linear({dense.data, dense.dtype, dense.columns, 0, dense.rows, x.data(),
                           dim(x, 0), out.mutable_data(), dense.rows,
                           residual ? residual->data() : nullptr});
}

void weight_only_linear(const std::string& isa, const GroupedMatrix& matrix, const Floats& x,
                        Floats out) {
  expect_ndim(x, 2, "x");
  if (!has_weight_only_linear(matrix.format())) {
    throw ValidationError("[ops] weight_only_linear takes codes of 2, 4 or 8 bits");
  }
  const std::size_t tokens = dim(x, 0), rows = matrix.out_features();
  expect_size(x, tokens * matrix.in_features(), "x");
  expect_size(out, tokens * rows, "out");
  table(isa).weight_only_linear({matrix.packed(), matrix.format(), rows, matrix.records(), 0,
                                 matrix.panels(), x.data(), matrix.in_features(), tokens,
                                 out.mutable_data(), rows});
}

ScreenMatrix code_head(const py::array& weights) {
  const DenseMatrix dense = dense_view(weights, "weights");
  ScreenMatrix coded(dense.rows, dense.columns, ScreenMatrix::Planes::kBoth);
  std::vector<float> scratch(ScreenMatrix::scratch_bytes(dense.columns) / sizeof(float) + 1);
  coded.fill(dense.data, dense.dtype, 0, dense.rows,
             reinterpret_cast<std::uint8_t*>(scratch.data()));
  return coded;
}

// Hidden states in the form that the coded head takes.
struct CodedRows {
  CodedRows(const Floats& x, std::size_t columns) : width(screen_width(columns)) {
    expect_ndim(x, 2, "x");
    expect_size(x, dim(x, 0) * columns, "x");
    const std::size_t tokens = dim(x, 0);
    hi.resize(tokens * width);
    lo.resize(tokens * width);
    for (std::size_t t = 0; t < tokens; ++t) {
      rows.push_back(screen_quantize(x.data() + t * columns, columns, hi.data() + t * width,
                                     lo.data() + t * width));
      scale.push_back(rows[t].scale);
      hi_sum.push_back(rows[t].hi_sum);
      lo_sum.push_back(rows[t].lo_sum);
    }
  }
  ScreenActivations from(std::size_t t) const {
    return {hi.data() + t * width, lo.data() + t * width, width,
            scale.data() + t,      hi_sum.data() + t,     lo_sum.data() + t};
  }
  std::size_t width;
  std::vector<std::int8_t> hi, lo;
  std::vector<ScreenActivation> rows;
  std::vector<float> scale;
  std::vector<std::int32_t> hi_sum, lo_sum;
};

void screen_linear(const std::string& isa, const ScreenMatrix& coded, const Floats& x, Floats out) {
  const CodedRows rows(x, coded.columns());
  expect_size(out, dim(x, 0) * coded.rows(), "out");
  std::vector<float*> outs;
  for (std::size_t t = 0; t < dim(x, 0); ++t) {
    outs.push_back(out.mutable_data() + t * coded.rows());
  }
  table(isa).screen_linear({coded.codes(), coded.scale(), coded.rows(), coded.blocks(), 0,
                            coded.panels(), rows.from(0), dim(x, 0), outs.data()});
}

void screen_rest(const std::string& isa, const ScreenMatrix& coded, const Floats& x,
                 const Array<std::int32_t>& listed, Floats out) {
  const CodedRows rows(x, coded.columns());
  expect_size(x, coded.columns(), "x");
  expect_size(out, coded.rows(), "out");
  for (const std::int32_t row : view(listed, "rows")) {
    if (row < 0 || static_cast<std::size_t>(row) >= coded.rows()) {
      throw ValidationError("[ops] rows has one outside the head");
    }
  }
  table(isa).screen_rest({coded.rest(), coded.scale(), coded.rest_bytes() / kRestBytes,
                          listed.data(), static_cast<std::size_t>(listed.size()), rows.from(0),
                          out.mutable_data()});
}

// How far logits of either plane can be from the exact ones, each [tokens, rows].
py::tuple screen_slack(const ScreenMatrix& coded, const Floats& x) {
  const CodedRows rows(x, coded.columns());
  Floats high({rows.rows.size(), coded.rows()});
  Floats both({rows.rows.size(), coded.rows()});
  for (std::size_t t = 0; t < rows.rows.size(); ++t) {
    for (std::size_t n = 0; n < coded.rows(); ++n) {
      const float x_part = coded.norm()[n] * rows.rows[t].error;
      const std::size_t i = t * coded.rows() + n;
      high.mutable_data()[i] = coded.high_error()[n] * rows.rows[t].norm + x_part;
      both.mutable_data()[i] = coded.error()[n] * rows.rows[t].norm + x_part;
    }
  }
  return py::make_tuple(high, both);
}

bool block_max(const std::string& isa, const Floats& values, Floats out) {
  const auto blocks = static_cast<std::size_t>(out.size());
  expect_size(values, blocks * BlockMaxArgs::kBlock, "values");
  bool has_nan = false;
  table(isa).block_max({values.data(), blocks, out.mutable_data(), &has_nan});
  return has_nan;
}

double softmax_weights(const std::string& isa, const Floats& values, float reference,
                       float inv_temperature, Floats out) {
  const auto n = static_cast<std::size_t>(values.size());
  expect_size(out, n, "out");
  double total = 0.0;
  table(isa).softmax_weights(
      {values.data(), n, reference, inv_temperature, out.mutable_data(), &total});
  return total;
}

py::tuple weighted_moments(const std::string& isa, const Floats& values, const Floats& weights,
                           float shift) {
  const auto n = static_cast<std::size_t>(values.size());
  expect_size(weights, n, "weights");
  double sums[2];
  table(isa).weighted_moments({values.data(), weights.data(), n, shift, sums});
  return py::make_tuple(sums[0], sums[1]);
}

void rungs(const std::string& isa, const Floats& values, float top, float per_unit,
           std::size_t count, Array<std::uint16_t> out) {
  const auto n = static_cast<std::size_t>(values.size());
  expect_size(out, n, "out");
  table(isa).rungs({values.data(), n, top, per_unit, count, out.mutable_data()});
}

std::size_t rung_members(const std::string& isa, const Array<std::uint16_t>& rungs,
                         std::uint16_t first, std::uint16_t last, Array<std::int32_t> out) {
  const auto n = static_cast<std::size_t>(rungs.size());
  expect_size(out, n, "out");
  std::size_t count = 0;
  table(isa).rung_members({rungs.data(), n, first, last, out.mutable_data(), &count});
  return count;
}

}  // namespace

void bind_ops(py::module_& m) {
  const auto array = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("block_max", &block_max, py::arg("isa"), array("values"), array("out"));
  m.def("softmax_weights", &softmax_weights, py::arg("isa"), array("values"), py::arg("reference"),
        py::arg("inv_temperature"), array("out"));
  m.def("weighted_moments", &weighted_moments, py::arg("isa"), array("values"), array("weights"),
        py::arg("shift"));
  m.def("rungs", &rungs, py::arg("isa"), array("values"), py::arg("top"), py::arg("per_unit"),
        py::arg("count"), array("out"));
  m.def("rung_members", &rung_members, py::arg("isa"), array("rungs"), py::arg("first"),
        py::arg("last"), array("out"));
  m.def("rms_norm", &rms_norm, py::arg("isa"), array("x"), array("gain"), py::arg("eps"),
        array("out"), py::arg("residual").noconvert() = py::none());
  m.def("quantize", &quantize, py::arg("isa"), array("x"), array("q"),
        py::arg("gain").noconvert() = py::none(), py::arg("eps") = 1e-5f,
        py::arg("mean_count") = py::none());
  m.def("ternary_linear", &ternary_linear, py::arg("isa"), py::arg("matrix"), array("q"),
        array("act_scale"), array("act_sum"), array("out"),
        py::arg("residual").noconvert() = py::none(), py::arg("kernel") = "");
  m.def("quantize_blocks", &quantize_blocks, py::arg("isa"), array("x"), array("q"),
        array("blocks"), py::arg("gain").noconvert() = py::none(), py::arg("eps") = 1e-5f);
  m.def("grouped_linear", &grouped_linear, py::arg("isa"), py::arg("matrix"), array("q"),
        array("blocks"), array("out"), py::arg("residual").noconvert() = py::none(),
        py::arg("kernel") = "");
  m.def("select_gates", &select_gates, py::arg("isa"), array("gate"), py::arg("begin"),
        py::arg("end"));
  m.def("select_nonzero", &select_nonzero, py::arg("isa"), array("q"));
  m.def("selected_rows", &selected_rows, py::arg("isa"), py::arg("weights"), array("row_scale"),
        array("selected"), array("q"), py::arg("act_scale"), py::arg("act_sum"), array("out"));
  m.def("selected_columns", &selected_columns, py::arg("isa"), py::arg("weights"),
        array("row_scale"), array("selected"), array("q"), py::arg("act_scale"), py::arg("act_sum"),
        py::arg("unit_begin"), py::arg("unit_end"), array("residual"), array("out"));
  m.def("rope", &rope, py::arg("isa"), array("x"), array("cos"), array("sin"));
  m.def("gate", &gate, py::arg("isa"), py::arg("activation"), array("gate"), array("up"),
        array("out"));
  m.def("gate_quantize", &gate_quantize, py::arg("isa"), py::arg("activation"), array("gate"),
        array("up"), array("out"), array("q"), py::arg("gain").noconvert() = py::none(),
        py::arg("eps") = 1e-5f);
  m.def("kv_write", &kv_write, py::arg("isa"), py::arg("cache"), py::arg("block"),
        py::arg("offset"), array("key"), array("value"));
  m.def("attention", &attention, py::arg("isa"), py::arg("cache"), py::arg("kv_head"),
        array("block_table"), py::arg("position"), py::arg("key_begin"), py::arg("key_end"),
        array("q"), py::arg("scale"), array("max"), array("sum"), array("out"),
        py::arg("softcap") = 0.0f, py::arg("window") = 0, py::arg("sinks") = 0);
  m.def("attention_merge", &attention_merge, py::arg("isa"), py::arg("head_dim"), array("part_max"),
        array("part_sum"), array("part_out"), array("max"), array("sum"), array("out"));
  m.def("attention_finish", &attention_finish, py::arg("isa"), array("sum"), array("rows"),
        array("out"));
  m.def("embed", &embed, py::arg("isa"), array("weights"), py::arg("row"), array("out"),
        py::arg("scale") = 1.0f);
  m.def("softcap", &softcap, py::arg("isa"), array("x"), py::arg("softcap"));
  m.def("add_bias", &add_bias, py::arg("isa"), array("bias"), array("out"), py::arg("begin") = 0);
  m.def("dense_linear", &dense_linear, py::arg("isa"), array("weights"), array("x"), array("out"),
        py::arg("residual").noconvert() = py::none());
  m.def("weight_only_linear", &weight_only_linear, py::arg("isa"), py::arg("matrix"), array("x"),
        array("out"));
  py::class_<ScreenMatrix>(m, "ScreenMatrix")
      .def(py::init(&code_head), array("weights"))
      .def_property_readonly("nbytes", &ScreenMatrix::bytes);
  m.def("screen_linear", &screen_linear, py::arg("isa"), py::arg("coded"), array("x"),
        array("out"));
  m.def("screen_rest", &screen_rest, py::arg("isa"), py::arg("coded"), array("x"), array("rows"),
        array("out"));
  m.def("screen_slack", &screen_slack, py::arg("coded"), array("x"));
}

}  // namespace ryz
