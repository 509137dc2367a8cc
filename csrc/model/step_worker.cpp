#include "model/step_worker.h"

#include <cmath>
#include <cstring>

namespace ryz {

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
  linear_normed_ = ws_.linear_normed.data() + rows * ws_.widest;
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
    feed_forward_block(s_.layers[layer]);
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
  const std::size_t k = linears.front().matrix->in_features();
  const float* source = input;
  if (!gain.empty()) {
    for (std::size_t t = first_row_; t < last_row_; ++t) {
      kernels_.rms_norm({input + t * k, gain.data(), config_.rms_norm_eps, k, normed_ + t * k});
    }
    source = normed_;
  }
  for (std::size_t i = 0; i < linears.size(); ++i) {
    // Linears without a norm of their own share one quantised input.
    if (i == 0 || !linears[i].norm.empty()) {
      for (std::size_t t = first_row_; t < last_row_; ++t) {
        quantize_row(linears[i], source + t * k, t);
      }
      if (!replicates_) ctx_.barrier();
    }
    multiply(linears[i], output, out, out_stride);
    ctx_.barrier();
    out += linears[i].matrix->out_features();
  }
}

void StepWorker::quantize_row(const Linear& linear, const float* row, std::size_t t) {
  const std::size_t k = linear.matrix->in_features();
  const std::size_t k_padded = round_up(k, kRowPadding);
  if (!linear.norm.empty()) {
    float* normed = linear_normed_ + t * k;
    kernels_.rms_norm({row, linear.norm.data(), linear.norm_eps, k, normed});
    row = normed;
  }
  kernels_.quantize({row, k, k_padded, q_ + t * k_padded, act_scale_ + t, act_sum_ + t});
}

void StepWorker::multiply(const Linear& linear, Output output, float* out, std::size_t out_stride) {
  const TernaryMatrix& m = *linear.matrix;
  const auto [first, last] = ctx_.share(m.panels());
  const auto op =
      m.format() == TernaryFormat::kTwoBit ? kernels_.ternary2_linear : kernels_.ternary5_linear;
  op({m.packed(), m.row_scale(), m.out_features(), m.blocks(), first, last, q_,
      round_up(m.in_features(), kRowPadding), act_scale_, act_sum_, tokens_, out, out_stride,
      output == Output::kAdd ? out : nullptr, ws_.panels.data() + me_ * ws_.panels_stride});
}

void StepWorker::attention_block(std::size_t index) {
  const LayerWeights& layer = s_.layers[index];
  float* x = ws_.x.data();
  project(x, layer.input_norm, layer.attn_in, Output::kAssign, ws_.qkv.data(), config_.qkv_size());
  attention_.run(index);
  project(ws_.attention.data(), layer.attn_sub_norm, {&layer.o_proj, 1}, Output::kAdd, x,
          config_.hidden_size);
}

void StepWorker::feed_forward_block(const LayerWeights& layer) {
  const std::size_t width = config_.intermediate_size;
  float* x = ws_.x.data();
  project(x, layer.post_attention_norm, layer.mlp_in, Output::kAssign, ws_.gate_up.data(),
          2 * width);
  for (std::size_t t = first_row_; t < last_row_; ++t) {
    const float* row = ws_.gate_up.data() + t * 2 * width;
    kernels_.gate({row, row + width, config_.activation, width, gated_ + t * width});
  }
  // No barrier: project() starts with the same rows.
  project(gated_, layer.ffn_sub_norm, {&layer.down_proj, 1}, Output::kAdd, x, config_.hidden_size);
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
