#include "model/attention_worker.h"

#include <algorithm>

namespace ryz {
namespace {

// Rows of a tile: enough that what is done once per page (widening it, fetching it) is little, few
// enough that their scores stay in L2.
constexpr std::size_t kTileRows = 64;

}  // namespace

AttentionWorker::AttentionWorker(const Step& step, ThreadPool::Context& ctx)
    : s_(step),
      ctx_(ctx),
      config_(step.config),
      kernels_(step.kernels),
      ws_(step.workspace),
      me_(static_cast<std::size_t>(ctx.index())) {}

void AttentionWorker::prepare(const DecoderConfig& config, const StepBatch& batch,
                              std::size_t threads, Workspace& ws) {
  const std::size_t most = std::max<std::size_t>(1, kTileRows / config.group());
  std::size_t tokens = 0;  // of the largest tile
  ws.tiles.clear();
  for (std::size_t s = 0; s < batch.sequences(); ++s) {
    const auto end = static_cast<std::size_t>(batch.seq_starts[s + 1]);
    for (auto t = static_cast<std::size_t>(batch.seq_starts[s]); t < end; t += most) {
      ws.tiles.push_back({s, t, std::min(most, end - t)});
      tokens = std::max(tokens, ws.tiles.back().tokens);
    }
  }
  // Later tokens have more keys, and what is longest goes first.
  std::reverse(ws.tiles.begin(), ws.tiles.end());

  const auto deepest = *std::max_element(batch.positions.begin(), batch.positions.end());
  const std::size_t splits = static_cast<std::size_t>(deepest) / kSplitKeys + 1;
  const std::size_t pairs = ws.tiles.size() * config.num_kv_heads;
  ws.shared_splits = splits > 1 && pairs < 4 * threads ? splits : 0;
  const std::size_t parts = ws.shared_splits == 0 ? threads : pairs * splits;
  const std::size_t rows = tokens * config.group();
  ws.part_rows = rows;
  ws.partials.reserve(parts * rows * (padded_head_dim(config.head_dim) + 2));
  ws.attention_stride =
      round_up(attention_scratch(rows, config.head_dim), kCacheLine / sizeof(float));
  ws.attention_scratch.reserve(threads * ws.attention_stride);
}

void AttentionWorker::run(std::size_t layer) {
  const std::size_t heads = config_.num_kv_heads;
  const auto [first, last] = ctx_.share(s_.batch.tokens() * heads);
  for (std::size_t i = first; i < last; ++i) rotate_and_store(layer, i / heads, i % heads);
  // Every thread is done with the layer before.
  if (me_ == 0) ws_.next_unit.store(0, std::memory_order_relaxed);
  ctx_.barrier();
  ws_.shared_splits == 0 ? attend_whole(layer) : attend_shared_splits(layer);
  ctx_.barrier();
}

// Norms and rotates the query heads of a kv head and its key, and stores key and value.
void AttentionWorker::rotate_and_store(std::size_t layer, std::size_t t, std::size_t kv_head) {
  const DecoderConfig& c = config_;
  const LayerWeights& weights = s_.layers[layer];
  const std::size_t row = (weights.rope * s_.batch.tokens() + t) * (c.head_dim / 2);
  const float* cos = ws_.cos.data() + row;
  const float* sin = ws_.sin.data() + row;
  float* token = ws_.qkv.data() + t * c.qkv_size();
  float* q = token + kv_head * c.group() * c.head_dim;
  float* k = token + c.q_size() + kv_head * c.head_dim;
  for (std::size_t h = 0; h < c.group(); ++h) norm_head(weights.q_norm, q + h * c.head_dim);
  norm_head(weights.k_norm, k);
  kernels_.rope({q, cos, sin, c.group(), c.head_dim});
  kernels_.rope({k, cos, sin, 1, c.head_dim});
  const auto slot = static_cast<std::size_t>(s_.batch.slots[t]);
  kernels_.kv_write({k, k + c.kv_size(), c.head_dim,
                     s_.cache.page(layer, slot / kPageTokens, kv_head), slot % kPageTokens,
                     s_.cache.dtype()});
}

void AttentionWorker::norm_head(const std::vector<float>& gain, float* head) {
  if (gain.empty()) return;
  kernels_.rms_norm({head, gain.data(), config_.rms_norm_eps, config_.head_dim, head});
}

// Each thread does whole (tile, kv head) pairs, head by head, so that it finds pages in cache.
void AttentionWorker::attend_whole(std::size_t layer) {
  const Part whole = part(me_);
  const std::size_t tiles = ws_.tiles.size();
  for (std::size_t i = take(); i < tiles * config_.num_kv_heads; i = take()) {
    const AttentionTile& tile = ws_.tiles[i % tiles];
    const bool has_sinks = s_.layers[layer].attention_sinks != 0;
    const std::size_t begin = has_sinks ? 0 : first_split(layer, tile) * kSplitKeys;
    attend(layer, tile, i / tiles, begin, key_end(tile), whole);
    finish(tile, i / tiles, whole);
  }
}

// Few pairs with long contexts: threads share the splits of each, and fold them after a barrier.
void AttentionWorker::attend_shared_splits(std::size_t layer) {
  const std::size_t heads = config_.num_kv_heads;
  const std::size_t pairs = ws_.tiles.size() * heads;
  for (std::size_t i = take(); i < pairs * ws_.shared_splits; i = take()) {
    const std::size_t split = i / pairs;
    const std::size_t pair = i % pairs;
    const AttentionTile& tile = ws_.tiles[pair / heads];
    const std::size_t begin = split * kSplitKeys;
    if (is_hidden(layer, tile, split) || begin >= key_end(tile)) continue;
    attend(layer, tile, pair % heads, begin, std::min(begin + kSplitKeys, key_end(tile)),
           part(pair * ws_.shared_splits + split));
  }
  ctx_.barrier();
  for (std::size_t pair = me_; pair < pairs; pair += static_cast<std::size_t>(ctx_.threads())) {
    const AttentionTile& tile = ws_.tiles[pair / heads];
    finish(tile, pair % heads, fold(layer, tile, pair));
  }
}

// Attends to keys [key_begin, key_end) for the tokens of the tile that see any of them; their rows
// come first in `into`.
void AttentionWorker::attend(std::size_t layer, const AttentionTile& tile, std::size_t g,
                             std::size_t key_begin, std::size_t key_end, const Part& into) {
  const DecoderConfig& c = config_;
  const std::size_t skipped = key_begin - std::min(key_begin, position(tile));
  const std::size_t t = tile.first + skipped;
  kernels_.attention({ws_.qkv.data() + t * c.qkv_size() + g * c.group() * c.head_dim,
                      c.qkv_size(),
                      tile.tokens - skipped,
                      c.group(),
                      c.head_dim,
                      c.attention_scale,
                      c.attention_softcap,
                      s_.layers[layer].sliding_window,
                      s_.layers[layer].attention_sinks,
                      s_.cache.page(layer, 0, g),
                      s_.cache.block_bytes(),
                      s_.batch.block_tables.data() + tile.sequence * s_.batch.max_blocks,
                      s_.cache.dtype(),
                      position(tile) + skipped,
                      key_begin,
                      key_end,
                      into.max,
                      into.sum,
                      into.out,
                      ws_.attention_scratch.data() + me_ * ws_.attention_stride});
}

// Folds the splits of a pair into its first, which it returns.
AttentionWorker::Part AttentionWorker::fold(std::size_t layer, const AttentionTile& tile,
                                            std::size_t pair) {
  std::size_t first = 0;
  while (is_hidden(layer, tile, first)) ++first;
  const Part into = part(pair * ws_.shared_splits + first);
  for (std::size_t split = first + 1; split * kSplitKeys < key_end(tile); ++split) {
    if (is_hidden(layer, tile, split)) continue;
    const std::size_t begin = split * kSplitKeys;
    const Part from = part(pair * ws_.shared_splits + split);
    const std::size_t skipped = begin - std::min(begin, position(tile));
    const std::size_t row = skipped * config_.group();
    kernels_.attention_merge({tile.tokens * config_.group() - row, config_.head_dim, from.max,
                              from.sum, from.out, into.max + row, into.sum + row,
                              into.out + row * padded_head_dim(config_.head_dim)});
  }
  return into;
}

void AttentionWorker::finish(const AttentionTile& tile, std::size_t g, const Part& whole) {
  const std::size_t group = config_.group();
  for (std::size_t t = 0; t < tile.tokens; ++t) {
    const std::size_t row = t * group;
    kernels_.attention_finish({group, config_.head_dim, whole.sum + row,
                               whole.out + row * padded_head_dim(config_.head_dim),
                               ws_.attention.data() + (tile.first + t) * config_.q_size() +
                                   g * group * config_.head_dim});
  }
}

AttentionWorker::Part AttentionWorker::part(std::size_t index) const {
  const std::size_t out_size = ws_.part_rows * padded_head_dim(config_.head_dim);
  float* base = ws_.partials.data() + index * (out_size + 2 * ws_.part_rows);
  return {base, base + out_size, base + out_size + ws_.part_rows};
}

// Whether no token of the tile sees a key of the split, for all that its window says.
bool AttentionWorker::is_hidden(std::size_t layer, const AttentionTile& tile,
                                std::size_t split) const {
  return split < first_split(layer, tile) && split * kSplitKeys >= s_.layers[layer].attention_sinks;
}

// The first split of which a token of the tile has a key in its window.
std::size_t AttentionWorker::first_split(std::size_t layer, const AttentionTile& tile) const {
  const std::size_t window = s_.layers[layer].sliding_window;
  const std::size_t end = position(tile) + 1;
  return window == 0 || end <= window ? 0 : (end - window) / kSplitKeys;
}

std::size_t AttentionWorker::position(const AttentionTile& tile) const {
  return static_cast<std::size_t>(s_.batch.positions[tile.first]);
}

std::size_t AttentionWorker::key_end(const AttentionTile& tile) const {
  return position(tile) + tile.tokens;
}

}  // namespace ryz
