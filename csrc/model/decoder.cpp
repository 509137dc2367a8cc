#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "model/validate.h"

namespace ryz {
namespace {

// A long context is attended in parts of this many keys, folded in order: the parts are a function
// of position alone, so threads may share them without changing a bit.
constexpr std::size_t kSplitKeys = 256;
std::size_t size_of(const Linear& linear) {
  return linear.matrix->out_features() * linear.matrix->in_features();
}

}  // namespace

// One step in flight: the phases of a layer, each run by every thread of the region on its share.
struct Decoder::Run {
  Decoder& d;
  const StepBatch& batch;
  PagedCache& cache;
  float* logits;
  float* hidden_states;

  using Context = ThreadPool::Context;

  std::size_t tokens() const { return batch.tokens(); }
  const DecoderConfig& config() const { return d.config_; }
  Workspace& ws() const { return d.workspace_; }

  void operator()(Context& ctx) {
    begin(ctx);
    for (std::size_t layer = 0; layer < d.layers_.size(); ++layer) {
      save_hidden(ctx, layer, ws().x.data());
      attention_block(ctx, layer);
      feed_forward_block(ctx, d.layers_[layer]);
    }
    finish(ctx);
  }

  void begin(Context& ctx) {
    const std::size_t half = config().head_dim / 2;
    const auto [first, last] = ctx.share(tokens());
    for (std::size_t t = first; t < last; ++t) {
      d.kernels_.embed({d.embedding_.data, d.embedding_.dtype,
                        static_cast<std::size_t>(batch.token_ids[t]), config().hidden_size,
                        ws().x.data() + t * config().hidden_size});
      for (std::size_t i = 0; i < half; ++i) {
        // In double: a float product of position and frequency is off by 1e-3 rad at 32k.
        const double angle = batch.positions[t] * config().inv_freq[i];
        const double factor = config().rope_attention_factor;
        ws().cos.data()[t * half + i] = static_cast<float>(std::cos(angle) * factor);
        ws().sin.data()[t * half + i] = static_cast<float>(std::sin(angle) * factor);
      }
    }
    ctx.barrier();
  }

  void save_hidden(Context& ctx, std::size_t index, const float* rows) {
    if (hidden_states == nullptr) return;
    const std::size_t width = config().hidden_size;
    const auto [first, last] = ctx.share(tokens());
    std::memcpy(hidden_states + (index * tokens() + first) * width, rows + first * width,
                (last - first) * width * sizeof(float));
    ctx.barrier();
  }

  enum class Output { kAssign, kAdd };

  // out[T, rows of all linears] = or += linears(rms_norm(input, gain)). An empty gain leaves the
  // input as it is. Ends with a barrier.
  void project(Context& ctx, const float* input, const std::vector<float>& gain,
               std::span<const Linear> linears, Output output, float* out, std::size_t out_stride) {
    const std::size_t k = linears.front().matrix->in_features();
    const std::size_t k_padded = round_up(k, kRowPadding);
    const auto [first, last] = ctx.share(tokens());
    const float* source = input;
    if (!gain.empty()) {
      for (std::size_t t = first; t < last; ++t) {
        d.kernels_.rms_norm(
            {input + t * k, gain.data(), config().rms_norm_eps, k, ws().normed.data() + t * k});
      }
      source = ws().normed.data();
    }
    for (std::size_t i = 0; i < linears.size(); ++i) {
      const Linear& linear = linears[i];
      // Linears without a norm of their own share one quantised input.
      if (i == 0 || !linear.norm.empty()) {
        for (std::size_t t = first; t < last; ++t) {
          quantize_row(linear, source + t * k, k, k_padded, t);
        }
        ctx.barrier();
      }
      multiply(ctx, linear, output, out, out_stride);
      ctx.barrier();
      out += linear.matrix->out_features();
    }
  }

