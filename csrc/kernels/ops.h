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
#include "quant/grouped.h"
#include "quant/screen_format.h"
#include "quant/ternary.h"

namespace ryz {

enum class Activation : std::uint8_t { kSilu, kRelu2, kGeluTanh };

// out[i] = x[i] / sqrt(mean(x^2) + eps) * gain[i] + residual[i], i < k. Reduction: lane-wise float
// sums, then a fixed tree. out may be x or residual.
struct RmsNormArgs {
  const float* x;
  const float* gain;
  float eps;
  std::size_t k;
  float* out;
  const float* residual = nullptr;  // null for none
};

// Per-token absmax int8 of y = x, or where gain is not null of
//   y[i] = x[i] / sqrt(sum(x^2) / mean_count + eps) * gain[i]
// s = 127 / max(absmax(y), 1e-5), q = clamp(round_half_even(y * s)).
// Writes q[0, k_padded) with zeros past k, scale = max(absmax, 1e-5) / 127 and sum = sum of q.
// mean_count is k, or more where x stands for a longer row whose other elements are zero.
// A NaN or infinity in x makes scale non-finite, so that it reaches the logits.
struct QuantizeArgs {
  const float* x;
  std::size_t k;
  std::size_t k_padded;
  const float* gain;
  float eps;
  std::size_t mean_count;
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
};

// int8 in blocks of kScaleBlock columns, so that a large activation coarsens its neighbours only,
// of y = x or of its RMSNorm as in quantize:
//   s = 127 / max(absmax(y of the block), 1e-30), q = round_half_even(y * s), scale = 1 / s
// Writes blocks [0, blocks_padded), zeros past k. Tokens of a batch lie side by side: block b of
// this token goes to q + b * block_stride * kScaleBlock and blocks[b * block_stride]. The half sums
// are of 16 columns each. A NaN or infinity makes the block's scale non-finite.
struct QuantizeBlocksArgs {
  const float* x;
  std::size_t k;
  std::size_t blocks_padded;
  const float* gain;
  float eps;
  std::int8_t* q;
  ActivationBlock* blocks;
  std::size_t block_stride;
};

// The tables of lookup_format.h for a token's blocks, as quantize_blocks makes them, and the codes
// of a format of 1 to 4 bits.
struct LookupTablesArgs {
  const std::int8_t* q;  // [blocks, kScaleBlock]
  std::size_t blocks;
  GroupedFormat format;
  std::uint8_t* tables;  // [blocks, block_table_bytes], 64-byte aligned
};

// Linear over the row panels [panel_begin, panel_end) of a grouped.h layout. With the activations
// of quantize_blocks, which are within [-127, 127], a unit being a block, or half of one where
// groups have 16 columns:
//   dot = sum of (code - zero) * q over the unit, exact in int32
//   y = fma(dot, scale[n] * act_scale[t], y)                       unit by unit in ascending order,
//   y = fma(minimum[n], act_scale[t] * sum of q, y)                then, where there are minima
//   out[t, n] = y + residual[t, n]
// One order of float operations in every kernel of every tier, so that all give the same bits.
struct GroupedLinearArgs {
  const std::uint8_t* packed;  // [panels, records, record_bytes], 64-byte aligned
  GroupedFormat format;
  std::size_t rows;     // N; rows past it in the last panel are not written
  std::size_t records;  // ceil(k / record_columns)
  std::size_t panel_begin;
  std::size_t panel_end;
  const std::int8_t* q;           // [blocks, block_stride, kScaleBlock]
  const ActivationBlock* blocks;  // [blocks, block_stride]
  std::size_t block_stride;       // tokens at least
  std::size_t tokens;
  float* out;  // [tokens, out_stride]
  std::size_t out_stride;
  const float* residual;  // as out, or null for none; may be out itself
  // Of a kernel that looks products up, which takes one token: what lookup_tables made of q.
  const std::uint8_t* tables = nullptr;
};

// The indices of a feed-forward's channels that matter, ascending. selected has room for
// end - begin (or n) + kSelectSlack; what lies past count is undefined.
inline constexpr std::size_t kSelectSlack = 16;

// Channels in [begin, end) whose relu2 gate is not exactly zero. Infinities and NaN are kept.
struct SelectGatesArgs {
  const float* gate;
  std::size_t begin;
  std::size_t end;
  std::int32_t* selected;
  std::size_t* count;
};

// Channels in [0, n) with q != 0. n is a multiple of 16.
struct SelectNonzeroArgs {
  const std::int8_t* q;
  std::size_t n;
  std::int32_t* selected;
  std::size_t* count;
};

// One token through some rows of a ternary_rows.h layout; other elements of out are left alone:
//   out[n] = (sum_k q[k] * w[n, k]) * (row_scale[n] * act_scale), n in selected
struct SelectedRowsArgs {
  const std::uint8_t* packed;  // [rows, units, 64], 64-byte aligned
  const float* row_scale;      // [rows]
  std::size_t units;           // ceil(k / 320)
  const std::int32_t* selected;
  std::size_t count;
  const std::int8_t* q;  // [units * 320], zeros from k
  float act_scale;
  std::int32_t act_sum;
  float* out;
};

// One token through some columns, each stored as a row, for outputs of the units
// [unit_begin, unit_end); q is zero in every column that is not selected:
//   out[n] = residual[n] + (sum_k q[k] * w[k, n]) * (row_scale[n] * act_scale), k in selected
struct SelectedColumnsArgs {
  const std::uint8_t* packed;  // [columns, units, 64], 64-byte aligned
  const float* row_scale;      // [rows]
  std::size_t rows;
  std::size_t units;  // ceil(rows / 320)
  std::size_t unit_begin;
  std::size_t unit_end;
  const std::int32_t* selected;
  std::size_t count;
  const std::int8_t* q;
  float act_scale;
  std::int32_t act_sum;
  const float* residual;  // may be out
  float* out;
  std::uint8_t* scratch;  // selected_columns_scratch_bytes(rows), 64-byte aligned, per thread
};

// Room for one int32 sum of every output, in whole units.
constexpr std::size_t selected_columns_scratch_bytes(std::size_t rows) {
  return (rows + kRowPadding) * sizeof(std::int32_t);
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

// out[i] = f(gate[i]) * up[i]; f is silu(x) = x / (1 + exp(-x)), relu2(x) = max(x, 0)^2 or
// gelu_tanh(x) = x / (1 + exp(-2u)), u = sqrt(2/pi) * (x + 0.044715 x^3), which is what the form
// with tanh(u) comes to. out may be gate or up.
struct GateArgs {
  const float* gate;
  const float* up;
  Activation activation;
  std::size_t n;
  float* out;
};

// gate into `gate.out`, then quantize of what it wrote (quantize.x is gate.out), in fewer passes.
struct GateQuantizeArgs {
  GateArgs gate;
  QuantizeArgs quantize;
};

// How keys and values are stored. kInt8: each token's key and each token's value as quantize makes
// them, 127 steps to the largest magnitude. A token's page neighbours do not matter to its codes,
// so that neither do chunks.
enum class KvDtype : std::uint8_t { kF32, kF16, kInt8 };

constexpr std::size_t size_of(KvDtype dtype) {
  return dtype == KvDtype::kF32 ? 4 : dtype == KvDtype::kF16 ? 2 : 1;
}
// Elements along the summed dimension that lie side by side: int8 products are summed in pairs.
constexpr std::size_t kv_depth(KvDtype dtype) { return dtype == KvDtype::kInt8 ? 2 : 1; }

// One KV page of one layer and kv head: keys transposed, so that a score vector's lanes are keys
// and a dot product needs no horizontal sum; values row by row, padded to whole vectors.
//   keys   [ceil(head_dim / depth), kPageTokens, depth]
//   values [kPageTokens / depth, padded_head_dim(head_dim), depth]
//   int8:  key scales float [kPageTokens], value scales float [kPageTokens]
inline constexpr std::size_t kPageTokens = 32;
constexpr std::size_t padded_head_dim(std::size_t head_dim) { return (head_dim + 15) / 16 * 16; }
constexpr std::size_t page_key_elements(std::size_t head_dim, KvDtype dtype) {
  return (head_dim + kv_depth(dtype) - 1) / kv_depth(dtype) * kv_depth(dtype) * kPageTokens;
}
constexpr std::size_t page_elements(std::size_t head_dim, KvDtype dtype) {
  return page_key_elements(head_dim, dtype) + kPageTokens * padded_head_dim(head_dim);
}
constexpr std::size_t page_bytes(std::size_t head_dim, KvDtype dtype) {
  const std::size_t scales = dtype == KvDtype::kInt8 ? 2 * kPageTokens * sizeof(float) : 0;
  return page_elements(head_dim, dtype) * size_of(dtype) + scales;
}

// Stores one token's key and value (float) at `offset` in a page.
struct KvWriteArgs {
  const float* key;
  const float* value;
  std::size_t head_dim;
  void* page;
  std::size_t offset;
  KvDtype dtype;
};

// A long context is attended in parts of at most this many keys: each is a softmax of its own,
// and attention_merge folds them in ascending order. The parts are a function of position alone, so
// threads may share them without changing a bit.
inline constexpr std::size_t kSplitKeys = 256;

// Softmax attention of the query heads that share a kv head, for `tokens` consecutive tokens of
// one sequence. Token t sees the keys of [key_begin, min(key_end, position + t + 1)), and with a
// window only the last `window` up to its own position and the first `sinks` of the sequence:
//   max[t, h] = max_j s_j, sum[t, h] = sum_j exp(s_j - max), out[t, h] = sum_j exp(s_j - max) * v_j
// with s_j = scale * q[t, h].k_j, or with a softcap softcap * tanh(that / softcap). key_begin is a
// multiple of kPageTokens, at most `position` and below key_end. From key_begin on, every
// kSplitKeys keys are folded as attention_merge does. A token that sees none of the keys gets max
// -infinity, sum 0 and zeros. Pages of which no token sees a key are not read.
//
// int8: queries are rounded to 16 bits, 32767 steps to the row's largest magnitude (fewer beyond a
// head_dim of 500, see query_limit), and so are the factors of the values, exp(s_j - max) times
// the value's scale, of each split. Products are summed as integers, over a page for values.
struct AttentionArgs {
  const float* q;  // [group, head_dim] per token, tokens q_stride apart
  std::size_t q_stride;
  std::size_t tokens;
  std::size_t group;
  std::size_t head_dim;
  float scale;
  float softcap;       // 0 for none
  std::size_t window;  // 0 for none
  std::size_t sinks;
  const void* pages;        // block 0 of this layer and kv head
  std::size_t block_bytes;  // from one block to the next
  const std::int32_t* block_table;
  KvDtype dtype;
  std::size_t position;  // of token 0
  std::size_t key_begin;
  std::size_t key_end;
  float* max;      // [tokens, group]
  float* sum;      // [tokens, group]
  float* out;      // [tokens, group, padded_head_dim]
  float* scratch;  // attention_scratch(tokens * group, head_dim), 64-byte aligned
};

// Steps to the largest magnitude of an int8 format's query: what keeps a score's sum in int32.
constexpr std::size_t query_limit(std::size_t head_dim) {
  const std::size_t most = INT32_MAX / (128 * head_dim);
  return most < INT16_MAX ? most : INT16_MAX;
}

// Floats: half a page expanded; per row the query, a part's output, scores, 16-bit weights, and
// four scalars.
constexpr std::size_t attention_scratch(std::size_t rows, std::size_t head_dim) {
  const std::size_t padded = padded_head_dim(head_dim);
  return kPageTokens * padded + rows * (2 * padded + kSplitKeys + kSplitKeys / 2 + 4);
}

// Folds a further part of the keys into (max, sum, out) of `rows` query heads, as if both had been
// one softmax. Callers fold parts in ascending key order, whichever thread made them. A row whose
// sum is 0 has seen no keys, and changes no bit of the other.
struct AttentionMergeArgs {
  std::size_t rows;
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

// out[0, k) = weights[row] as float, times scale. A float32 row may be out.
struct EmbedArgs {
  const void* weights;  // [rows, k] of dtype
  DType dtype;
  std::size_t row;
  std::size_t k;
  float scale;
  float* out;
};

// x[i] = softcap * tanh(x[i] / softcap), in place.
struct SoftcapArgs {
  float* x;
  std::size_t n;
  float softcap;
};

// out[t, n] += bias[n] for n in [begin, end).
struct AddBiasArgs {
  const float* bias;
  std::size_t begin;
  std::size_t end;
  std::size_t tokens;
  float* out;  // [tokens, out_stride]
  std::size_t out_stride;
};

// Whether weight_only_linear reads a format: 2, 4 and 8 bits, those that heads come in.
constexpr bool has_weight_only_linear(const GroupedFormat& format) { return format.bits % 2 == 0; }

// Linear over the row panels [panel_begin, panel_end) of a grouped.h layout, with activations as
// they are. With `part` a sum over a unit, which is a block, or half of one where groups have 16
// columns, each in ascending order in float:
//   y = fma(scale[n], part of (code - zero) * x, y)                without minima
//   y = y + part of (scale[n] * code + minimum[n]) * x             with minima
//   out[t, n] = y
struct WeightOnlyLinearArgs {
  const std::uint8_t* packed;  // [panels, records, record_bytes], 64-byte aligned
  GroupedFormat format;
  std::size_t rows;     // N; rows past it in the last panel are not written
  std::size_t records;  // ceil(k / record_columns)
  std::size_t panel_begin;
  std::size_t panel_end;
  const float* x;  // [tokens, k]
  std::size_t k;
  std::size_t tokens;
  float* out;  // [tokens, out_stride]
  std::size_t out_stride;
};

// Rows that callers hand out together: whole tiles of every tier.
inline constexpr std::size_t kDenseLotRows = 8;

// out[t, n] = sum_k x[t, k] * w[n, k] + residual[t, n] in float for n in [row_begin, row_end).
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
  const float* residual = nullptr;  // as out, or null for none; may be out itself
};

// Hidden states as the coded head reads them (quant/screen.h): x ~ scale * (128 * hi + lo).
struct ScreenActivations {
  const std::int8_t* hi;  // [tokens, stride], within [-64, 63], zeros past k; as lo
  const std::int8_t* lo;
  std::size_t stride;
  const float* scale;          // [tokens]
  const std::int32_t* hi_sum;  // [tokens], sum of the digits; as lo_sum
  const std::int32_t* lo_sum;
};

// The high plane of the coded head, panels [panel_begin, panel_end):
//   out[t, n] = (128 * sum_k hi*c + sum_k lo*c) * (scale[n] * x.scale[t])
// The sums are exact in int32 for k < 2^17.
struct ScreenLinearArgs {
  const std::uint8_t* codes;  // [panels, blocks, kScreenBlockBytes], 64-byte aligned
  const float* scale;         // [panels * 64]
  std::size_t rows;           // rows past it in the last panel are not written
  std::size_t blocks;         // ceil(k / kScreenColumns)
  std::size_t panel_begin;
  std::size_t panel_end;
  ScreenActivations x;
  std::size_t tokens;
  float* const* out;  // [tokens], each [rows]
};

// What the low plane of the coded head adds, for one token and the rows listed:
//   out[n] += (128 * sum_k hi*(2q - 3) + sum_k lo*(2q - 3)) * (scale[n] * kRestStep / 2 * x.scale)
struct ScreenRestArgs {
  const std::uint8_t* rest;  // [rows, pieces * kRestBytes]
  const float* scale;        // [rows]
  std::size_t pieces;        // ceil(k / kRestColumns)
  const std::int32_t* rows;  // [count]
  std::size_t count;
  ScreenActivations x;
  float* out;  // [rows]
};

// Runs the tier's byte multiply-add on registers alone, so many times over; `out` takes a value
// that depends on them all. Returns how many products were added up. Not in the table: the scalar
// tier has no such instruction.
struct MultiplyAddProbeArgs {
  std::size_t rounds;
  std::int32_t* out;
};

// Ops on a row of logits. All tiers give the same bits.

// max[b] = the largest of block b of the values; has_nan: whether any value is NaN, which leaves
// max undefined.
struct BlockMaxArgs {
  static constexpr std::size_t kBlock = 64;
  const float* values;  // [blocks, kBlock]
  std::size_t blocks;
  float* max;  // [blocks]
  bool* has_nan;
};

// weights[i] = exp(x), x = min(values[i] - reference, 0) * inv_temperature, with a relative error
// below 3e-7 * (1 + |x|), rounded to a multiple of 2^-34 and 0 where a value is -inf; total is
// their sum, exact for n <= 2^19. weights may be values.
struct SoftmaxWeightsArgs {
  const float* values;  // no NaN, no +inf
  std::size_t n;
  float reference;
  float inv_temperature;
  float* weights;
  double* total;
};

// sums[k] = sum of weights[i] * d^(k + 1) for k = 0, 1 with d = max(values[i], -1e38) - shift.
// Differences and first products are float; the reduction is 16 lanes of doubles by i % 16, then
// in order. Where a value is -inf its weight must be 0.
struct WeightedMomentsArgs {
  const float* values;
  const float* weights;
  std::size_t n;
  float shift;
  double* sums;  // [2]
};

// rungs[i] = floor(clamp((top - values[i]) * per_unit, 0, count - 1)).
struct RungsArgs {
  const float* values;  // no NaN, no +inf
  std::size_t n;
  float top;
  float per_unit;  // more than 0
  std::size_t count;
  std::uint16_t* rungs;
};

// ids = every i with first <= rungs[i] <= last, ascending; count: how many.
struct RungMembersArgs {
  const std::uint16_t* rungs;
  std::size_t n;
  std::uint16_t first;
  std::uint16_t last;
  std::int32_t* ids;  // room for n
  std::size_t* count;
};

// Every op of a tier once: X(name, Args). The ternary linear, of which a tier has several, is in
// dispatch.h.
#define RYZ_OPS(X)                            \
  X(rms_norm, RmsNormArgs)                    \
  X(quantize, QuantizeArgs)                   \
  X(quantize_blocks, QuantizeBlocksArgs)      \
  X(grouped_linear, GroupedLinearArgs)        \
  X(lookup_tables, LookupTablesArgs)          \
  X(select_gates, SelectGatesArgs)            \
  X(select_nonzero, SelectNonzeroArgs)        \
  X(selected_rows, SelectedRowsArgs)          \
  X(selected_columns, SelectedColumnsArgs)    \
  X(rope, RopeArgs)                           \
  X(gate, GateArgs)                           \
  X(gate_quantize, GateQuantizeArgs)          \
  X(kv_write, KvWriteArgs)                    \
  X(attention, AttentionArgs)                 \
  X(attention_merge, AttentionMergeArgs)      \
  X(attention_finish, AttentionFinishArgs)    \
  X(embed, EmbedArgs)                         \
  X(softcap, SoftcapArgs)                     \
  X(add_bias, AddBiasArgs)                    \
  X(dense_linear, DenseLinearArgs)            \
  X(weight_only_linear, WeightOnlyLinearArgs) \
  X(screen_linear, ScreenLinearArgs)          \
  X(screen_rest, ScreenRestArgs)              \
  X(block_max, BlockMaxArgs)                  \
  X(softmax_weights, SoftmaxWeightsArgs)      \
  X(weighted_moments, WeightedMomentsArgs)    \
  X(rungs, RungsArgs)                         \
  X(rung_members, RungMembersArgs)

struct KernelTable {
#define RYZ_TABLE_ENTRY(name, Args) void (*name)(const Args&) noexcept;
  RYZ_OPS(RYZ_TABLE_ENTRY)
#undef RYZ_TABLE_ENTRY
};

}  // namespace ryz
