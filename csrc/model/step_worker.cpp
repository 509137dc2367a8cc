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
      linears_(step, ctx),
      attention_(step, ctx),
      tokens_(step.batch.tokens()),
      me_(static_cast<std::size_t>(ctx.index())) {}

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
  const auto [first, last] = ctx_.share(tokens_);
  std::size_t sequence = 0;
  for (std::size_t t = first; t < last; ++t) {
    while (static_cast<std::size_t>(s_.batch.seq_starts[sequence + 1]) <= t) ++sequence;
    const auto set = s_.batch.rope_sets.empty()
                         ? std::size_t{0}
                         : static_cast<std::size_t>(s_.batch.rope_sets[sequence]);
    const auto id = static_cast<std::size_t>(s_.batch.token_ids[t]);
    float* const x = ws_.x.data() + t * config_.hidden_size;
    const DenseMatrix row = s_.embedding.slice(id, id + 1, x);
    kernels_.embed({row.data, row.dtype, 0, config_.hidden_size, config_.embedding_scale, x});
    for (std::size_t rope = 0; rope < config_.ropes; ++rope) rotation(set, rope, t);
  }
  ctx_.barrier();
}

// Fills the row of a token in a rotary table, with the frequencies of its sequence's set.
void StepWorker::rotation(std::size_t set, std::size_t rope, std::size_t t) {
  const std::size_t half = config_.head_dim / 2;
  const double* inv_freq = config_.inv_freq.data() + (set * config_.ropes + rope) * half;
  const double factor = config_.rope_attention_factors[rope];
  const std::size_t row = (rope * tokens_ + t) * half;
  for (std::size_t i = 0; i < half; ++i) {
    // In double: a float product of position and frequency is off by 1e-3 rad at 32k.
    const double angle = s_.batch.positions[t] * inv_freq[i];
    ws_.cos.data()[row + i] = static_cast<float>(std::cos(angle) * factor);
    ws_.sin.data()[row + i] = static_cast<float>(std::sin(angle) * factor);
  }
}

void StepWorker::save_hidden(std::size_t index, const float* rows) {
  if (s_.hidden_states == nullptr) return;
  const std::size_t width = config_.hidden_size;
  const auto [first, last] = ctx_.share(tokens_);
  std::memcpy(s_.hidden_states + (index * tokens_ + first) * width, rows + first * width,
              (last - first) * width * sizeof(float));
  ctx_.barrier();
}

void StepWorker::attention_block(std::size_t index) {
  const LayerWeights& layer = s_.layers[index];
  const std::size_t hidden = config_.hidden_size;
  float* x = ws_.x.data();
  linears_.project(x, layer.input_norm, layer.attn_in, Output::kAssign, ws_.qkv.data(),
                   config_.qkv_size());
  attention_.run(index);
  const bool is_normed = !layer.attn_output_norm.empty();
  linears_.project(ws_.attention.data(), layer.attn_sub_norm, {&layer.o_proj, 1},
                   is_normed ? Output::kAssign : Output::kAdd,
                   is_normed ? ws_.block_output.data() : x, hidden);
  if (is_normed) add_output(layer.attn_output_norm);
}

void StepWorker::feed_forward_block(std::size_t index) {
  const LayerWeights& layer = s_.layers[index];
  if (tokens_ == 1 && (layer.up_rows != nullptr || layer.down_columns != nullptr)) {
    return feed_forward_token(index);
  }
  float* x = ws_.x.data();
  linears_.project(x, layer.ffn_norm, layer.mlp_in, Output::kAssign, ws_.gate_up.data(),
                   2 * layer.channels());
  const bool is_normed = !layer.ffn_output_norm.empty();
  linears_.project_gated(ws_.gate_up.data(), layer.ffn_sub_norm, layer.down_proj,
                         is_normed ? Output::kAssign : Output::kAdd,
                         is_normed ? ws_.block_output.data() : x, config_.hidden_size);
  if (is_normed) add_output(layer.ffn_output_norm);
}

void StepWorker::add_output(const std::vector<float>& gain) {
  const std::size_t width = config_.hidden_size;
  const auto [first, last] = ctx_.share(tokens_);
  for (std::size_t t = first; t < last; ++t) {
    float* x = ws_.x.data() + t * width;
    kernels_.rms_norm(
        {ws_.block_output.data() + t * width, gain.data(), config_.rms_norm_eps, width, x, x});
  }
  ctx_.barrier();
}

// One token, relu2: a channel whose gate is zero needs no up row, and one whose quantised
// activation is zero no down column. The same integers are added up, so the same bits come out.
void StepWorker::feed_forward_token(std::size_t index) {
  const LayerWeights& layer = s_.layers[index];
  linears_.prepare(ws_.x.data(), layer.ffn_norm, layer.mlp_in.front());
  ChannelCounts& counts = ws_.channel_counts[index * s_.threads + me_];
  counts.open_gates += gate_and_up(layer);
  ctx_.barrier();
  const QuantizeArgs quantize = linears_.quantize_args(ws_.gated.data(), 0, layer.ffn_sub_norm,
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
  linears_.multiply(gate_up, first, last, Output::kAssign, gate, 2 * width);
  std::size_t open = 0;
  kernels_.select_gates({gate, begin, begin + count, selected, &open});
  if (layer.up_rows != nullptr && is_sparse(open, count, kUpBreakEven)) {
    std::fill_n(up + begin, count, 0.0f);
    const auto& [q, scale, sum] = linears_.quantized();
    kernels_.selected_rows({layer.up_rows->packed(), gate_up.ternary().row_scale() + width,
                            layer.up_rows->units(), selected, open, q, *scale, *sum, up});
  } else {
    linears_.multiply(gate_up, panels + first, panels + last, Output::kAssign, gate, 2 * width);
  }
  kernels_.gate({gate + begin, up + begin, config_.activation, count, ws_.gated.data() + begin});
  return open;
}

// x += down_proj of the quantised row. Returns how many of its elements are not zero.
std::size_t StepWorker::down(const LayerWeights& layer, std::size_t k_padded) {
  std::int32_t* selected = ws_.selected.data() + me_ * ws_.selected_stride;
  std::size_t nonzero = 0;
  const auto& [q, scale, sum] = linears_.quantized();
  kernels_.select_nonzero({q, k_padded, selected, &nonzero});
  float* x = ws_.x.data();
  if (layer.down_columns == nullptr || !is_sparse(nonzero, layer.channels(), kDownBreakEven)) {
    const auto [first, last] = ctx_.share(layer.down_proj.units());
    linears_.multiply(layer.down_proj, first, last, Output::kAdd, x, config_.hidden_size);
    return nonzero;
  }
  const TernaryRows& columns = *layer.down_columns;
  const auto [first, last] = ctx_.share(columns.units());
  kernels_.selected_columns({columns.packed(), layer.down_proj.ternary().row_scale(),
                             config_.hidden_size, columns.units(), first, last, selected, nonzero,
                             q, *scale, *sum, x, x,
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
