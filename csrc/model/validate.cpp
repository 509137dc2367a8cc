#include "model/validate.h"

#include <cmath>
#include <string>

#include "base/error.h"

namespace ryz {
namespace {

[[noreturn]] void fail(const std::string& message) { throw ValidationError(message); }

void expect(bool holds, const std::string& message) {
  if (!holds) fail(message);
}

void expect_size(const std::string& what, std::size_t found, std::size_t expected) {
  expect(found == expected, "[decoder] " + what + " has " + std::to_string(found) +
                                " elements, expected " + std::to_string(expected));
}

void check_config(const DecoderConfig& c) {
  // What a ternary matrix can have at most; products of two such sizes cannot overflow.
  for (const std::size_t size : {c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim,
                                 c.intermediate_size, c.vocab_size}) {
    expect(size > 0 && size <= kMaxInFeatures,
           "[decoder] every size in the configuration must be within 1.." +
               std::to_string(kMaxInFeatures) + ", got " + std::to_string(size));
  }
  expect(c.num_heads % c.num_kv_heads == 0, "[decoder] num_heads " + std::to_string(c.num_heads) +
                                                " is not a multiple of num_kv_heads " +
                                                std::to_string(c.num_kv_heads));
  expect(c.head_dim % 2 == 0, "[decoder] head_dim must be even for rotary embeddings");
  expect(c.ropes > 0 && c.rope_sets > 0, "[decoder] inv_freq needs at least one row");
  expect_size("inv_freq", c.inv_freq.size(), c.rope_sets * c.ropes * (c.head_dim / 2));
  expect_size("rope_attention_factors", c.rope_attention_factors.size(), c.ropes);
  const auto expect_from_zero = [](const std::string& name, float value) {
    expect(value >= 0.0f && std::isfinite(value),
           "[decoder] " + name + " must be finite and not negative");
  };
  expect_from_zero("attention_softcap", c.attention_softcap);
  expect_from_zero("final_softcap", c.final_softcap);
  expect(std::isfinite(c.embedding_scale) && std::isfinite(c.attention_scale),
         "[decoder] embedding_scale and attention_scale must be finite");
}

// An optional norm: what is not there has no size to be wrong.
void check_norm(const std::string& what, const std::vector<float>& gain, std::size_t size) {
  if (!gain.empty()) expect_size(what, gain.size(), size);
}

void check_kernel(const std::string& what, const Linear& linear) {
  expect(linear.kernel_name.empty() || !std::holds_alternative<Dense>(linear.matrix),
         "[decoder] " + what + " is dense, so that there is no kernel '" + linear.kernel_name +
             "' to choose for it");
}

// Packed matrices are filled row by row.
void check_filled(const std::string& what, std::size_t filled, std::size_t rows) {
  expect(filled == rows, "[decoder] " + what + " has " + std::to_string(filled) + " of " +
                             std::to_string(rows) + " rows filled");
}

void check_linears(const std::string& what, const std::vector<Linear>& linears, std::size_t in,
                   std::size_t out) {
  std::size_t rows = 0;
  for (const Linear& linear : linears) {
    expect(linear.in_features() == in, "[decoder] " + what + " takes " +
                                           std::to_string(linear.in_features()) +
                                           " features, expected " + std::to_string(in));
    check_kernel(what, linear);
    if (const auto* ternary = std::get_if<Ternary>(&linear.matrix)) {
      check_filled(what, (*ternary)->rows_packed(), linear.out_features());
    } else if (const auto* grouped = std::get_if<Grouped>(&linear.matrix)) {
      check_filled(what, (*grouped)->rows_packed(), linear.out_features());
    }
    check_norm(what + " norm", linear.norm, in);
    check_norm(what + " bias", linear.bias, linear.out_features());
    rows += linear.out_features();
  }
  expect(rows == out, "[decoder] " + what + " gives " + std::to_string(rows) +
                          " features, expected " + std::to_string(out));
}

void check_selection(const std::string& name, const LayerWeights& layer, const DecoderConfig& c) {
  const std::size_t channels = layer.channels();
  for (const TernaryRows* rows : {layer.up_rows.get(), layer.down_columns.get()}) {
    if (rows == nullptr) continue;
    const auto is_plain = [](const Linear& linear) {
      return std::holds_alternative<Ternary>(linear.matrix) && linear.bias.empty();
    };
    expect(c.activation == Activation::kRelu2 && layer.mlp_in.size() == 1 &&
               channels % kPanelRows == 0 && layer.down_proj.norm.empty() &&
               is_plain(layer.mlp_in.front()) && is_plain(layer.down_proj) &&
               layer.ffn_output_norm.empty(),
           "[decoder] " + name +
               "cannot pass over zeros: that takes relu2, one ternary matrix of " +
               "gate and up rows, a multiple of " + std::to_string(kPanelRows) +
               " channels, a ternary down_proj without a norm of its own, no biases and no " +
               "ffn_output_norm");
    expect(rows->rows() == channels && rows->columns() == c.hidden_size,
           "[decoder] " + name + "up_rows and down_columns must be [" + std::to_string(channels) +
               ", " + std::to_string(c.hidden_size) + "]");
  }
}

// Whether a norm takes the mean over the channels there are, rather than over all.
bool misses_channels(const LayerWeights& layer) {
  const bool is_ternary = std::holds_alternative<Ternary>(layer.down_proj.matrix);
  return !layer.down_proj.norm.empty() || (!is_ternary && !layer.ffn_sub_norm.empty());
}

void check_vocabulary(const std::string& what, const VocabularyMatrix& matrix,
                      const DecoderConfig& c) {
  expect(matrix.rows == c.vocab_size && matrix.columns == c.hidden_size,
         "[decoder] " + what + " is [" + std::to_string(matrix.rows) + ", " +
             std::to_string(matrix.columns) + "], expected [" + std::to_string(c.vocab_size) +
             ", " + std::to_string(c.hidden_size) + "]");
  if (matrix.grouped() != nullptr) {
    check_filled(what, matrix.grouped()->rows_packed(), matrix.rows);
  }
}

// Runs for every token and page of every step: a message is put together only to be thrown.
void check_sequence(const StepBatch& batch, const PagedCache& cache, std::size_t s) {
  const auto fail_here = [s](const std::string& what) {
    fail("[step] sequence " + std::to_string(s) + " " + what);
  };
  const auto begin = static_cast<std::size_t>(batch.seq_starts[s]);
  const auto end = static_cast<std::size_t>(batch.seq_starts[s + 1]);
  const auto table = batch.block_tables.subspan(s * batch.max_blocks, batch.max_blocks);
  if (batch.positions[begin] < 0) fail_here("starts at a negative position");
  const auto first = static_cast<std::size_t>(batch.positions[begin]);
  const std::size_t last = first + (end - begin) - 1;
  for (std::size_t t = begin; t < end; ++t) {
    if (batch.positions[t] < 0 ||
        static_cast<std::size_t>(batch.positions[t]) != first + t - begin) {
      fail_here("has positions that do not ascend by one");
    }
  }
  if (last / kPageTokens >= batch.max_blocks) {
    fail_here("reaches position " + std::to_string(last) + " beyond its block table");
  }
  for (std::size_t i = 0; i <= last / kPageTokens; ++i) {
    if (table[i] < 0 || static_cast<std::size_t>(table[i]) >= cache.blocks()) {
      fail_here("lists block " + std::to_string(table[i]) + ", cache has " +
                std::to_string(cache.blocks()));
    }
  }
  for (std::size_t t = begin; t < end; ++t) {
    const std::size_t position = first + t - begin;
    const std::size_t slot = static_cast<std::size_t>(table[position / kPageTokens]) * kPageTokens +
                             position % kPageTokens;
    if (batch.slots[t] < 0 || static_cast<std::size_t>(batch.slots[t]) != slot) {
      fail_here("writes position " + std::to_string(position) +
                " to a slot that its block table does not give");
    }
  }
}

}  // namespace

void validate_model(const DecoderConfig& c, const std::vector<LayerWeights>& layers,
                    const VocabularyMatrix& embedding, const std::vector<float>& final_norm,
                    const VocabularyMatrix& lm_head) {
  check_config(c);
  expect(!layers.empty(), "[decoder] a model needs at least one layer");
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerWeights& layer = layers[i];
    const std::string name = "layer " + std::to_string(i) + " ";
    expect_size(name + "input_norm", layer.input_norm.size(), c.hidden_size);
    expect_size(name + "ffn_norm", layer.ffn_norm.size(), c.hidden_size);
    check_norm(name + "q_norm", layer.q_norm, c.head_dim);
    check_norm(name + "k_norm", layer.k_norm, c.head_dim);
    check_norm(name + "attn_sub_norm", layer.attn_sub_norm, c.q_size());
    check_norm(name + "attn_output_norm", layer.attn_output_norm, c.hidden_size);
    check_norm(name + "ffn_output_norm", layer.ffn_output_norm, c.hidden_size);
    expect(layer.rope < c.ropes, "[decoder] " + name + "takes rope " + std::to_string(layer.rope) +
                                     " of " + std::to_string(c.ropes));
    const std::size_t channels = layer.channels();
    expect(channels <= c.intermediate_size,
           "[decoder] " + name + "has " + std::to_string(channels) +
               " feed-forward channels, expected at most " + std::to_string(c.intermediate_size));
    check_norm(name + "ffn_sub_norm", layer.ffn_sub_norm, channels);
    expect(channels == c.intermediate_size || !misses_channels(layer),
           "[decoder] " + name + "leaves channels out, which a norm of down_proj's own would " +
               "miss, or one before a down_proj that is not ternary");
    check_linears(name + "attn_in", layer.attn_in, c.hidden_size, c.qkv_size());
    check_linears(name + "o_proj", {layer.o_proj}, c.q_size(), c.hidden_size);
    check_linears(name + "mlp_in", layer.mlp_in, c.hidden_size, 2 * channels);
    check_linears(name + "down_proj", {layer.down_proj}, channels, c.hidden_size);
    check_selection(name, layer, c);
  }
  check_vocabulary("embedding", embedding, c);
  check_vocabulary("lm_head", lm_head, c);
  expect_size("final_norm", final_norm.size(), c.hidden_size);
}

