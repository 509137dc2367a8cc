// Single kernels under a forced tier. Outputs are caller's arrays, so that tests can put them at
// odd addresses between guard bytes.
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/numpy_view.h"
#include "kernels/dispatch.h"
#include "kv/paged_cache.h"
#include "quant/screen.h"

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

void rms_norm(const std::string& isa, const Floats& x, const Floats& gain, float eps, Floats out) {
  const auto k = static_cast<std::size_t>(x.size());
  expect_size(gain, k, "gain");
  expect_size(out, k, "out");
  table(isa).rms_norm({x.data(), gain.data(), eps, k, out.mutable_data()});
}

py::tuple quantize(const std::string& isa, const Floats& x, Array<std::int8_t> q) {
  const auto k = static_cast<std::size_t>(x.size());
  const auto k_padded = static_cast<std::size_t>(q.size());
  if (k_padded < k || k_padded % 16 != 0) {
    throw ValidationError("[ops] q must hold x and be a multiple of 16 long");
  }
  float scale = 0.0f;
  std::int32_t sum = 0;
  table(isa).quantize({x.data(), k, k_padded, q.mutable_data(), &scale, &sum});
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
  const Buffer scratch(ternary_scratch_bytes(matrix.in_features()), "weight panel");
  const TernaryKernel& op = ternary_kernel(resolve_isa(isa), matrix.format(), kernel);
  op.linear({matrix.packed(), matrix.row_scale(), matrix.out_features(), matrix.blocks(), 0,
             matrix.panels(), q.data(), dim(q, 1), act_scale.data(), act_sum.data(), tokens,
             out.mutable_data(), matrix.out_features(), residual ? residual->data() : nullptr,
             scratch.as<std::uint8_t>()});
}

void rope(const std::string& isa, Floats x, const Floats& cos, const Floats& sin) {
  expect_ndim(x, 2, "x");
  expect_size(cos, dim(x, 1) / 2, "cos");
  expect_size(sin, dim(x, 1) / 2, "sin");
  table(isa).rope({x.mutable_data(), cos.data(), sin.data(), dim(x, 0), dim(x, 1)});
}