  void quantize_row(const Linear& linear, const float* row, std::size_t k, std::size_t k_padded,
                    std::size_t t) {
    if (!linear.norm.empty()) {
      float* normed = ws().linear_normed.data() + t * k;
      d.kernels_.rms_norm({row, linear.norm.data(), linear.norm_eps, k, normed});
      row = normed;
    }
    d.kernels_.quantize({row, k, k_padded, ws().q.data() + t * k_padded, ws().act_scale.data() + t,
                         ws().act_sum.data() + t});
  }

  void multiply(Context& ctx, const Linear& linear, Output output, float* out,
                std::size_t out_stride) {
    const TernaryMatrix& m = *linear.matrix;
    const auto [first, last] = ctx.share(m.panels());
    const auto op = m.format() == TernaryFormat::kTwoBit ? d.kernels_.ternary2_linear
                                                         : d.kernels_.ternary5_linear;
    op({m.packed(), m.row_scale(), m.out_features(), m.blocks(), first, last, ws().q.data(),
        round_up(m.in_features(), kRowPadding), ws().act_scale.data(), ws().act_sum.data(),
        tokens(), out, out_stride, output == Output::kAdd ? out : nullptr,
        ws().panels.data() + static_cast<std::size_t>(ctx.index()) * ws().panels_stride});
  }

  void attention_block(Context& ctx, std::size_t index) {
    const LayerWeights& layer = d.layers_[index];
    const std::size_t width = config().qkv_size();
    float* x = ws().x.data();
    project(ctx, x, layer.input_norm, layer.attn_in, Output::kAssign, ws().qkv.data(), width);
    const auto [first, last] = ctx.share(tokens());
    for (std::size_t t = first; t < last; ++t) rotate_and_store(index, t);
    ctx.barrier();
    attend(ctx, index);
    project(ctx, ws().attention.data(), layer.attn_sub_norm, {&layer.o_proj, 1}, Output::kAdd, x,
            config().hidden_size);
  }

  void rotate_and_store(std::size_t layer, std::size_t t) {
    const DecoderConfig& c = config();
    const std::size_t half = c.head_dim / 2;
    float* q = ws().qkv.data() + t * c.qkv_size();
    float* k = q + c.q_size();
    const float* v = k + c.kv_size();
    // q and k rows are adjacent: one call rotates both.
    d.kernels_.rope({q, ws().cos.data() + t * half, ws().sin.data() + t * half,
                     c.num_heads + c.num_kv_heads, c.head_dim});
    const auto slot = static_cast<std::size_t>(batch.slots[t]);
    for (std::size_t g = 0; g < c.num_kv_heads; ++g) {
      d.kernels_.kv_write({k + g * c.head_dim, v + g * c.head_dim, c.head_dim,
                           cache.page(layer, slot / kPageTokens, g), slot % kPageTokens,
                           cache.dtype()});
    }
  }

  // Where a part of the softmax of one token and kv head lives: out rows, then max, then sum.
  struct Part {
    float* out;
    float* max;
    float* sum;
  };
  std::size_t part_size() const {
    return config().group() * (padded_head_dim(config().head_dim) + 2);
  }
  Part part(std::size_t index) const {
    float* base = ws().partials.data() + index * part_size();
    float* max = base + config().group() * padded_head_dim(config().head_dim);
    return {base, max, max + config().group()};
  }

  std::size_t splits(std::size_t t) const {
    return static_cast<std::size_t>(batch.positions[t]) / kSplitKeys + 1;
  }

  void attend_split(std::size_t layer, std::size_t t, std::size_t g, std::size_t split,
                    const Part& into) {
    const DecoderConfig& c = config();
    const std::size_t keys = static_cast<std::size_t>(batch.positions[t]) + 1;
    const auto sequence = static_cast<std::size_t>(ws().token_sequence.data()[t]);
    d.kernels_.attention({ws().qkv.data() + t * c.qkv_size() + g * c.group() * c.head_dim,
                          c.group(), c.head_dim, 1.0f / std::sqrt(static_cast<float>(c.head_dim)),
                          cache.page(layer, 0, g), cache.block_bytes(),
                          batch.block_tables.data() + sequence * batch.max_blocks, cache.dtype(),
                          split * kSplitKeys, std::min((split + 1) * kSplitKeys, keys), into.max,
                          into.sum, into.out});
  }

