#include "model/step_worker.h"

#include <cmath>
#include <cstring>

namespace ryz {

namespace {

// Where records read one by one cost as much as the whole matrix in one stream: short reads with
// gaps get about two thirds of the bandwidth (docs/decisions/0009-zero-skipping.md).
constexpr double kUpBreakEven = 0.5;
constexpr double kDownBreakEven = 0.55;

bool is_sparse(std::size_t count, std::size_t of, double break_even) {
  return static_cast<double>(count) < break_even * static_cast<double>(of);
}

}  // namespace

StepWorker::StepWorker(const Step& step, ThreadPool::Context& ctx)
    : s_(step),
      ctx_(ctx),
      config_(step.config),
      kernels_(step.kernels),
      ws_(step.workspace),
      attention_(step, ctx),
      tokens_(step.batch.tokens()),
      me_(static_cast<std::size_t>(ctx.index())),
      threads_(static_cast<std::size_t>(ctx.threads())),
      replicates_(tokens_ < threads_) {
  const auto [first, last] = ctx.share(tokens_);
  first_row_ = replicates_ ? 0 : first;
  last_row_ = replicates_ ? tokens_ : last;
  const std::size_t rows = replicates_ ? me_ * tokens_ : 0;
  normed_ = ws_.normed.data() + rows * ws_.widest;
  gated_ = ws_.gated.data() + rows * config_.intermediate_size;
  q_ = ws_.q.data() + rows * round_up(ws_.widest, kRowPadding);
  act_scale_ = ws_.act_scale.data() + rows;
  act_sum_ = ws_.act_sum.data() + rows;
}

void StepWorker::run() {
  begin();
  for (std::size_t layer = 0; layer < s_.layers.size(); ++layer) {
    save_hidden(layer, ws_.x.data());
    attention_block(layer);
    feed_forward_block(layer);
  }
  finish();
}

void StepWorker::begin() {
  const std::size_t half = config_.head_dim / 2;
  const auto [first, last] = ctx_.share(tokens_);
  for (std::size_t t = first; t < last; ++t) {
    kernels_.embed({s_.embedding.data, s_.embedding.dtype,
                    static_cast<std::size_t>(s_.batch.token_ids[t]), config_.hidden_size,
                    ws_.x.data() + t * config_.hidden_size});
    for (std::size_t i = 0; i < half; ++i) {
      // In double: a float product of position and frequency is off by 1e-3 rad at 32k.
      const double angle = s_.batch.positions[t] * config_.inv_freq[i];
      const double factor = config_.rope_attention_factor;
      ws_.cos.data()[t * half + i] = static_cast<float>(std::cos(angle) * factor);
      ws_.sin.data()[t * half + i] = static_cast<float>(std::sin(angle) * factor);
    }
  }
  ctx_.barrier();
}

void StepWorker::save_hidden(std::size_t index, const float* rows) {
  if (s_.hidden_states == nullptr) return;
  const std::size_t width = config_.hidden_size;
  const auto [first, last] = ctx_.share(tokens_);
  std::memcpy(s_.hidden_states + (index * tokens_ + first) * width, rows + first * width,
              (last - first) * width * sizeof(float));
  ctx_.barrier();
}

void StepWorker::project(const float* input, const std::vector<float>& gain,
                         std::span<const Linear> linears, Output output, float* out,
                         std::size_t out_stride) {
  for (std::size_t i = 0; i < linears.size(); ++i) {
    // Linears without a norm of their own share one quantised input.
    if (i == 0 || !linears[i].norm.empty()) {
      quantize_rows(input, gain, linears[i]);
      if (!replicates_) ctx_.barrier();
    }
    multiply(linears[i], output, out, out_stride);
    ctx_.barrier();
    out += linears[i].matrix->out_features();
  }
}

// q = quantize(norms(input)): the gain's norm, then the linear's own, either of which may be
// absent.
void StepWorker::quantize_rows(const float* input, const std::vector<float>& gain,
                               const Linear& linear) {
  const std::size_t k = linear.matrix->in_features();
  const bool both = !gain.empty() && !linear.norm.empty();
  for (std::size_t t = first_row_; t < last_row_; ++t) {
    const float* row = input + t * k;
    if (both) {
      kernels_.rms_norm({row, gain.data(), config_.rms_norm_eps, k, normed_ + t * k});
      row = normed_ + t * k;
    }
    kernels_.quantize(quantize_args(row, t, gain, linear, k));
  }
}

// With the linear's norm where it has one, else with the gain's.
QuantizeArgs StepWorker::quantize_args(const float* row, std::size_t t,
                                       const std::vector<float>& gain, const Linear& linear,
                                       std::size_t mean_count) const {
  const bool own = !linear.norm.empty();
  const std::vector<float>& norm = own ? linear.norm : gain;
  const std::size_t k = linear.matrix->in_features();
  const std::size_t k_padded = round_up(k, kRowPadding);
  return {row,
          k,
          k_padded,
          norm.empty() ? nullptr : norm.data(),
          own ? linear.norm_eps : config_.rms_norm_eps,
          mean_count,
          q_ + t * k_padded,
          act_scale_ + t,
          act_sum_ + t};
}

void StepWorker::multiply(const Linear& linear, Output output, float* out, std::size_t out_stride) {
  const auto [first, last] = ctx_.share(linear.matrix->panels());
  multiply_panels(linear, first, last, output, out, out_stride);
}

void StepWorker::multiply_panels(const Linear& linear, std::size_t first, std::size_t last,
                                 Output output, float* out, std::size_t out_stride) {
  const TernaryMatrix& m = *linear.matrix;
  linear.kernel->linear({m.packed(), m.row_scale(), m.out_features(), m.blocks(), first, last, q_,
                         round_up(m.in_features(), kRowPadding), act_scale_, act_sum_, tokens_, out,
                         out_stride, output == Output::kAdd ? out : nullptr});
}

void StepWorker::attention_block(std::size_t index) {
  const LayerWeights& layer = s_.layers[index];
  float* x = ws_.x.data();
  project(x, layer.input_norm, layer.attn_in, Output::kAssign, ws_.qkv.data(), config_.qkv_size());
  attention_.run(index);
  project(ws_.attention.data(), layer.attn_sub_norm, {&layer.o_proj, 1}, Output::kAdd, x,
          config_.hidden_size);
}

void StepWorker::feed_forward_block(std::size_t index) {
  const LayerWeights& layer = s_.layers[index];
  if (tokens_ == 1 && (layer.up_rows != nullptr || layer.down_columns != nullptr)) {
    return feed_forward_token(index);
  }
  const std::size_t width = layer.channels();
  float* x = ws_.x.data();
  project(x, layer.post_attention_norm, layer.mlp_in, Output::kAssign, ws_.gate_up.data(),
          2 * width);
  const Linear& down = layer.down_proj;
  const bool both = !layer.ffn_sub_norm.empty() && !down.norm.empty();
  for (std::size_t t = first_row_; t < last_row_; ++t) {
    const float* row = ws_.gate_up.data() + t * 2 * width;
    const GateArgs gate{row, row + width, config_.activation, width, gated_ + t * width};
    if (both) {
      kernels_.gate(gate);
      kernels_.rms_norm(
          {gate.out, layer.ffn_sub_norm.data(), config_.rms_norm_eps, width, normed_ + t * width});
      kernels_.quantize(quantize_args(normed_ + t * width, t, {}, down, width));
    } else {
      kernels_.gate_quantize(
          {gate, quantize_args(gate.out, t, layer.ffn_sub_norm, down, config_.intermediate_size)});
    }
  }
  if (!replicates_) ctx_.barrier();
  multiply(down, Output::kAdd, x, config_.hidden_size);
  ctx_.barrier();
}

// One token, relu2: a channel whose gate is zero needs no up row, and one whose quantised
// activation is zero no down column. The same integers are added up, so the same bits come out.
void StepWorker::feed_forward_token(std::size_t index) {
  const LayerWeights& layer = s_.layers[index];
  quantize_rows(ws_.x.data(), layer.post_attention_norm, layer.mlp_in.front());
  ChannelCounts& counts = ws_.channel_counts[index * s_.threads + me_];
  counts.open_gates += gate_and_up(layer);
  ctx_.barrier();
  const QuantizeArgs quantize = quantize_args(ws_.gated.data(), 0, layer.ffn_sub_norm,
                                              layer.down_proj, config_.intermediate_size);
  kernels_.quantize(quantize);
  const std::size_t nonzero = down(layer, quantize.k_padded);
  if (me_ == 0) {
    ++counts.steps;
    counts.nonzero += nonzero;
  }
  ctx_.barrier();
}

// This thread's channels of gated = relu2(gate) * up. Returns how many gates are open.
std::size_t StepWorker::gate_and_up(const LayerWeights& layer) {
  const Linear& gate_up = layer.mlp_in.front();
  const std::size_t width = layer.channels();
  float* gate = ws_.gate_up.data();
  float* up = gate + width;
  std::int32_t* selected = ws_.selected.data() + me_ * ws_.selected_stride;
  const std::size_t panels = width / kPanelRows;
  const auto [first, last] = ctx_.share(panels);
  const std::size_t begin = first * kPanelRows;
  const std::size_t count = last * kPanelRows - begin;
  multiply_panels(gate_up, first, last, Output::kAssign, gate, 2 * width);
  std::size_t open = 0;
  kernels_.select_gates({gate, begin, begin + count, selected, &open});
  if (layer.up_rows != nullptr && is_sparse(open, count, kUpBreakEven)) {
    std::fill_n(up + begin, count, 0.0f);
    kernels_.selected_rows({layer.up_rows->packed(), gate_up.matrix->row_scale() + width,
                            layer.up_rows->units(), selected, open, q_, *act_scale_, *act_sum_,
                            up});
  } else {
    multiply_panels(gate_up, panels + first, panels + last, Output::kAssign, gate, 2 * width);
  }
  kernels_.gate({gate + begin, up + begin, config_.activation, count, ws_.gated.data() + begin});
  return open;
}

// x += down_proj of the quantised row. Returns how many of its elements are not zero.
std::size_t StepWorker::down(const LayerWeights& layer, std::size_t k_padded) {
  std::int32_t* selected = ws_.selected.data() + me_ * ws_.selected_stride;
  std::size_t nonzero = 0;
  kernels_.select_nonzero({q_, k_padded, selected, &nonzero});
  float* x = ws_.x.data();
  if (layer.down_columns == nullptr || !is_sparse(nonzero, layer.channels(), kDownBreakEven)) {
    multiply(layer.down_proj, Output::kAdd, x, config_.hidden_size);
    return nonzero;
  }
  const TernaryRows& columns = *layer.down_columns;
  const auto [first, last] = ctx_.share(columns.units());
  kernels_.selected_columns({columns.packed(), layer.down_proj.matrix->row_scale(),
                             config_.hidden_size, columns.units(), first, last, selected, nonzero,
                             q_, *act_scale_, *act_sum_, x, x,
                             ws_.column_sums.data() + me_ * ws_.column_sums_stride});
  return nonzero;
}

void StepWorker::finish() {
  const std::size_t width = config_.hidden_size;
  const auto norm = [&](std::size_t t, float* out) {
    kernels_.rms_norm(
        {ws_.x.data() + t * width, s_.final_norm.data(), config_.rms_norm_eps, width, out});
  };
  if (s_.hidden_states != nullptr) {
    const auto [first, last] = ctx_.share(tokens_);
    for (std::size_t t = first; t < last; ++t) {
      norm(t, s_.hidden_states + (s_.layers.size() * tokens_ + t) * width);
    }
  }
  const auto& rows = s_.batch.logit_rows;
  if (rows.empty()) return;
  const auto [first, last] = ctx_.share(rows.size());
  for (std::size_t r = first; r < last; ++r) {
    norm(static_cast<std::size_t>(rows[r]), ws_.final_rows.data() + r * width);
  }
  ctx_.barrier();
  s_.head.run(ctx_, ws_.final_rows.data(), s_.logits);
}

}  // namespace ryz
