// Causal attention over paged keys and values, a split of kSplitKeys keys at a time: the scores of
// all rows (a row is one query head of one token), their softmax, then the values.
//
// Arithmetic of a row is a function of its query, its keys and their positions alone: sums run over
// the head dimension for scores and over keys in order for values, each in its own lane, whatever
// the tile. Rows share the work on a page: few take its elements as they are stored, converting
// them for every tile; for more, the page is first widened to what the multiply takes.
#pragma once

#include <cmath>

#include "kernels/vector/kv_formats.h"

namespace ryz::RYZ_TIER {
namespace {

inline void attention_merge(const AttentionMergeArgs& a) noexcept {
  const std::size_t padded = padded_head_dim(a.head_dim);
  for (std::size_t h = 0; h < a.rows; ++h) {
    float* out = a.out + h * padded;
    const float* part = a.part_out + h * padded;
    if (a.part_sum[h] == 0.0f) continue;
    if (a.sum[h] == 0.0f) {
      a.max[h] = a.part_max[h];
      a.sum[h] = a.part_sum[h];
      for (std::size_t d = 0; d < padded; d += kLanes) store(out + d, load(part + d));
      continue;
    }
    const float new_max = a.part_max[h] > a.max[h] ? a.part_max[h] : a.max[h];
    const float shrink = exp_one(a.max[h] - new_max);
    const float part_shrink = exp_one(a.part_max[h] - new_max);
    a.max[h] = new_max;
    a.sum[h] = a.sum[h] * shrink + a.part_sum[h] * part_shrink;
    for (std::size_t d = 0; d < padded; d += kLanes) {
      const Vec scaled = mul(load(out + d), broadcast(shrink));
      store(out + d, fma(load(part + d), broadcast(part_shrink), scaled));
    }
  }
}

// Scores of kRows queries, `stride` apart, with the keys of kScoreVecs vectors: one sum per lane
// over the head dimension. While a page is read as stored, `next` is asked for, a line for each
// line.
template <typename F, std::size_t kRows, bool kAsStored>
inline void score_tile(const typename F::Operand* queries, std::size_t stride, std::size_t steps,
                       const typename F::Element* keys, const typename F::Element* next,
                       typename F::Sum (&sums)[kRows][kScoreVecs]) {
  constexpr std::size_t kStep = kPageTokens * F::kDepth;
#pragma GCC unroll 8
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kScoreVecs; ++v) sums[r][v] = F::empty();
  }
  for (std::size_t i = 0; i < steps; ++i) {
    if constexpr (kAsStored) prefetch_ahead<kStep * sizeof(*next)>(next + i * kStep, 0);
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kScoreVecs; ++v) {
      const auto key = F::load(keys + i * kStep + v * kLanes * F::kDepth);
#pragma GCC unroll 8
      for (std::size_t r = 0; r < kRows; ++r) {
        const auto query = F::spread(queries + r * stride + i * F::kDepth);
        sums[r][v] = F::multiply_add(query, key, sums[r][v]);
      }
    }
  }
}