void gate(const std::string& isa, const std::string& activation, const Floats& gate,
          const Floats& up, Floats out) {
  const auto n = static_cast<std::size_t>(gate.size());
  expect_size(up, n, "up");
  expect_size(out, n, "out");
  if (activation != "silu" && activation != "relu2") {
    throw ValidationError("[ops] activation '" + activation + "' is not one of: silu, relu2");
  }
  const Activation kind = activation == "silu" ? Activation::kSilu : Activation::kRelu2;
  table(isa).gate({gate.data(), up.data(), kind, n, out.mutable_data()});
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

// Layer 0 and one kv head of the cache; out is [group, padded head dim].
void attention(const std::string& isa, const PagedCache& cache, std::size_t kv_head,
               const Array<std::int32_t>& block_table, std::size_t key_begin, std::size_t key_end,
               const Floats& q, float scale, Floats max, Floats sum, Floats out) {
  expect_ndim(q, 2, "q");
  const std::size_t group = dim(q, 0);
  expect_size(q, group * cache.head_dim(), "q");
  expect_size(max, group, "max");
  expect_size(sum, group, "sum");
  expect_size(out, group * padded_head_dim(cache.head_dim()), "out");
  if (key_begin % kPageTokens != 0 || key_begin >= key_end ||
      key_end > static_cast<std::size_t>(block_table.size()) * kPageTokens) {
    throw ValidationError("[ops] key range does not fit the block table");
  }
  for (const std::int32_t block : view(block_table, "block_table")) {
    if (block < 0 || static_cast<std::size_t>(block) >= cache.blocks()) {
      throw ValidationError("[ops] block_table lists a block outside the cache");
    }
  }
  if (kv_head >= cache.kv_heads()) throw ValidationError("[ops] kv_head is outside the cache");
  table(isa).attention({q.data(), group, cache.head_dim(), scale, cache.page(0, 0, kv_head),
                        cache.block_bytes(), block_table.data(), cache.dtype(), key_begin, key_end,
                        max.mutable_data(), sum.mutable_data(), out.mutable_data()});
}

void attention_merge(const std::string& isa, std::size_t head_dim, const Floats& part_max,
                     const Floats& part_sum, const Floats& part_out, Floats max, Floats sum,
                     Floats out) {
  const auto group = static_cast<std::size_t>(max.size());
  expect_size(part_max, group, "part_max");
  expect_size(part_sum, group, "part_sum");
  expect_size(sum, group, "sum");
  expect_size(part_out, group * padded_head_dim(head_dim), "part_out");
  expect_size(out, group * padded_head_dim(head_dim), "out");
  table(isa).attention_merge({group, head_dim, part_max.data(), part_sum.data(), part_out.data(),
                              max.mutable_data(), sum.mutable_data(), out.mutable_data()});
}

void attention_finish(const std::string& isa, const Floats& sum, const Floats& rows, Floats out) {
  expect_ndim(out, 2, "out");
  expect_size(sum, dim(out, 0), "sum");
  expect_size(rows, dim(out, 0) * padded_head_dim(dim(out, 1)), "rows");
  table(isa).attention_finish(
      {dim(out, 0), dim(out, 1), sum.data(), rows.data(), out.mutable_data()});
}

void embed(const std::string& isa, const py::array& weights, std::size_t row, Floats out) {
  const DenseMatrix dense = dense_view(weights, "weights");
  expect_size(out, dense.columns, "out");
  if (row >= dense.rows) throw ValidationError("[ops] row is outside the weights");
  table(isa).embed({dense.data, dense.dtype, row, dense.columns, out.mutable_data()});
}

void dense_linear(const std::string& isa, const py::array& weights, const Floats& x, Floats out) {
  const DenseMatrix dense = dense_view(weights, "weights");
  expect_ndim(x, 2, "x");
  expect_size(x, dim(x, 0) * dense.columns, "x");
  expect_size(out, dim(x, 0) * dense.rows, "out");
  table(isa).dense_linear({dense.data, dense.dtype, dense.columns, 0, dense.rows, x.data(),
                           dim(x, 0), out.mutable_data(), dense.rows});
}

// Bounds of x @ weights.T, each [tokens, padded rows], from a screen made of the weights.
py::tuple screen_linear(const std::string& isa, const py::array& weights, const Floats& x) {
  const DenseMatrix dense = dense_view(weights, "weights");
  expect_ndim(x, 2, "x");
  expect_size(x, dim(x, 0) * dense.columns, "x");
  const std::size_t tokens = dim(x, 0);
  ScreenMatrix screen(dense.rows, dense.columns);
  std::vector<float> row(dense.columns);
  screen.fill(dense.data, dense.dtype, 0, dense.rows, row.data());

  const std::size_t stride = screen.steps() * kPlaneColumns;
  std::vector<std::uint8_t> hi(tokens * stride), lo(tokens * stride);
  std::vector<float> scale(tokens), norm(tokens), error(tokens);
  for (std::size_t t = 0; t < tokens; ++t) {
    const ScreenActivation a = screen_quantize(x.data() + t * dense.columns, dense.columns,
                                               hi.data() + t * stride, lo.data() + t * stride);
    scale[t] = a.scale;
    norm[t] = a.norm;
    error[t] = a.error;
  }
  const std::size_t width = screen.panels() * kPanelRows;
  Floats lower({tokens, width});
  Floats upper({tokens, width});
  table(isa).screen_linear({screen.packed(), screen.scale(), screen.offset(), screen.weight_error(),
                            screen.weight_norm(), screen.steps(), 0, screen.panels(), hi.data(),
                            lo.data(), stride, scale.data(), norm.data(), error.data(), tokens,
                            lower.mutable_data(), upper.mutable_data(), width});
  return py::make_tuple(lower, upper);
}

}  // namespace

void bind_ops(py::module_& m) {
  const auto array = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("rms_norm", &rms_norm, py::arg("isa"), array("x"), array("gain"), py::arg("eps"),
        array("out"));
  m.def("quantize", &quantize, py::arg("isa"), array("x"), array("q"));
  m.def("ternary_linear", &ternary_linear, py::arg("isa"), py::arg("matrix"), array("q"),
        array("act_scale"), array("act_sum"), array("out"),
        py::arg("residual").noconvert() = py::none(), py::arg("kernel") = "");
  m.def("rope", &rope, py::arg("isa"), array("x"), array("cos"), array("sin"));
  m.def("gate", &gate, py::arg("isa"), py::arg("activation"), array("gate"), array("up"),
        array("out"));
  m.def("kv_write", &kv_write, py::arg("isa"), py::arg("cache"), py::arg("block"),
        py::arg("offset"), array("key"), array("value"));
  m.def("attention", &attention, py::arg("isa"), py::arg("cache"), py::arg("kv_head"),
        array("block_table"), py::arg("key_begin"), py::arg("key_end"), array("q"),
        py::arg("scale"), array("max"), array("sum"), array("out"));
  m.def("attention_merge", &attention_merge, py::arg("isa"), py::arg("head_dim"), array("part_max"),
        array("part_sum"), array("part_out"), array("max"), array("sum"), array("out"));
  m.def("attention_finish", &attention_finish, py::arg("isa"), array("sum"), array("rows"),
        array("out"));
  m.def("embed", &embed, py::arg("isa"), array("weights"), py::arg("row"), array("out"));
  m.def("dense_linear", &dense_linear, py::arg("isa"), array("weights"), array("x"), array("out"));
  m.def("screen_linear", &screen_linear, py::arg("isa"), array("weights"), array("x"));
}

}  // namespace ryz
