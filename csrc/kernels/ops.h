// The contract of every kernel. An op takes one POD argument struct, does its share of the work and
// returns: noexcept, no allocation, no threads, no globals. Callers validate.
//
// The exactness contract asks this of each op: the order of floating-point operations behind an
// output element depends on the tier, the row's own data and its key positions only, never on
// how many other rows, tokens or threads take part.
//
// Unless a field says otherwise: no alignment needed, no aliasing between inputs and outputs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "quant/ternary.h"

namespace ryz {

enum class Activation : std::uint8_t { kSilu, kRelu2 };

// out[i] = x[i] / sqrt(mean(x^2) + eps) * gain[i], i < k. Reduction: lane-wise float sums, then a
// fixed tree. out may be x.
struct RmsNormArgs {
  const float* x;
  const float* gain;
  float eps;
  std::size_t k;
  float* out;
};

// Per-token absmax int8: s = 127 / max(absmax(x), 1e-5), q = clamp(round_half_even(x * s)).
// Writes q[0, k_padded) with zeros past k, scale = max(absmax, 1e-5) / 127 and sum = sum of q.
// A NaN or infinity in x makes scale non-finite, so that it reaches the logits.
struct QuantizeArgs {
  const float* x;
  std::size_t k;
  std::size_t k_padded;
  std::int8_t* q;
  float* scale;
  std::int32_t* sum;
};

// Ternary linear over the row panels [panel_begin, panel_end) of a ternary.h layout, two-bit for
// every ternary2_linear and five-trit for every ternary5_linear:
//   out[t, n] = (sum_k q[t, k] * w[n, k]) * (row_scale[n] * act_scale[t]) + residual[t, n]
// q is within [-127, 127], as quantize makes it. The sum is exact in int32 for every
// k <= kMaxInFeatures (partial sums may wrap, the result fits), so all of them give the same bits.
struct TernaryLinearArgs {
  const std::uint8_t* packed;  // [panels, blocks, 256], 64-byte aligned
  const float* row_scale;      // [panels * 64]
  std::size_t rows;            // N; rows past it in the last panel are not written
  std::size_t blocks;          // ceil(k / block_columns)
  std::size_t panel_begin;
  std::size_t panel_end;
  const std::int8_t* q;  // [tokens, q_stride], zeros from k to blocks * block_columns
  std::size_t q_stride;
  const float* act_scale;       // [tokens]
  const std::int32_t* act_sum;  // [tokens]
  std::size_t tokens;
  float* out;  // [tokens, out_stride]
  std::size_t out_stride;
  const float* residual;  // as out, or null for none; may be out itself
  std::uint8_t* scratch;  // ternary_scratch_bytes(k), 64-byte aligned, per thread
};

// Room for two row groups expanded to one byte per weight (prefill reads them from L2).
constexpr std::size_t ternary_scratch_bytes(std::size_t k) {
  return (k + kRowPadding) * 2 * kGroupRows;
}

// Rotary embedding of one token, in place: for each of `heads` rows of head_dim,
//   (a, b) = (x[i], x[i + head_dim/2]) -> (a*cos[i] - b*sin[i], b*cos[i] + a*sin[i]).
struct RopeArgs {
  float* x;
  const float* cos;  // [head_dim / 2]
  const float* sin;
  std::size_t heads;
  std::size_t head_dim;
};

// out[i] = f(gate[i]) * up[i]; f is silu(x) = x / (1 + exp(-x)) or relu2(x) = max(x, 0)^2.
// out may be gate or up.
struct GateArgs {
  const float* gate;
  const float* up;
  Activation activation;
  std::size_t n;
  float* out;
};

// One KV page of one layer and kv head: keys transposed, so that a score vector's lanes are keys
// and a dot product needs no horizontal sum; values row by row, padded to whole vectors.
//   keys [head_dim, kPageTokens], values [kPageTokens, padded_head_dim(head_dim)]
inline constexpr std::size_t kPageTokens = 32;
constexpr std::size_t padded_head_dim(std::size_t head_dim) { return (head_dim + 15) / 16 * 16; }
constexpr std::size_t page_elements(std::size_t head_dim) {
  return kPageTokens * (head_dim + padded_head_dim(head_dim));
}

// Stores one token's key and value (float) at `offset` in a page of `dtype` (f32 or f16).
struct KvWriteArgs {
  const float* key;
  const float* value;
  std::size_t head_dim;
  void* page;
  std::size_t offset;
  DType dtype;
};

// Softmax attention of the `group` query heads that share a kv head, for one token over keys
// [key_begin, key_end) of one sequence, page by page in order:
//   max[h] = max_j s_j, sum[h] = sum_j exp(s_j - max), out[h] = sum_j exp(s_j - max) * v_j
// with s_j = scale * q[h].k_j. key_begin is a multiple of kPageTokens and < key_end.
struct AttentionArgs {
  const float* q;  // [group, head_dim]
  std::size_t group;
  std::size_t head_dim;
  float scale;
  const void* pages;        // block 0 of this layer and kv head
  std::size_t block_bytes;  // from one block to the next
  const std::int32_t* block_table;
  DType dtype;
  std::size_t key_begin;
  std::size_t key_end;
  float* max;  // [group]
  float* sum;  // [group]
  float* out;  // [group, padded_head_dim]
};

// Folds a further part of the keys into (max, sum, out) of `group` heads, as if both had been one
// softmax. Callers fold parts in ascending key order, whichever thread made them.
struct AttentionMergeArgs {
  std::size_t group;
  std::size_t head_dim;
  const float* part_max;
  const float* part_sum;
  const float* part_out;
  float* max;
  float* sum;
  float* out;
};

// out[h, 0..head_dim) = in[h] / sum[h]; `in` rows are padded_head_dim apart, `out` head_dim.
struct AttentionFinishArgs {
  std::size_t group;
  std::size_t head_dim;
  const float* sum;
  const float* in;
  float* out;
};

// out[0, k) = weights[row] as float.
struct EmbedArgs {
  const void* weights;  // [rows, k] of dtype
  DType dtype;
  std::size_t row;
  std::size_t k;
  float* out;
};

// out[t, n] = sum_k x[t, k] * w[n, k] in float for n in [row_begin, row_end): the LM head.
struct DenseLinearArgs {
  const void* weights;  // [rows, k] of dtype
  DType dtype;
  std::size_t k;
  std::size_t row_begin;
  std::size_t row_end;
  const float* x;  // [tokens, k]
  std::size_t tokens;
  float* out;  // [tokens, out_stride]
  std::size_t out_stride;
};

// Bounds of LM head logits from the screen (quant/screen.h), panels [panel_begin, panel_end):
//   approx = (128 * (sum_k hi*c - offset) + sum_k lo*c) * (scale[n] * x_scale[t])
//   slack  = weight_error[n] * x_norm[t] + weight_norm[n] * x_error[t] + |approx| * 2^-20
//   lower[t, n] = approx - slack, upper[t, n] = approx + slack
// The sums are exact; the last term covers the rounding of approx.
struct ScreenLinearArgs {
  const std::int8_t* packed;  // [panels, steps, 256], 64-byte aligned
  const float* scale;         // [panels * 64], as the three below
  const std::int32_t* offset;
  const float* weight_error;
  const float* weight_norm;
  std::size_t steps;  // ceil(k / 4)
  std::size_t panel_begin;
  std::size_t panel_end;
  const std::uint8_t* hi;  // [tokens, x_stride], as lo
  const std::uint8_t* lo;
  std::size_t x_stride;
  const float* x_scale;  // [tokens], as the two below
  const float* x_norm;
  const float* x_error;
  std::size_t tokens;
  float* lower;  // [tokens, out_stride], out_stride >= panels * 64
  float* upper;
  std::size_t out_stride;
};

// Runs the tier's byte multiply-add on registers alone, so many times over; `out` takes a value
// that depends on them all. Returns how many products were added up. Not in the table: the scalar
// tier has no such instruction.
struct MultiplyAddProbeArgs {
  std::size_t rounds;
  std::int32_t* out;
};

// Every op of a tier once: X(name, Args). The ternary linear, of which a tier has several, is in
// dispatch.h.
#define RYZ_OPS(X)                         \
  X(rms_norm, RmsNormArgs)                 \
  X(quantize, QuantizeArgs)                \
  X(rope, RopeArgs)                        \
  X(gate, GateArgs)                        \
  X(kv_write, KvWriteArgs)                 \
  X(attention, AttentionArgs)              \
  X(attention_merge, AttentionMergeArgs)   \
  X(attention_finish, AttentionFinishArgs) \
  X(embed, EmbedArgs)                      \
  X(dense_linear, DenseLinearArgs)         \
  X(screen_linear, ScreenLinearArgs)

struct KernelTable {
#define RYZ_TABLE_ENTRY(name, Args) void (*name)(const Args&) noexcept;
  RYZ_OPS(RYZ_TABLE_ENTRY)
#undef RYZ_TABLE_ENTRY
};

}  // namespace ryz
