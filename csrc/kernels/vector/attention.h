// Causal attention over paged keys and values by online softmax, one page at a time.
//
// Pages are visited in order of position and each is folded in whole, so the arithmetic for a token
// is a function of its keys alone. The query heads of a kv head go together (kHeadTile at a time):
// they share every load and conversion of the page, which is most of the work at group 4.
#pragma once

#include <cmath>

#include "kernels/ops.h"
#include "kernels/vector/formats.h"
#include "kernels/vector/math.h"

namespace ryz::RYZ_TIER {
namespace {

constexpr std::size_t kScoreVecs = kPageTokens / kLanes;
constexpr std::size_t kValueVecs = 4;  // accumulators per head in the value product

template <typename Format, std::size_t kHeads>
inline void page_scores(const float* q, std::size_t head_dim, float scale,
                        const typename Format::Element* keys, const typename Format::Element* next,
                        Vec (&scores)[kHeads][kScoreVecs]) {
  constexpr std::size_t kRowBytes = kPageTokens * sizeof(*keys);
  for (std::size_t h = 0; h < kHeads; ++h) {
    for (std::size_t v = 0; v < kScoreVecs; ++v) scores[h][v] = zero();
  }
  for (std::size_t d = 0; d < head_dim; ++d) {
    prefetch_ahead<kRowBytes>(next, d * kRowBytes);
    for (std::size_t v = 0; v < kScoreVecs; ++v) {
      const Vec key = Format::load(keys + d * kPageTokens + v * kLanes);
      for (std::size_t h = 0; h < kHeads; ++h) {
        scores[h][v] = fma(broadcast(q[h * head_dim + d]), key, scores[h][v]);
      }
    }
  }
  for (std::size_t h = 0; h < kHeads; ++h) {
    for (std::size_t v = 0; v < kScoreVecs; ++v) {
      scores[h][v] = mul(scores[h][v], broadcast(scale));
    }
  }
}

// Turns scores of `count` keys into weights[32] = exp(s - max), updates max and sum, and returns
// the factor by which what was summed before must shrink.
inline float fold_scores(const Vec (&scores)[kScoreVecs], std::size_t count, float* max_score,
                         float* sum, float* weights) {
  const Vec lowest = broadcast(-INFINITY);
  Vec top = lowest;
  for (std::size_t v = 0; v < kScoreVecs; ++v) {
    const std::size_t n = count > v * kLanes ? count - v * kLanes : 0;
    top = max(top, select_first(scores[v], n, lowest));
  }
  const float page_max = reduce_max(top);
  const float new_max = page_max > *max_score ? page_max : *max_score;
  const float shrink = exp_one(*max_score - new_max);
  Vec total = zero();
  for (std::size_t v = 0; v < kScoreVecs; ++v) {
    const std::size_t n = count > v * kLanes ? count - v * kLanes : 0;
    const Vec weight = select_first(exp(sub(scores[v], broadcast(new_max))), n, zero());
    store(weights + v * kLanes, weight);
    total = add(total, weight);
  }
  *max_score = new_max;
  *sum = *sum * shrink + reduce_add(total);
  return shrink;
}

// out[h] = out[h] * shrink[h] + sum over count keys of weights[h][j] * values[j], for kVecs
// vectors of the head dimension.
template <typename Format, std::size_t kHeads, std::size_t kVecs>
inline void page_values(const float (&weights)[kHeads][kPageTokens], std::size_t count,
                        const float* shrink, const typename Format::Element* values,
                        const typename Format::Element* next, std::size_t stride, float* out) {
  Vec sums[kHeads][kVecs];
  for (std::size_t h = 0; h < kHeads; ++h) {
    for (std::size_t v = 0; v < kVecs; ++v) {
      sums[h][v] = mul(load(out + h * stride + v * kLanes), broadcast(shrink[h]));
    }
  }
  for (std::size_t j = 0; j < count; ++j) {
    prefetch_ahead<kVecs * kLanes * sizeof(*next)>(next + j * stride, 0);
    for (std::size_t v = 0; v < kVecs; ++v) {
      const Vec value = Format::load(values + j * stride + v * kLanes);
      for (std::size_t h = 0; h < kHeads; ++h) {
        sums[h][v] = fma(broadcast(weights[h][j]), value, sums[h][v]);
      }
    }
  }
  for (std::size_t h = 0; h < kHeads; ++h) {
    for (std::size_t v = 0; v < kVecs; ++v) store(out + h * stride + v * kLanes, sums[h][v]);
  }
}

// The page that holds key `position`.
template <typename Element>
inline const Element* page_at(const AttentionArgs& a, std::size_t position) {
  const auto block = static_cast<std::size_t>(a.block_table[position / kPageTokens]);
  return reinterpret_cast<const Element*>(static_cast<const char*>(a.pages) +
                                          block * a.block_bytes);
}

template <typename Format, std::size_t kHeads>
inline void attend_heads(const AttentionArgs& a, std::size_t head) {
  using Element = typename Format::Element;
  const std::size_t padded = padded_head_dim(a.head_dim);
  float* out = a.out + head * padded;
  for (std::size_t h = 0; h < kHeads; ++h) {
    a.max[head + h] = -INFINITY;
    a.sum[head + h] = 0.0f;
  }
  for (std::size_t i = 0; i < kHeads * padded; ++i) out[i] = 0.0f;

  for (std::size_t begin = a.key_begin; begin < a.key_end; begin += kPageTokens) {
    const Element* page = page_at<Element>(a, begin);
    const std::size_t left = a.key_end - begin;
    const std::size_t count = left < kPageTokens ? left : kPageTokens;
    // Pages lie apart, so the hardware cannot foresee them: values are asked for while keys are
    // read, and the next page's keys while values are.
    const Element* values = page + a.head_dim * kPageTokens;
    const Element* next = left > kPageTokens ? page_at<Element>(a, begin + kPageTokens) : page;

    Vec scores[kHeads][kScoreVecs];
    page_scores<Format, kHeads>(a.q + head * a.head_dim, a.head_dim, a.scale, page, values, scores);
    float weights[kHeads][kPageTokens];
    float shrink[kHeads];
    for (std::size_t h = 0; h < kHeads; ++h) {
      shrink[h] = fold_scores(scores[h], count, &a.max[head + h], &a.sum[head + h], weights[h]);
    }
    std::size_t d = 0;
    for (; d + kValueVecs * kLanes <= padded; d += kValueVecs * kLanes) {
      page_values<Format, kHeads, kValueVecs>(weights, count, shrink, values + d, next + d, padded,
                                              out + d);
    }
    for (; d < padded; d += kLanes) {
      page_values<Format, kHeads, 1>(weights, count, shrink, values + d, next + d, padded, out + d);
    }
  }
}

template <typename Format>
inline void attend(const AttentionArgs& a) {
  std::size_t head = 0;
  for (; head + kHeadTile <= a.group; head += kHeadTile) attend_heads<Format, kHeadTile>(a, head);
  for (; head < a.group; ++head) attend_heads<Format, 1>(a, head);
}

inline void attention(const AttentionArgs& a) noexcept {
  a.dtype == DType::kF32 ? attend<F32>(a) : attend<F16>(a);
}

inline void attention_merge(const AttentionMergeArgs& a) noexcept {
  const std::size_t padded = padded_head_dim(a.head_dim);
  for (std::size_t h = 0; h < a.group; ++h) {
    const float new_max = a.part_max[h] > a.max[h] ? a.part_max[h] : a.max[h];
    const float shrink = exp_one(a.max[h] - new_max);
    const float part_shrink = exp_one(a.part_max[h] - new_max);
    a.max[h] = new_max;
    a.sum[h] = a.sum[h] * shrink + a.part_sum[h] * part_shrink;
    float* out = a.out + h * padded;
    const float* part = a.part_out + h * padded;
    for (std::size_t d = 0; d < padded; d += kLanes) {
      const Vec scaled = mul(load(out + d), broadcast(shrink));
      store(out + d, fma(load(part + d), broadcast(part_shrink), scaled));
    }
  }
}

inline void attention_finish(const AttentionFinishArgs& a) noexcept {
  const std::size_t padded = padded_head_dim(a.head_dim);
  for (std::size_t h = 0; h < a.group; ++h) {
    const Vec inverse = broadcast(1.0f / a.sum[h]);
    for_lanes(a.head_dim, [&](std::size_t d, std::size_t n) {
      store_first(a.out + h * a.head_dim + d, mul(load(a.in + h * padded + d), inverse), n);
    });
  }
}

template <typename Format>
inline void write_page(const KvWriteArgs& a) {
  using Element = typename Format::Element;
  auto* keys = static_cast<Element*>(a.page);
  const std::size_t padded = padded_head_dim(a.head_dim);
  Element* value = keys + a.head_dim * kPageTokens + a.offset * padded;
  for (std::size_t d = 0; d < padded; d += kLanes) {
    const std::size_t n = d < a.head_dim ? a.head_dim - d : 0;
    Element column[kLanes];
    Format::store(column, load_first(a.key + d, n));
    for (std::size_t i = 0; i < kLanes && i < n; ++i) {
      keys[(d + i) * kPageTokens + a.offset] = column[i];
    }
    Format::store(value + d, load_first(a.value + d, n));
  }
}

inline void kv_write(const KvWriteArgs& a) noexcept {
  a.dtype == DType::kF32 ? write_page<F32>(a) : write_page<F16>(a);
}

}  // namespace
}  // namespace ryz::RYZ_TIER
