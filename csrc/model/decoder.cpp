#include "model/decoder.h"

#include <algorithm>
#include <utility>

#include "model/attention_worker.h"
#include "model/step_worker.h"
#include "model/validate.h"

namespace ryz {

Decoder::Decoder(DecoderConfig config, std::vector<LayerWeights> layers, VocabularyMatrix embedding,
                 std::vector<float> final_norm, VocabularyMatrix lm_head, HeadKind head_kind,
                 std::map<std::string, Buffer> coded_head, int threads, Isa isa,
                 std::size_t small_step)
    : config_(std::move(config)),
      layers_(std::move(layers)),
      embedding_(std::move(embedding)),
      final_norm_(std::move(final_norm)),
      isa_(isa),
      kernels_(kernel_table(isa)),
      small_step_(small_step),
      pool_(threads),
      head_(lm_head, head_kind, config_.final_softcap, kernels_) {
  validate_model(config_, layers_, embedding_, final_norm_, lm_head);
  const auto add = [this](Linear& linear) {
    if (std::holds_alternative<Ternary>(linear.matrix)) {
      linear.ternary_kernel = &ternary_kernel(isa_, linear.ternary().format(), linear.kernel_name);
    } else if (const auto* grouped = std::get_if<Grouped>(&linear.matrix)) {
      linear.grouped_kernel = &grouped_kernel(isa_, (*grouped)->format().bits, linear.kernel_name);
    }
    workspace_.table_stride = std::max(workspace_.table_stride, linear.table_bytes());
    multiplications_per_token_ += linear.out_features() * linear.in_features();
    linear_bytes_ += linear.bytes();
  };
  for (LayerWeights& layer : layers_) {
    std::for_each(layer.attn_in.begin(), layer.attn_in.end(), add);
    std::for_each(layer.mlp_in.begin(), layer.mlp_in.end(), add);
    add(layer.o_proj);
    add(layer.down_proj);
  }
  workspace_.channel_counts.resize(layers_.size() * static_cast<std::size_t>(pool_.threads()));
  if (coded_head.empty()) {
    head_.build(pool_);
  } else {
    head_.adopt(std::move(coded_head));
  }
}

std::vector<ChannelCounts> Decoder::channel_counts() const {
  const auto threads = static_cast<std::size_t>(pool_.threads());
  std::vector<ChannelCounts> layers(layers_.size());
  for (std::size_t i = 0; i < workspace_.channel_counts.size(); ++i) {
    const ChannelCounts& part = workspace_.channel_counts[i];
    ChannelCounts& whole = layers[i / threads];
    whole.steps += part.steps;
    whole.open_gates += part.open_gates;
    whole.nonzero += part.nonzero;
  }
  return layers;
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
  ws.qkv.reserve(tokens * c.qkv_size());
  ws.attention.reserve(tokens * c.q_size());
  ws.gate_up.reserve(tokens * 2 * c.intermediate_size);
  ws.gated.reserve(rows * c.intermediate_size);
  ws.block_output.reserve(tokens * c.hidden_size);
  ws.final_rows.reserve(batch.logit_rows.size() * c.hidden_size);
  ws.cos.reserve(c.ropes * tokens * c.head_dim / 2);
  ws.sin.reserve(c.ropes * tokens * c.head_dim / 2);
  ws.q.reserve(rows * round_up(widest, kRowPadding));
  ws.act_scale.reserve(rows);
  ws.act_sum.reserve(rows);
  ws.block_q.reserve(rows * padded_blocks(widest) * kScaleBlock);
  ws.blocks.reserve(rows * padded_blocks(widest));
  ws.tables.reserve(threads * ws.table_stride);
  head_.prepare(batch.logit_rows.size(), batch.screening, pool_.threads());
  ws.selected_stride = round_up(c.intermediate_size, kRowPadding) + kSelectSlack;
  ws.selected.reserve(threads * ws.selected_stride);
  ws.column_sums_stride = round_up(selected_columns_scratch_bytes(c.hidden_size), kCacheLine);
  ws.column_sums.reserve(threads * ws.column_sums_stride);
  AttentionWorker::prepare(c, batch, threads, ws);
}

void Decoder::step(const StepBatch& batch, PagedCache& cache, float* logits, float* hidden_states) {
  validate_batch(config_, layers_.size(), batch, cache);
  const std::lock_guard lock(mutex_);
  reserve(batch);
  const Step step{config_,  layers_, embedding_,    final_norm_,
                  kernels_, head_,   workspace_,    batch,
                  cache,    logits,  hidden_states, static_cast<std::size_t>(pool_.threads())};
  auto body = [&step](ThreadPool::Context& ctx) { StepWorker(step, ctx).run(); };
  pool_.run(body, batch.tokens() * multiplications_per_token_ < small_step_);
}

}  // namespace ryz