// out[r] += factor[r] * sum over keys of weights[r][j] * values[j], for kVecs vectors of the head
// dimension; `row` is from one key (or pair of keys) to the next. Keys are those of the steps
// [first, steps).
template <typename F, std::size_t kRows, std::size_t kVecs, bool kAsStored>
inline void value_tile(const typename F::Operand* weights, std::size_t first, std::size_t steps,
                       const typename F::Element* values, const typename F::Element* next,
                       std::size_t row, const float* factors, float* out, std::size_t out_stride) {
  typename F::Sum sums[kRows][kVecs];
#pragma GCC unroll 8
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVecs; ++v) {
      sums[r][v] = F::resume(out + r * out_stride + v * kLanes);
    }
  }
  for (std::size_t i = first; i < steps; ++i) {
    constexpr std::size_t kBytes = kVecs * kLanes * F::kDepth * sizeof(*next);
    if constexpr (kAsStored) prefetch_ahead<kBytes>(next + i * row, 0);
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVecs; ++v) {
      const auto value = F::load(values + i * row + v * kLanes * F::kDepth);
#pragma GCC unroll 8
      for (std::size_t r = 0; r < kRows; ++r) {
        const auto weight = F::spread(weights + r * kSplitKeys + i * F::kDepth);
        sums[r][v] = F::multiply_add(weight, value, sums[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVecs; ++v) {
      F::save(sums[r][v], factors[r], out + r * out_stride + v * kLanes);
    }
  }
}

// The keys that a token sees of some, counted from the first of these: [0, hole) and [resume, end).
// There is a hole between the attention sinks and the window; all is hidden where end is 0.
struct Seen {
  std::size_t hole;
  std::size_t resume;
  std::size_t end;
};

// The largest of the scores [first, n), or -infinity where there are none.
inline float highest(const float* scores, std::size_t first, std::size_t n) {
  const Vec lowest = broadcast(-INFINITY);
  Vec top = lowest;
  for (std::size_t i = first / kLanes * kLanes; i < n; i += kLanes) {
    Vec part = load(scores + i);
    if (i + kLanes > n) part = select_first(part, n - i, lowest);
    if (i < first) part = select_first(lowest, first - i, part);
    top = max(top, part);
  }
  return reduce_max(top);
}

// One call of the op, for a format of kv_formats.h.
template <typename F>
class Attention {
 public:
  explicit Attention(const AttentionArgs& a)
      : a_(a),
        rows_(a.tokens * a.group),
        padded_(padded_head_dim(a.head_dim)),
        steps_((a.head_dim + F::kDepth - 1) / F::kDepth),
        key_elements_(steps_ * F::kDepth * kPageTokens),
        widens_(rows_ > kScoreRows && sizeof(Element) < sizeof(Operand)) {
    const std::size_t limit = a.position + a.tokens;
    key_end_ = a.key_end < limit ? a.key_end : limit;
    wide_ = a.scratch;
    queries_ = wide_ + kPageTokens * padded_;
    part_out_ = queries_ + rows_ * padded_;
    scores_ = part_out_ + rows_ * padded_;
    held_weights_ = scores_ + rows_ * kSplitKeys;
    query_factors_ = held_weights_ + rows_ * kSplitKeys / 2;
    value_factors_ = query_factors_ + rows_;
    part_max_ = value_factors_ + rows_;
    part_sum_ = part_max_ + rows_;
  }

  void run() {
    for (std::size_t r = 0; r < rows_; ++r) {
      const float* q = a_.q + r / a_.group * a_.q_stride + r % a_.group * a_.head_dim;
      F::hold_query(q, a_.head_dim, a_.scale, query(r), query_factors_ + r);
    }
    attend_split(a_.key_begin, a_.max, a_.sum, a_.out);
    for (std::size_t begin = a_.key_begin + kSplitKeys; begin < key_end_; begin += kSplitKeys) {
      const std::size_t end = split_end(begin);
      if (next_seen(begin, begin, end) >= end) continue;
      attend_split(begin, part_max_, part_sum_, part_out_);
      const std::size_t r = first_token(begin) * a_.group;
      attention_merge({rows_ - r, a_.head_dim, part_max_ + r, part_sum_ + r,
                       part_out_ + r * padded_, a_.max + r, a_.sum + r, a_.out + r * padded_});
    }
  }

 private:
  using Element = typename F::Element;
  using Operand = typename F::Operand;
  using Wide = typename F::Wide;

  Operand* query(std::size_t row) const {
    return reinterpret_cast<Operand*>(queries_) + row * padded_;
  }
  Operand* weights(std::size_t row) const {
    float* base = F::kDepth == 1 ? scores_ : held_weights_;
    return reinterpret_cast<Operand*>(base) + row * kSplitKeys;
  }
  // The page that holds key `position`, or the first one past the end.
  const Element* page(std::size_t position) const {
    if (position >= key_end_) position = a_.key_begin;
    const auto block = static_cast<std::size_t>(a_.block_table[position / kPageTokens]);
    return reinterpret_cast<const Element*>(static_cast<const char*>(a_.pages) +
                                            block * a_.block_bytes);
  }
  const float* scales(const Element* page) const {
    return reinterpret_cast<const float*>(page + key_elements_ + kPageTokens * padded_);
  }
  // The first token that sees key `position`.
  std::size_t first_token(std::size_t position) const {
    return position > a_.position ? position - a_.position : 0;
  }
  std::size_t split_end(std::size_t begin) const {
    return begin + kSplitKeys < key_end_ ? begin + kSplitKeys : key_end_;
  }
  // What token t sees of the keys [begin, end).
  Seen seen(std::size_t t, std::size_t begin, std::size_t end) const {
    const std::size_t own_end = a_.position + t + 1;
    const std::size_t count = (own_end < end ? own_end : end) - begin;
    const std::size_t from = unseen(t, begin);
    const std::size_t sinks = a_.sinks > begin ? a_.sinks - begin : 0;
    if (from <= sinks) return {0, 0, count};
    if (from < count) return {sinks, from, count};
    return {0, 0, sinks < count ? sinks : count};
  }
  // Keys from `begin` on that are before the window of token t.
  std::size_t unseen(std::size_t t, std::size_t begin) const {
    const std::size_t from = begin + a_.window;
    const std::size_t own_end = a_.position + t + 1;
    return a_.window != 0 && own_end > from ? own_end - from : 0;
  }
  // The first page from `at` on, of a split, of which any token may see a key; else one past `end`.
  // Windows move on from token to token: the first token's begins first.
  std::size_t next_seen(std::size_t begin, std::size_t at, std::size_t end) const {
    const std::size_t window = begin + unseen(0, begin) / kPageTokens * kPageTokens;
    if (at >= window || at < a_.sinks) return at;
    return window < end ? window : end;
  }
  const typename Wide::Element* widen(const Element* from, std::size_t count,
                                      const Element* next) const {
    auto* to = reinterpret_cast<typename Wide::Element*>(wide_);
    constexpr std::size_t kStep = kLanes * F::kDepth;
    for (std::size_t i = 0; i < count; i += kStep) {
      prefetch_ahead<kStep * sizeof(Element)>(next + i, 0);
      Wide::store(to + i, F::load(from + i));
    }
    return to;
  }

  void attend_split(std::size_t begin, float* max_score, float* sum, float* out) const {
    const std::size_t end = split_end(begin);
    const auto after = [&](std::size_t at) { return next_seen(begin, at + kPageTokens, end); };
    const std::size_t start = next_seen(begin, begin, end);
    for (std::size_t at = start; at < end; at = after(at)) {
      const Element* keys = page(at);
      const Element* next = after(at) < end ? page(after(at)) : page(start) + key_elements_;
      const std::size_t row = first_token(at) * a_.group;
      if (widens_) {
        const auto* wide = widen(keys, key_elements_, next);
        score_page<Wide, false>(row, wide, wide, scales(keys), at - begin);
      } else {
        score_page<F, true>(row, keys, next, scales(keys), at - begin);
      }
    }
    const std::size_t first = first_token(begin) * a_.group;
    // Two loops: a row's exponentials need not wait for its maximum.
    for (std::size_t r = first; r < rows_; ++r) {
      const Seen keys = seen(r / a_.group, begin, end);
      if (a_.softcap != 0.0f) cap(r, keys.hole != 0 ? 0 : keys.resume, keys.end);
      const float* scores = scores_ + r * kSplitKeys;
      max_score[r] = highest(scores, keys.resume, keys.end);
      if (keys.hole != 0) {
        const float top = highest(scores, 0, keys.hole);
        if (top > max_score[r]) max_score[r] = top;
      }
    }
    for (std::size_t r = first; r < rows_; ++r) {
      sum[r] = weigh(r, begin, seen(r / a_.group, begin, end), max_score[r]);
    }
    for (std::size_t i = first * padded_; i < rows_ * padded_; ++i) out[i] = 0.0f;
    for (std::size_t at = start; at < end; at = after(at)) {
      const Element* values = page(at) + key_elements_;
      const Element* next = page(after(at)) + (after(at) < end ? key_elements_ : 0);
      if (widens_) {
        const auto* wide = widen(values, kPageTokens * padded_, next);
        add_page<Wide, false>(wide, wide, begin, at, end, out);
      } else {
        add_page<F, true>(values, next, begin, at, end, out);
      }
    }
  }

  // Scores of rows from `row` on with the keys of a page.
  template <typename Format, bool kAsStored>
  void score_page(std::size_t row, const typename Format::Element* keys,
                  const typename Format::Element* next, const float* key_scales,
                  std::size_t column) const {
    for (std::size_t j = 0; j < kPageTokens; j += kScoreVecs * kLanes) {
      for_tiles<kScoreRows>(row, rows_, [&](auto rows, std::size_t r) {
        typename F::Sum sums[rows.value][kScoreVecs];
        score_tile<Format, rows.value, kAsStored>(query(r), padded_, steps_, keys + j * F::kDepth,
                                                  next + j * F::kDepth, sums);
#pragma GCC unroll 8
        for (std::size_t i = 0; i < rows.value; ++i) {
#pragma GCC unroll 8
          for (std::size_t v = 0; v < kScoreVecs; ++v) {
            const std::size_t lane = j + v * kLanes;
            store(scores_ + (r + i) * kSplitKeys + column + lane,
                  F::score(sums[i][v], key_scales + lane, query_factors_[r + i]));
          }
        }
      });
    }
  }

  // Caps the scores [first, n) of a row, and some beside them that nobody sees.
  void cap(std::size_t row, std::size_t first, std::size_t n) const {
    float* scores = scores_ + row * kSplitKeys;
    for (std::size_t i = first / kLanes * kLanes; i < n; i += kLanes) {
      store(scores + i, soft_capped(load(scores + i), a_.softcap));
    }
  }

  // Calls `each` with the first key of every page that has any that are seen. From one place: only
  // there does the compiler keep in registers what `each` adds up.
  template <typename Each>
  static void for_pages(const Seen& keys, const Each& each) {
    const std::size_t window = keys.resume / kPageTokens * kPageTokens;
    std::size_t i = keys.hole != 0 ? 0 : window;
    while (i < keys.end) {
      each(i);
      i += kPageTokens;
      if (i >= keys.hole && i < window) i = window;
    }
  }

  // Turns the scores of the keys that a row sees into weights exp(s - max), with zeros beside them
  // in their pages, and returns their sum.
  float weigh(std::size_t row, std::size_t begin, const Seen& keys, float max_score) const {
    if (keys.end == 0) return 0.0f;
    const Vec shift = broadcast(max_score);
    Vec total = zero();
    VecI top = zero_i();
    const auto within = [](std::size_t n, std::size_t i) { return n > i ? n - i : 0; };
    for_pages(keys, [&](std::size_t i) {
      const Seen part{within(keys.hole, i), within(keys.resume, i), within(keys.end, i)};
      if ((part.resume == 0 && part.end >= kPageTokens) || part.hole >= kPageTokens) {
        weigh_page<true>(row, begin, i, part, shift, total, top);
      } else {
        weigh_page<false>(row, begin, i, part, shift, total, top);
      }
    });
    if constexpr (F::kDepth == 2) hold_weights(row, keys, float_of_bits(reduce_max_i(top)));
    return reduce_add(total);
  }

  // The part of `weigh` in a page. For int8, weights are stored times their values' scales, the
  // largest of which goes to `top` as abs_max takes it.
  template <bool kWhole>
  void weigh_page(std::size_t row, std::size_t begin, std::size_t i, const Seen& keys, Vec shift,
                  Vec& total, VecI& top) const {
    float* scores = scores_ + row * kSplitKeys + i;
    for (std::size_t j = 0; j < kPageTokens; j += kLanes) {
      const auto only_seen = [&](Vec weight) {
        if constexpr (kWhole) return weight;
        const auto first = [j](std::size_t n) { return n > j ? n - j : 0; };
        const Vec recent = select_first(weight, first(keys.end), zero());
        const Vec unhidden = select_first(zero(), first(keys.resume), recent);
        return select_first(weight, first(keys.hole), unhidden);
      };
      Vec weight = only_seen(exp(sub(load(scores + j), shift)));
      total = add(total, weight);
      if constexpr (F::kDepth == 2) {
        weight = only_seen(mul(weight, load(scales(page(begin + i)) + kPageTokens + j)));
        top = max_i(top, abs_bits(weight));
      }
      store(scores + j, weight);
    }
  }

  // Rounds the weights of a row to 16 bits.
  void hold_weights(std::size_t row, const Seen& keys, float largest) const {
    const float* exact = scores_ + row * kSplitKeys;
    const Vec inverse = broadcast(INT16_MAX / largest);
    for_pages(keys, [&](std::size_t page) {
      for (std::size_t i = page; i < page + kPageTokens; i += kLanes) {
        store_i16(weights(row) + i, to_int(mul(load(exact + i), inverse)));
      }
    });
    value_factors_[row] = largest / INT16_MAX;
  }

  // Adds the values of a page to the output of every token that sees it. A tile is of one token:
  // what a later token alone may see cannot be added with a weight of zero, it might be NaN.
  template <typename Format, bool kAsStored>
  void add_page(const typename Format::Element* values, const typename Format::Element* next,
                std::size_t begin, std::size_t at, std::size_t end, float* out) const {
    const std::size_t page_end = at + kPageTokens < end ? at + kPageTokens : end;
    for (std::size_t t = first_token(at); t < a_.tokens; ++t) {
      const Seen keys = seen(t, at, page_end);
      if (keys.end == 0) continue;
      // What is before the hole, if there is one, and what is behind it.
      for (bool is_last = keys.hole == 0;; is_last = true) {
        const std::size_t first = (is_last ? keys.resume : 0) / F::kDepth;
        const std::size_t steps = ((is_last ? keys.end : keys.hole) + F::kDepth - 1) / F::kDepth;
        for_tiles<kValueRows>(t * a_.group, (t + 1) * a_.group, [&](auto rows, std::size_t r) {
          for_tiles<kValueVecs>(0, padded_ / kLanes, [&](auto vecs, std::size_t v) {
            const std::size_t d = v * kLanes;
            value_tile<Format, rows.value, vecs.value, kAsStored>(
                weights(r) + (at - begin), first, steps, values + d * F::kDepth,
                next + d * F::kDepth, padded_ * F::kDepth, value_factors_ + r,
                out + r * padded_ + d, padded_);
          });
        });
        if (is_last) break;
      }
    }
  }

  const AttentionArgs& a_;
  const std::size_t rows_;
  const std::size_t padded_;
  const std::size_t steps_;  // of a score's sum
  const std::size_t key_elements_;
  const bool widens_;
  std::size_t key_end_;
  float* wide_;
  float* queries_;
  float* part_out_;
  float* scores_;
  float* held_weights_;
  float* query_factors_;
  float* value_factors_;
  float* part_max_;
  float* part_sum_;
};

inline void attention(const AttentionArgs& a) noexcept {
  switch (a.dtype) {
    case KvDtype::kF32:
      return Attention<KvF32>(a).run();
    case KvDtype::kF16:
      return Attention<KvF16>(a).run();
    case KvDtype::kInt8:
      return Attention<KvI8>(a).run();
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

}  // namespace
}  // namespace ryz::RYZ_TIER
