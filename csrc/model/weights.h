// What a decoder is made of. Architectures differ in DecoderConfig and in which optional parts of
// LayerWeights are present, not in code.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "kernels/dispatch.h"
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
  std::vector<double> inv_freq;  // [head_dim / 2]
  double rope_attention_factor;  // multiplies cos and sin

  std::size_t group() const { return num_heads / num_kv_heads; }
  std::size_t q_size() const { return num_heads * head_dim; }
  std::size_t kv_size() const { return num_kv_heads * head_dim; }
  std::size_t qkv_size() const { return q_size() + 2 * kv_size(); }
};

// A ternary linear; `norm`, when not empty, is an RMSNorm on its own input. An empty kernel name
// leaves the choice to the tier; the decoder looks it up.
struct Linear {
  std::shared_ptr<const TernaryMatrix> matrix;
  std::vector<float> norm;
  float norm_eps;
  std::string kernel_name;
  const TernaryKernel* kernel = nullptr;
};

struct LayerWeights {
  std::vector<float> input_norm;
  std::vector<Linear> attn_in;       // q, k, v rows, in one matrix or several
  std::vector<float> attn_sub_norm;  // optional
  Linear o_proj;
  std::vector<float> post_attention_norm;
  std::vector<Linear> mlp_in;       // gate, up rows
  std::vector<float> ffn_sub_norm;  // optional
  Linear down_proj;
  // Optional copies of the up rows and of the down columns, one record a channel, with which a step
  // of one token passes over channels that are zero.
  std::shared_ptr<const TernaryRows> up_rows;
  std::shared_ptr<const TernaryRows> down_columns;

  // Channels of the feed-forward: intermediate_size less those that are always zero.
  std::size_t channels() const { return down_proj.matrix->in_features(); }
};

// A view of dense weights that somebody else keeps alive.
struct DenseMatrix {
  const void* data;
  DType dtype;
  std::size_t rows;
  std::size_t columns;
};

}  // namespace ryz
