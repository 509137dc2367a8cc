#include "model/linear_worker.h"

#include <algorithm>

namespace ryz {
namespace {

// Whether what was prepared for one is what the other takes.
bool share_input(const Linear& a, const Linear& b) {
  return a.matrix.index() == b.matrix.index() && a.norm.empty() && b.norm.empty() &&
         a.table_bytes() == b.table_bytes();
}

}  // namespace

LinearWorker::LinearWorker(const Step& step, ThreadPool::Context& ctx)
    : ctx_(ctx),
      config_(step.config),
      kernels_(step.kernels),
      tokens_(step.batch.tokens()),
      replicates_(tokens_ < static_cast<std::size_t>(ctx.threads())) {
  const Workspace& ws = step.workspace;
  const auto [first, last] = ctx.share(tokens_);
  first_row_ = replicates_ ? 0 : first;
  last_row_ = replicates_ ? tokens_ : last;
  const std::size_t rows = replicates_ ? static_cast<std::size_t>(ctx.index()) * tokens_ : 0;
  normed_ = ws.normed.data() + rows * ws.widest;
  gated_ = ws.gated.data() + rows * config_.intermediate_size;
  quantized_ = {ws.q.data() + rows * round_up(ws.widest, kRowPadding), ws.act_scale.data() + rows,
                ws.act_sum.data() + rows};
  const std::size_t blocks = rows * padded_blocks(ws.widest);
  block_rows_ = {
      ws.block_q.data() + blocks * kScaleBlock, ws.blocks.data() + blocks,
      ws.tables.data() + static_cast<std::size_t>(replicates_ ? ctx.index() : 0) * ws.table_stride};
}

void LinearWorker::project(const float* input, const std::vector<float>& gain,
                           std::span<const Linear> linears, Output output, float* out,
                           std::size_t out_stride) {
  for (std::size_t i = 0; i < linears.size(); ++i) {
    if (i == 0 || !share_input(linears[i - 1], linears[i])) {
      if (i > 0) share_rows();  // others may still read those of the linear before
      prepare(input, gain, linears[i]);
      share_rows();
    }
    const auto [first, last] = ctx_.share(linears[i].units());
    multiply(linears[i], first, last, output, out, out_stride);
    out += linears[i].out_features();
  }
  ctx_.barrier();
}

void LinearWorker::project_gated(const float* gate_up, const std::vector<float>& gain,
                                 const Linear& linear, Output output, float* out,
                                 std::size_t out_stride) {
  gate(gate_up, gain, linear);
  share_rows();
  const auto [first, last] = ctx_.share(linear.units());
  multiply(linear, first, last, output, out, out_stride);
  ctx_.barrier();
}

void LinearWorker::share_rows() {
  if (!replicates_) ctx_.barrier();
}

void LinearWorker::gate(const float* gate_up, const std::vector<float>& gain,
                        const Linear& linear) {
  const std::size_t width = linear.in_features();
  // Gate, norm and quantiser in one go, where one norm at most lies between.
  const bool at_once =
      std::holds_alternative<Ternary>(linear.matrix) && (gain.empty() || linear.norm.empty());
  for (std::size_t t = first_row_; t < last_row_; ++t) {
    const float* row = gate_up + t * 2 * width;
    const GateArgs args{row, row + width, config_.activation, width, gated_ + t * width};
    if (at_once) {
      kernels_.gate_quantize(
          {args, quantize_args(args.out, t, gain, linear, config_.intermediate_size)});
    } else {
      kernels_.gate(args);
    }
  }
  if (!at_once) prepare(gated_, gain, linear);
}

void LinearWorker::prepare(const float* input, const std::vector<float>& gain,
                           const Linear& linear) {
  std::visit([&](const auto& matrix) { prepare(*matrix, input, gain, linear); }, linear.matrix);
}

void LinearWorker::multiply(const Linear& linear, std::size_t first, std::size_t last,
                            Output output, float* out, std::size_t out_stride) {
  const float* residual = output == Output::kAdd ? out : nullptr;
  std::visit(
      [&](const auto& matrix) {
        multiply(*matrix, linear, first, last, residual, out, out_stride);
      },
      linear.matrix);
  if (linear.bias.empty()) return;
  const std::size_t end = std::min(last * linear.unit_rows(), linear.out_features());
  kernels_.add_bias(
      {linear.bias.data(), first * linear.unit_rows(), end, tokens_, out, out_stride});
}

void LinearWorker::prepare(const TernaryMatrix& matrix, const float* input,
                           const std::vector<float>& gain, const Linear& linear) {
  const std::size_t k = matrix.in_features();
  for (std::size_t t = first_row_; t < last_row_; ++t) {
    const float* row = normed_row(input + t * k, t, gain, linear);
    kernels_.quantize(quantize_args(row, t, gain, linear, k));
  }
}

// What a quantiser with one norm is to take as row t: the gain's where there are two.
const float* LinearWorker::normed_row(const float* row, std::size_t t,
                                      const std::vector<float>& gain, const Linear& linear) {
  if (gain.empty() || linear.norm.empty()) return row;
  const std::size_t k = linear.in_features();
  kernels_.rms_norm({row, gain.data(), config_.rms_norm_eps, k, normed_ + t * k});
  return normed_ + t * k;
}

QuantizeArgs LinearWorker::quantize_args(const float* row, std::size_t t,
                                         const std::vector<float>& gain, const Linear& linear,
                                         std::size_t mean_count) const {
  const bool own = !linear.norm.empty();
  const std::vector<float>& norm = own ? linear.norm : gain;
  const std::size_t k = linear.in_features();
  const std::size_t k_padded = round_up(k, kRowPadding);
  return {row,
          k,
          k_padded,
          norm.empty() ? nullptr : norm.data(),
          own ? linear.norm_eps : config_.rms_norm_eps,
          mean_count,
          quantized_.q + t * k_padded,
          quantized_.scale + t,
          quantized_.sum + t};
}

void LinearWorker::multiply(const TernaryMatrix& m, const Linear& linear, std::size_t first,
                            std::size_t last, const float* residual, float* out,
                            std::size_t out_stride) {
  linear.ternary_kernel->linear({m.packed(), m.row_scale(), m.out_features(), m.blocks(), first,
                                 last, quantized_.q, round_up(m.in_features(), kRowPadding),
                                 quantized_.scale, quantized_.sum, tokens_, out, out_stride,
                                 residual});
}

void LinearWorker::prepare(const DenseMatrix& matrix, const float* input,
                           const std::vector<float>& gain, const Linear& linear) {
  const std::size_t k = matrix.columns;
  rows_ = input;
  const auto norm = [&](const std::vector<float>& weight, float eps) {
    if (weight.empty()) return;
    for (std::size_t t = first_row_; t < last_row_; ++t) {
      kernels_.rms_norm({rows_ + t * k, weight.data(), eps, k, normed_ + t * k});
    }
    rows_ = normed_;
  };
  norm(gain, config_.rms_norm_eps);
  norm(linear.norm, linear.norm_eps);
}

void LinearWorker::multiply(const DenseMatrix& m, const Linear& linear, std::size_t first,
                            std::size_t last, const float* residual, float* out,
                            std::size_t out_stride) {
  kernels_.dense_linear({m.data, m.dtype, m.columns, first * linear.unit_rows(),
                         std::min(last * linear.unit_rows(), m.rows), rows_, tokens_, out,
                         out_stride, residual});
}

void LinearWorker::prepare(const GroupedMatrix& matrix, const float* input,
                           const std::vector<float>& gain, const Linear& linear) {
  const std::size_t k = matrix.in_features();
  const bool own = !linear.norm.empty();
  const std::vector<float>& norm = own ? linear.norm : gain;
  for (std::size_t t = first_row_; t < last_row_; ++t) {
    kernels_.quantize_blocks({normed_row(input + t * k, t, gain, linear), k, padded_blocks(k),
                              norm.empty() ? nullptr : norm.data(),
                              own ? linear.norm_eps : config_.rms_norm_eps,
                              block_rows_.q + t * kScaleBlock, block_rows_.blocks + t, tokens_});
    if (looks_up(linear)) {
      kernels_.lookup_tables({block_rows_.q, matrix.blocks(), matrix.format(), block_rows_.tables});
    }
  }
}

bool LinearWorker::looks_up(const Linear& linear) const {
  return tokens_ == 1 && linear.grouped_kernel->reads_tables;
}

void LinearWorker::multiply(const GroupedMatrix& m, const Linear& linear, std::size_t first,
                            std::size_t last, const float* residual, float* out,
                            std::size_t out_stride) {
  const auto run = looks_up(linear) ? linear.grouped_kernel->linear : kernels_.grouped_linear;
  run({m.packed(), m.format(), m.out_features(), m.records(), first, last, block_rows_.q,
       block_rows_.blocks, tokens_, tokens_, out, out_stride, residual, block_rows_.tables});
}

}  // namespace ryz