  void merge(const Part& from, const Part& into) {
    d.kernels_.attention_merge({config().group(), config().head_dim, from.max, from.sum, from.out,
                                into.max, into.sum, into.out});
  }

  void finish_head(std::size_t t, std::size_t g, const Part& whole) {
    const std::size_t width = config().group() * config().head_dim;
    d.kernels_.attention_finish({config().group(), config().head_dim, whole.sum, whole.out,
                                 ws().attention.data() + t * config().q_size() + g * width});
  }

  // Few (token, kv head) pairs: threads share the key splits and fold them after a barrier. Many:
  // each thread does whole pairs. The folds are the same either way.
  void attend(Context& ctx, std::size_t layer) {
    const std::size_t heads = config().num_kv_heads;
    const auto threads = static_cast<std::size_t>(ctx.threads());
    const auto me = static_cast<std::size_t>(ctx.index());
    if (d.workspace_.shared_splits == 0) {
      const Part whole = part(2 * me);
      const Part next = part(2 * me + 1);
      // Head by head, so that a thread finds its pages in cache; tokens dealt out in turn, because
      // later ones have more keys.
      for (std::size_t g = 0; g < heads; ++g) {
        for (std::size_t t = me; t < tokens(); t += threads) {
          attend_split(layer, t, g, 0, whole);
          for (std::size_t split = 1; split < splits(t); ++split) {
            attend_split(layer, t, g, split, next);
            merge(next, whole);
          }
          finish_head(t, g, whole);
        }
      }
      ctx.barrier();
      return;
    }
    const std::size_t stride = d.workspace_.shared_splits;
    std::size_t turn = 0;
    for (std::size_t t = 0; t < tokens(); ++t) {
      for (std::size_t g = 0; g < heads; ++g) {
        for (std::size_t split = 0; split < splits(t); ++split, ++turn) {
          if (turn % threads != me) continue;
          attend_split(layer, t, g, split, part((t * heads + g) * stride + split));
        }
      }
    }
    ctx.barrier();
    for (std::size_t pair = me; pair < tokens() * heads; pair += threads) {
      const Part whole = part(pair * stride);
      for (std::size_t split = 1; split < splits(pair / heads); ++split) {
        merge(part(pair * stride + split), whole);
      }
      finish_head(pair / heads, pair % heads, whole);
    }
    ctx.barrier();
  }

  void feed_forward_block(Context& ctx, const LayerWeights& layer) {
    const std::size_t width = config().intermediate_size;
    float* x = ws().x.data();
    float* rows = ws().gate_up.data();
    project(ctx, x, layer.post_attention_norm, layer.mlp_in, Output::kAssign, rows, 2 * width);
    // down_proj reads rows `width` apart: the product is written to a compact array of its own.
    const auto [first, last] = ctx.share(tokens());
    for (std::size_t t = first; t < last; ++t) {
      const float* row = rows + t * 2 * width;
      d.kernels_.gate(
          {row, row + width, config().activation, width, ws().gated.data() + t * width});
    }
    // No barrier: project() starts with the same share of tokens.
    project(ctx, ws().gated.data(), layer.ffn_sub_norm, {&layer.down_proj, 1}, Output::kAdd, x,
            config().hidden_size);
  }