void validate_batch(const DecoderConfig& c, std::size_t layers, const StepBatch& batch,
                    const PagedCache& cache) {
  const std::size_t tokens = batch.tokens();
  expect(cache.layers() == layers && cache.kv_heads() == c.num_kv_heads &&
             cache.head_dim() == c.head_dim,
         "[step] the cache was made for another model shape");
  expect(tokens > 0, "[step] the batch is empty");
  expect(batch.positions.size() == tokens && batch.slots.size() == tokens,
         "[step] token_ids, positions and slots differ in length");
  expect(batch.seq_starts.size() >= 2, "[step] seq_starts needs at least two entries");
  expect(batch.block_tables.size() == batch.sequences() * batch.max_blocks,
         "[step] block_tables does not have one row per sequence");
  expect(
      batch.seq_starts.front() == 0 && static_cast<std::size_t>(batch.seq_starts.back()) == tokens,
      "[step] seq_starts must run from 0 to the number of tokens");
  for (std::size_t s = 0; s < batch.sequences(); ++s) {
    expect(batch.seq_starts[s] < batch.seq_starts[s + 1],
           "[step] seq_starts must ascend: sequence " + std::to_string(s) + " has no tokens");
  }
  for (std::size_t t = 0; t < tokens; ++t) {
    const std::int32_t id = batch.token_ids[t];
    if (id < 0 || static_cast<std::size_t>(id) >= c.vocab_size) {
      fail("[step] token id " + std::to_string(id) + " is outside a vocabulary of " +
           std::to_string(c.vocab_size));
    }
  }
  for (std::size_t s = 0; s < batch.sequences(); ++s) check_sequence(batch, cache, s);
  expect(batch.rope_sets.empty() || batch.rope_sets.size() == batch.sequences(),
         "[step] rope_sets does not have one entry per sequence");
  for (const std::int32_t set : batch.rope_sets) {
    expect(
        set >= 0 && static_cast<std::size_t>(set) < c.rope_sets,
        "[step] rope set " + std::to_string(set) + " is not one of " + std::to_string(c.rope_sets));
  }
  expect(batch.screening.empty() || batch.screening.size() == batch.logit_rows.size(),
         "[step] screening does not have one entry per logit row");
  for (const Screening& screening : batch.screening) {
    expect(screening.top >= 0 && screening.margin >= 0.0f,
           "[step] screening needs top >= 0 and margin >= 0");
    for (const std::int32_t id : screening.known) {
      expect(id >= 0 && static_cast<std::size_t>(id) < c.vocab_size,
             "[step] screen_known has a token id outside the vocabulary");
    }
  }
  for (const std::int32_t row : batch.logit_rows) {
    if (row < 0 || static_cast<std::size_t>(row) >= tokens) {
      fail("[step] logit row " + std::to_string(row) + " is outside a batch of " +
           std::to_string(tokens) + " tokens");
    }
  }
}

}  // namespace ryz
