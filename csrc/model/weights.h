// What a decoder is made of. Architectures differ in DecoderConfig and in which optional parts of
// LayerWeights are present, not in code.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "base/dtype.h"
#include "kernels/dispatch.h"
#include "quant/grouped_matrix.h"
#include "quant/ternary_matrix.h"
#include "quant/ternary_rows.h"

namespace ryz {

struct DecoderConfig {
  std::size_t hidden_size;
  std::size_t num_heads;
  std::size_t num_kv_heads;
  std::size_t head_dim;
  std::size_t intermediate_size;
  std::size_t vocab_size;
  float rms_norm_eps;
  Activation activation;
  // Rotary tables. A layer says which rope of a set, a sequence which set.
  std::vector<double> inv_freq;  // [rope_sets, ropes, head_dim / 2]
  std::size_t ropes;
  std::size_t rope_sets;
  std::vector<double> rope_attention_factors;  // [ropes]: multiplies cos and sin
  float embedding_scale;                       // multiplies embedding rows
  float attention_scale;                       // multiplies scores
  float attention_softcap;                     // of scores, 0 for none
  float final_softcap;                         // of logits, 0 for none

  std::size_t group() const { return num_heads / num_kv_heads; }
  std::size_t q_size() const { return num_heads * head_dim; }
  std::size_t kv_size() const { return num_kv_heads * head_dim; }
  std::size_t qkv_size() const { return q_size() + 2 * kv_size(); }
};

// A view of dense weights, which `owner`, or somebody else where there is none, keeps alive.
struct DenseMatrix {
  const void* data;
  DType dtype;
  std::size_t rows;
  std::size_t columns;
  std::shared_ptr<void> owner = nullptr;
};

// Weights of any kind. What each takes as its input rows is in linear_worker.h.
using Ternary = std::shared_ptr<const TernaryMatrix>;
using Dense = std::shared_ptr<const DenseMatrix>;
using Grouped = std::shared_ptr<const GroupedMatrix>;
using Matrix = std::variant<Ternary, Dense, Grouped>;

// A row for each token of the vocabulary: embeddings are looked up in it, logits computed from it.
struct VocabularyMatrix {
  explicit VocabularyMatrix(const DenseMatrix& matrix);
  explicit VocabularyMatrix(Grouped matrix);

  // One of the two is what is stored.
  const DenseMatrix& dense() const { return std::get<DenseMatrix>(stored); }
  const GroupedMatrix* grouped() const;
  std::size_t bytes() const;
  // Rows [first, last): where they are, or decoded to `decoded` [last - first, columns].
  DenseMatrix slice(std::size_t first, std::size_t last, float* decoded) const;

  std::size_t rows;
  std::size_t columns;
  std::variant<DenseMatrix, Grouped> stored;
};

// A linear; `norm`, when not empty, is an RMSNorm on its own input, and `bias` is added to what the
// product, and a residual where there is one, come to. An empty kernel name leaves the choice for a
// ternary or grouped matrix to the tier; the decoder looks it up.
struct Linear {
  Matrix matrix;
  std::vector<float> norm;
  float norm_eps;
  std::string kernel_name;
  std::vector<float> bias = {};
  const TernaryKernel* ternary_kernel = nullptr;
  const GroupedKernel* grouped_kernel = nullptr;

  std::size_t in_features() const;
  std::size_t out_features() const;
  std::size_t bytes() const;
  // Rows are shared out in units of so many.
  std::size_t unit_rows() const;
  std::size_t units() const { return (out_features() + unit_rows() - 1) / unit_rows(); }
  // Of the lookup tables that its kernel reads for one token, 0 for none.
  std::size_t table_bytes() const;
  const TernaryMatrix& ternary() const { return *std::get<Ternary>(matrix); }
};

struct LayerWeights {
  std::vector<float> input_norm;
  std::vector<Linear> attn_in;  // q, k, v rows, in one matrix or several
  std::vector<float> q_norm;    // optional, [head_dim]: of every head, before it is rotated
  std::vector<float> k_norm;
  std::size_t sliding_window;        // keys a token sees, its own among them; 0 for all
  std::size_t attention_sinks;       // with a window, the first keys, which every token sees too
  std::size_t rope;                  // which of a set in DecoderConfig::inv_freq
  std::vector<float> attn_sub_norm;  // optional
  Linear o_proj;
  std::vector<float> attn_output_norm;  // optional: of the block's output, before it is added
  std::vector<float> ffn_norm;
  std::vector<Linear> mlp_in;       // gate, up rows
  std::vector<float> ffn_sub_norm;  // optional
  Linear down_proj;
  std::vector<float> ffn_output_norm;  // optional
  // Optional copies of the up rows and of the down columns, one record a channel, with which a step
  // of one token passes over channels that are zero.
  std::shared_ptr<const TernaryRows> up_rows;
  std::shared_ptr<const TernaryRows> down_columns;

  // Channels of the feed-forward: intermediate_size less those that are always zero.
  std::size_t channels() const { return down_proj.in_features(); }
};

}  // namespace ryz