  void finish(Context& ctx) {
    const std::size_t width = config().hidden_size;
    if (hidden_states != nullptr) {
      const auto [first, last] = ctx.share(tokens());
      for (std::size_t t = first; t < last; ++t) {
        d.kernels_.rms_norm({ws().x.data() + t * width, d.final_norm_.data(), config().rms_norm_eps,
                             width, hidden_states + (d.layers_.size() * tokens() + t) * width});
      }
    }
    const std::size_t rows = batch.logit_rows.size();
    const auto [first, last] = ctx.share(rows);
    for (std::size_t r = first; r < last; ++r) {
      const auto t = static_cast<std::size_t>(batch.logit_rows[r]);
      d.kernels_.rms_norm({ws().x.data() + t * width, d.final_norm_.data(), config().rms_norm_eps,
                           width, ws().final_rows.data() + r * width});
    }
    ctx.barrier();
    if (rows == 0) return;
    d.head_.quantize(ctx, ws().final_rows.data());
    ctx.barrier();
    d.head_.run(ctx, ws().final_rows.data(), logits);
  }
};

Decoder::Decoder(DecoderConfig config, std::vector<LayerWeights> layers, DenseMatrix embedding,
                 std::vector<float> final_norm, DenseMatrix lm_head, bool screened_head,
                 int threads, Isa isa, std::size_t small_step)
    : config_(std::move(config)),
      layers_(std::move(layers)),
      embedding_(embedding),
      final_norm_(std::move(final_norm)),
      isa_(isa),
      kernels_(kernel_table(isa)),
      small_step_(small_step),
      pool_(threads),
      head_(lm_head, kernels_) {
  validate_model(config_, layers_, embedding_, final_norm_, lm_head);
  const auto add = [this](const Linear& linear) {
    multiplications_per_token_ += size_of(linear);
    linear_bytes_ += linear.matrix->bytes();
  };
  for (const LayerWeights& layer : layers_) {
    std::for_each(layer.attn_in.begin(), layer.attn_in.end(), add);
    std::for_each(layer.mlp_in.begin(), layer.mlp_in.end(), add);
    add(layer.o_proj);
    add(layer.down_proj);
  }
  if (screened_head) head_.build_screen(pool_);
}

void Decoder::reserve(const StepBatch& batch) {
  const DecoderConfig& c = config_;
  const std::size_t tokens = batch.tokens();
  const std::size_t widest = std::max({c.hidden_size, c.q_size(), c.intermediate_size});
  const auto threads = static_cast<std::size_t>(pool_.threads());
  Workspace& ws = workspace_;
  ws.x.reserve(tokens * c.hidden_size);
  ws.normed.reserve(tokens * widest);
  ws.linear_normed.reserve(tokens * widest);
  ws.qkv.reserve(tokens * c.qkv_size());
  ws.attention.reserve(tokens * c.q_size());
  ws.gate_up.reserve(tokens * 2 * c.intermediate_size);
  ws.gated.reserve(tokens * c.intermediate_size);
  ws.final_rows.reserve(batch.logit_rows.size() * c.hidden_size);
  ws.cos.reserve(tokens * c.head_dim / 2);
  ws.sin.reserve(tokens * c.head_dim / 2);
  ws.q.reserve(tokens * round_up(widest, kRowPadding));
  ws.act_scale.reserve(tokens);
  ws.act_sum.reserve(tokens);
  ws.token_sequence.reserve(tokens);
  for (std::size_t s = 0; s < batch.sequences(); ++s) {
    for (auto t = batch.seq_starts[s]; t < batch.seq_starts[s + 1]; ++t) {
      ws.token_sequence.data()[t] = static_cast<std::int32_t>(s);
    }
  }
  head_.prepare(batch.logit_rows.size(), batch.screening, pool_.threads());
  ws.panels_stride = round_up(ternary_scratch_bytes(widest), kCacheLine);
  ws.panels.reserve(threads * ws.panels_stride);

  const bool few = tokens * c.num_kv_heads < 8 * threads;
  const auto deepest = *std::max_element(batch.positions.begin(), batch.positions.end());
  ws.shared_splits = few ? static_cast<std::size_t>(deepest) / kSplitKeys + 1 : 0;
  const std::size_t parts = few ? tokens * c.num_kv_heads * ws.shared_splits : 2 * threads;
  ws.partials.reserve(parts * c.group() * (padded_head_dim(c.head_dim) + 2));
}

void Decoder::step(const StepBatch& batch, PagedCache& cache, float* logits, float* hidden_states) {
  validate_batch(config_, layers_.size(), batch, cache);
  const std::lock_guard lock(mutex_);
  reserve(batch);
  Run run{*this, batch, cache, logits, hidden_states};
  pool_.run(run, batch.tokens() * multiplications_per_token_ < small_step_);
}

}  // namespace ryz
