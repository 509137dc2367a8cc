#include "model/step_worker.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ryz {

StepWorker::StepWorker(const Step& step, ThreadPool::Context& ctx)
    : s_(step),
      ctx_(ctx),
      config_(step.config),
      kernels_(step.kernels),
      ws_(step.workspace),
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
  linear.kernel->linear({m.packed(), m.row_scale(), m.out_features(), m.blocks(), first, last, q_,
                         round_up(m.in_features(), kRowPadding), act_scale_, act_sum_, tokens_, out,
                         out_stride, output == Output::kAdd ? out : nullptr,
                         ws_.panels.data() + me_ * ws_.panels_stride});
}

void StepWorker::attention_block(std::size_t index) {
  const LayerWeights& layer = s_.layers[index];
  float* x = ws_.x.data();
  project(x, layer.input_norm, layer.attn_in, Output::kAssign, ws_.qkv.data(), config_.qkv_size());
  const std::size_t heads = config_.num_kv_heads;
  const auto [first, last] = ctx_.share(tokens_ * heads);
  for (std::size_t i = first; i < last; ++i) rotate_and_store(index, i / heads, i % heads);
  ctx_.barrier();
  attend(index);
  project(ws_.attention.data(), layer.attn_sub_norm, {&layer.o_proj, 1}, Output::kAdd, x,
          config_.hidden_size);
}

// Rotates the query heads of a kv head and its key, and stores key and value.
void StepWorker::rotate_and_store(std::size_t layer, std::size_t t, std::size_t kv_head) {
  const DecoderConfig& c = config_;
  const float* cos = ws_.cos.data() + t * (c.head_dim / 2);
  const float* sin = ws_.sin.data() + t * (c.head_dim / 2);
  float* q = ws_.qkv.data() + t * c.qkv_size();
  float* k = q + c.q_size() + kv_head * c.head_dim;
  kernels_.rope({q + kv_head * c.group() * c.head_dim, cos, sin, c.group(), c.head_dim});
  kernels_.rope({k, cos, sin, 1, c.head_dim});
  const auto slot = static_cast<std::size_t>(s_.batch.slots[t]);
  kernels_.kv_write({k, k + c.kv_size(), c.head_dim,
                     s_.cache.page(layer, slot / kPageTokens, kv_head), slot % kPageTokens,
                     s_.cache.dtype()});
}

StepWorker::Part StepWorker::part(std::size_t index) const {
  const std::size_t out_size = config_.group() * padded_head_dim(config_.head_dim);
  float* base = ws_.partials.data() + index * (out_size + 2 * config_.group());
  return {base, base + out_size, base + out_size + config_.group()};
}

std::size_t StepWorker::splits(std::size_t t) const {
  return static_cast<std::size_t>(s_.batch.positions[t]) / kSplitKeys + 1;
}

void StepWorker::attend_split(std::size_t layer, std::size_t t, std::size_t g, std::size_t split,
                              const Part& into) {
  const DecoderConfig& c = config_;
  const std::size_t keys = static_cast<std::size_t>(s_.batch.positions[t]) + 1;
  const auto sequence = static_cast<std::size_t>(ws_.token_sequence.data()[t]);
  kernels_.attention({ws_.qkv.data() + t * c.qkv_size() + g * c.group() * c.head_dim, c.group(),
                      c.head_dim, 1.0f / std::sqrt(static_cast<float>(c.head_dim)),
                      s_.cache.page(layer, 0, g), s_.cache.block_bytes(),
                      s_.batch.block_tables.data() + sequence * s_.batch.max_blocks,
                      s_.cache.dtype(), split * kSplitKeys,
                      std::min((split + 1) * kSplitKeys, keys), into.max, into.sum, into.out});
}

void StepWorker::merge(const Part& from, const Part& into) {
  kernels_.attention_merge({config_.group(), config_.head_dim, from.max, from.sum, from.out,
                            into.max, into.sum, into.out});
}

void StepWorker::finish_head(std::size_t t, std::size_t g, const Part& whole) {
  const std::size_t width = config_.group() * config_.head_dim;
  kernels_.attention_finish({config_.group(), config_.head_dim, whole.sum, whole.out,
                             ws_.attention.data() + t * config_.q_size() + g * width});
}

// The folds are the same either way.
void StepWorker::attend(std::size_t layer) {
  ws_.shared_splits == 0 ? attend_whole(layer) : attend_shared_splits(layer);
  ctx_.barrier();
}

// Each thread does whole (kv head, token) pairs, head by head, so that it finds its pages in cache;
// pairs are dealt out in turn, because later tokens have more keys.
void StepWorker::attend_whole(std::size_t layer) {
  const Part whole = part(2 * me_);
  const Part next = part(2 * me_ + 1);
  for (std::size_t pair = me_; pair < config_.num_kv_heads * tokens_; pair += threads_) {
    const std::size_t g = pair / tokens_;
    const std::size_t t = pair % tokens_;
    attend_split(layer, t, g, 0, whole);
    for (std::size_t split = 1; split < splits(t); ++split) {
      attend_split(layer, t, g, split, next);
      merge(next, whole);
    }
    finish_head(t, g, whole);
  }
}

// Few pairs with long contexts: threads share the splits of each, and fold them after a barrier.
void StepWorker::attend_shared_splits(std::size_t layer) {
  const std::size_t heads = config_.num_kv_heads;
  const std::size_t stride = ws_.shared_splits;
  std::size_t turn = 0;
  for (std::size_t t = 0; t < tokens_; ++t) {
    for (std::size_t g = 0; g < heads; ++g) {
      for (std::size_t split = 0; split < splits(t); ++split, ++turn) {
        if (turn % threads_ != me_) continue;
        attend_split(layer, t, g, split, part((t * heads + g) * stride + split));
      }
    }
  }
  ctx_.barrier();
  for (std::size_t pair = me_; pair < tokens_ * heads; pair += threads_) {
    const Part whole = part(pair * stride);
    for (std::size_t split = 1; split < splits(pair / heads); ++split) {
      merge(part(pair * stride + split), whole);
    }
    finish_head(pair / heads, pair % heads, whole);
  }
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
