#include "model/decoder.h"

#include <algorithm>
#include <utility>

#include "model/step_worker.h"
#include "model/validate.h"

namespace ryz {
namespace {

std::size_t size_of(const Linear& linear) {
  return linear.matrix->out_features() * linear.matrix->in_features();
}

}  // namespace

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
  const auto add = [this](Linear& linear) {
    linear.kernel = &ternary_kernel(isa_, linear.matrix->format(), linear.kernel_name);
    multiplications_per_token_ += size_of(linear);
    linear_bytes_ += linear.matrix->bytes();
  };
  for (LayerWeights& layer : layers_) {
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
  // With fewer tokens than threads, each thread prepares every row for itself (StepWorker).
  const std::size_t rows = tokens < threads ? tokens * threads : tokens;
  ws.widest = widest;
  ws.normed.reserve(rows * widest);
  ws.linear_normed.reserve(rows * widest);
  ws.qkv.reserve(tokens * c.qkv_size());
  ws.attention.reserve(tokens * c.q_size());
  ws.gate_up.reserve(tokens * 2 * c.intermediate_size);
  ws.gated.reserve(rows * c.intermediate_size);
  ws.final_rows.reserve(batch.logit_rows.size() * c.hidden_size);
  ws.cos.reserve(tokens * c.head_dim / 2);
  ws.sin.reserve(tokens * c.head_dim / 2);
  ws.q.reserve(rows * round_up(widest, kRowPadding));
  ws.act_scale.reserve(rows);
  ws.act_sum.reserve(rows);
  ws.token_sequence.reserve(tokens);
  for (std::size_t s = 0; s < batch.sequences(); ++s) {
    for (auto t = batch.seq_starts[s]; t < batch.seq_starts[s + 1]; ++t) {
      ws.token_sequence.data()[t] = static_cast<std::int32_t>(s);
    }
  }
  head_.prepare(batch.logit_rows.size(), batch.screening, pool_.threads());
  ws.panels_stride = round_up(ternary_scratch_bytes(widest), kCacheLine);
  ws.panels.reserve(threads * ws.panels_stride);

  const auto deepest = *std::max_element(batch.positions.begin(), batch.positions.end());
  const std::size_t splits = static_cast<std::size_t>(deepest) / kSplitKeys + 1;
  const std::size_t pairs = tokens * c.num_kv_heads;
  ws.shared_splits = splits > 1 && pairs < 8 * threads ? splits : 0;
  const std::size_t parts = ws.shared_splits == 0 ? 2 * threads : pairs * splits;
  ws.partials.reserve(parts * c.group() * (padded_head_dim(c.head_dim) + 2));
}

void Decoder::step(const StepBatch& batch, PagedCache& cache, float* logits, float* hidden_states) {
  validate_batch(config_, layers_.size(), batch, cache);
  const std::lock_guard lock(mutex_);
  reserve(batch);
  const Step step{config_,    layers_, embedding_, final_norm_, kernels_,     head_,
                  workspace_, batch,   cache,      logits,      hidden_states};
  auto body = [&step](ThreadPool::Context& ctx) { StepWorker(step, ctx).run(); };
  pool_.run(body, batch.tokens() * multiplications_per_token_ < small_step_);
}

}  // namespace ryz
