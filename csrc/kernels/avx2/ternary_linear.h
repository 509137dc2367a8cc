// Ternary linear on ymm, written once for both formats and both ways to multiply: a Format says how
// bytes become planes of codes, a Dot how codes meet activations and how wide its sums are. A ymm
// is 4 consecutive k of 8 rows, so accumulators are per row and nothing is summed across lanes.
//
// A panel is walked in chunks that stay in L1 and that a Dot's accumulators can hold; after each,
// they are folded into int32 sums in memory.
//   one token   planes are masked where they stand, at bit 0 or 2: half the shifts, and those at
//               bit 2 have an accumulator of their own, times 4 until it is folded.
//   2..8        codes brought to bit 0 once, then used for every token from registers.
//   more        a chunk of one group is expanded to bytes in L1, then multiplied in tiles of up to
//               6 tokens: 12 accumulators of the 16 registers.
// Codes are weight + 1: the sum of activations is taken off at the end.
//
// Included by one translation unit per format and Dot, each with its own instruction-set flags.
#pragma once

#include "kernels/avx2/bytes.h"
#include "kernels/ops.h"

namespace ryz::RYZ_TIER {
namespace {

constexpr std::size_t kVecBytes = 32;
constexpr std::size_t kPanelVecs = kPanelGroups * kHalves;
// The most that int16 holds: 16 pairs of products at bit 2, 2 * 8 * 127 each, two in a block; and
// 64 pairs at bit 0, 2 * 2 * 127 each.
constexpr std::size_t kOneTokenBlocks = 8;
constexpr std::size_t kChunkPlanes = 64;
constexpr std::size_t kTileTokens = 6;
// Tokens whose sums are held at once; a chunk is expanded again for the next ones.
constexpr std::size_t kBatchTokens = 96;

inline __m256i load_vec(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }

// A chunk is read several times, some vectors of each block at a time; memory is asked for in
// order all the same: each reading fetches its share of the lines that follow.
template <std::size_t kVecs>
void prefetch(const std::uint8_t* chunk, std::size_t blocks, std::size_t vec, std::size_t block) {
  const std::uint8_t* line = chunk + (blocks * vec + block * kVecs) * kVecBytes + kPrefetchBytes;
  for (std::size_t i = 0; i < kVecs * kVecBytes; i += kGroupBytes) {  // half of them twice for 1
    _mm_prefetch(reinterpret_cast<const char*>(line + i), _MM_HINT_T0);
  }
}

// Stores a panel's rows of one token.
inline void finish(const TernaryLinearArgs& a, std::size_t panel, std::size_t token,
                   const __m256i (&sums)[kPanelVecs]) {
  for (std::size_t v = 0; v < kPanelVecs; ++v) {
    const std::size_t row = panel * kPanelRows + 8 * v;
    if (row >= a.rows) return;
    const int left = a.rows - row < 8 ? static_cast<int>(a.rows - row) : 8;
    const __m256i mask =
        _mm256_cmpgt_epi32(_mm256_set1_epi32(left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i exact = _mm256_sub_epi32(sums[v], _mm256_set1_epi32(a.act_sum[token]));
    const __m256 scale =
        _mm256_mul_ps(_mm256_loadu_ps(a.row_scale + row), _mm256_set1_ps(a.act_scale[token]));
    __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(exact), scale);
    const std::size_t i = token * a.out_stride + row;
    if (a.residual != nullptr) y = _mm256_add_ps(_mm256_maskload_ps(a.residual + i, mask), y);
    _mm256_maskstore_ps(a.out + i, mask, y);
  }
}

// Adds vectors [vec, vec + Format::kVecs) of each block of a chunk to their sums.
template <typename Format, typename Dot>
void one_token_chunk(const std::uint8_t* chunk, std::size_t blocks, std::size_t vec,
                     const std::int8_t* q, __m256i* sums) {
  constexpr std::size_t kVecs = Format::kVecs;
  const std::uint8_t* bytes = chunk + vec * kVecBytes;
  const Format format;
  __m256i at_bit0[kVecs] = {};
  __m256i at_bit2[kVecs] = {};
  for (std::size_t block = 0; block < blocks; ++block) {
    prefetch<kVecs>(chunk, blocks, vec, block);
    __m256i x[Format::kPlanes];
#pragma GCC unroll 5
    for (std::size_t p = 0; p < Format::kPlanes; ++p) x[p] = load_dword(q + kPlaneColumns * p);
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVecs; ++v) {
      const auto codes = format.decode(load_vec(bytes + v * kVecBytes));
#pragma GCC unroll 5
      for (std::size_t p = 0; p < Format::kPlanes; ++p) {
        __m256i& sum = Format::is_at_bit2(p) ? at_bit2[v] : at_bit0[v];
        Dot::add(sum, format.masked_plane(codes, p), x[p]);
      }
    }
    bytes += kBlockBytes;
    q += kPlaneColumns * Format::kPlanes;
  }
#pragma GCC unroll 4
  for (std::size_t v = 0; v < kVecs; ++v) {
    sums[v] = Dot::fold(sums[v], Dot::add_quarter(at_bit0[v], at_bit2[v]));
  }
}

template <typename Format, typename Dot>
void one_token(const TernaryLinearArgs& a, std::size_t panel) {
  const std::uint8_t* bytes = a.packed + panel * a.blocks * kBlockBytes;
  __m256i sums[kPanelVecs] = {};
  for (std::size_t begin = 0; begin < a.blocks; begin += kOneTokenBlocks) {
    const std::size_t left = a.blocks - begin;
    const std::size_t blocks = left < kOneTokenBlocks ? left : kOneTokenBlocks;
    for (std::size_t v = 0; v < kPanelVecs; v += Format::kVecs) {
      one_token_chunk<Format, Dot>(bytes + begin * kBlockBytes, blocks, v,
                                   a.q + begin * kPlaneColumns * Format::kPlanes, sums + v);
    }
  }
  finish(a, panel, 0, sums);
}

// Adds vectors [vec, vec + kVecs) of each block of a chunk to the sums of kTokens tokens.
template <typename Format, typename Dot, std::size_t kTokens, std::size_t kVecs>
void few_tokens_chunk(const std::uint8_t* chunk, std::size_t blocks, std::size_t vec,
                      const std::int8_t* q, std::size_t stride, __m256i (*sums)[kPanelVecs]) {
  const Format format;
  const std::uint8_t* bytes = chunk + vec * kVecBytes;
  __m256i partial[kTokens][kVecs] = {};
  for (std::size_t block = 0; block < blocks; ++block) {
    prefetch<kVecs>(chunk, blocks, vec, block);
    typename Format::Codes codes[kVecs];
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVecs; ++v) {
      codes[v] = format.decode(load_vec(bytes + v * kVecBytes));
    }
#pragma GCC unroll 5
    for (std::size_t p = 0; p < Format::kPlanes; ++p) {
      __m256i x[kTokens];
#pragma GCC unroll 8
      for (std::size_t t = 0; t < kTokens; ++t) x[t] = load_dword(q + t * stride);
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVecs; ++v) {
        const __m256i w = format.plane(codes[v], p);
#pragma GCC unroll 8
        for (std::size_t t = 0; t < kTokens; ++t) Dot::add(partial[t][v], w, x[t]);
      }
      q += kPlaneColumns;
    }
    bytes += kBlockBytes;
  }
#pragma GCC unroll 8
  for (std::size_t t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVecs; ++v) {
      sums[t][vec + v] = Dot::fold(sums[t][vec + v], partial[t][v]);
    }
  }
}

template <typename Format, typename Dot, std::size_t kTokens>
void few_tokens(const TernaryLinearArgs& a, std::size_t panel) {
  constexpr std::size_t kChunkBlocks = kChunkPlanes / Format::kPlanes;
  constexpr std::size_t kVecs = kTokens == 2 ? Format::kVecs : kTokens <= 4 ? 2 : 1;
  const std::uint8_t* bytes = a.packed + panel * a.blocks * kBlockBytes;
  __m256i sums[kTokens][kPanelVecs] = {};
  for (std::size_t begin = 0; begin < a.blocks; begin += kChunkBlocks) {
    const std::size_t left = a.blocks - begin;
    const std::size_t blocks = left < kChunkBlocks ? left : kChunkBlocks;
    for (std::size_t vec = 0; vec < kPanelVecs; vec += kVecs) {
      few_tokens_chunk<Format, Dot, kTokens, kVecs>(bytes + begin * kBlockBytes, blocks, vec,
                                                    a.q + begin * kPlaneColumns * Format::kPlanes,
                                                    a.q_stride, sums);
    }
  }
  for (std::size_t t = 0; t < kTokens; ++t) finish(a, panel, t, sums[t]);
}

// Expands one row group of a chunk to bytes: out[block][plane][64].
template <typename Format>
void expand(const std::uint8_t* chunk, std::size_t blocks, std::size_t group, std::uint8_t* out) {
  const Format format;
  const std::uint8_t* bytes = chunk + group * kGroupBytes;
  for (std::size_t block = 0; block < blocks; ++block, bytes += kBlockBytes) {
    prefetch<kHalves>(chunk, blocks, group * kHalves, block);
#pragma GCC unroll 2
    for (std::size_t half = 0; half < kHalves; ++half) {
      const auto codes = format.decode(load_vec(bytes + half * kVecBytes));
#pragma GCC unroll 5
      for (std::size_t p = 0; p < Format::kPlanes; ++p) {
        auto* to = reinterpret_cast<__m256i*>(out + (p * kHalves + half) * kVecBytes);
        _mm256_store_si256(to, format.plane(codes, p));
      }
    }
    out += Format::kPlanes * kGroupBytes;
  }
}

// Adds `steps` expanded planes of a group, for kTokens tokens, to sums[token][half].
template <typename Dot, std::size_t kTokens>
void tile(const std::uint8_t* weights, std::size_t steps, const std::int8_t* q, std::size_t stride,
          __m256i (*sums)[kPanelVecs]) {
  // Base pointers three rows apart: base, base + stride and base + 2 * stride are one address mode
  // each.
  constexpr std::size_t kBases = (kTokens + 2) / 3;
  const std::int8_t* bases[kBases];
  for (std::size_t i = 0; i < kBases; ++i) bases[i] = q + 3 * i * stride;
  __m256i partial[kTokens][kHalves] = {};
  for (std::size_t step = 0; step < steps; ++step) {
    const __m256i w0 = load_vec(weights);
    const __m256i w1 = load_vec(weights + kVecBytes);
#pragma GCC unroll 6
    for (std::size_t t = 0; t < kTokens; ++t) {
      const __m256i x = load_dword(bases[t / 3] + t % 3 * stride);
      Dot::add(partial[t][0], w0, x);
      Dot::add(partial[t][1], w1, x);
    }
    weights += kGroupBytes;
    for (std::size_t i = 0; i < kBases; ++i) bases[i] += kPlaneColumns;
  }
  // Constant indices only: a variable one would keep the accumulators in memory throughout.
#pragma GCC unroll 6
  for (std::size_t t = 0; t < kTokens; ++t) {
    sums[t][0] = Dot::fold(sums[t][0], partial[t][0]);
    sums[t][1] = Dot::fold(sums[t][1], partial[t][1]);
  }
}

// Adds a chunk of a panel for `tokens` tokens, in tiles as even as they can be.
template <typename Format, typename Dot>
void tiles(const std::uint8_t* chunk, std::size_t blocks, const std::int8_t* q, std::size_t stride,
           std::size_t tokens, __m256i (*sums)[kPanelVecs]) {
  using Tile = void (*)(const std::uint8_t*, std::size_t, const std::int8_t*, std::size_t,
                        __m256i(*)[kPanelVecs]);
  static constexpr Tile kTiles[kTileTokens + 1] = {
      nullptr, tile<Dot, 1>, tile<Dot, 2>, tile<Dot, 3>, tile<Dot, 4>, tile<Dot, 5>, tile<Dot, 6>};
  alignas(kVecBytes) std::uint8_t expanded[kChunkPlanes * kGroupBytes];
  const std::size_t count = (tokens + kTileTokens - 1) / kTileTokens;
  for (std::size_t group = 0; group < kPanelGroups; ++group) {
    expand<Format>(chunk, blocks, group, expanded);
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t token = tokens * i / count;
      const std::size_t end = tokens * (i + 1) / count;
      auto* to = reinterpret_cast<__m256i(*)[kPanelVecs]>(&sums[token][group * kHalves]);
      kTiles[end - token](expanded, blocks * Format::kPlanes, q + token * stride, stride, to);
    }
  }
}

template <typename Format, typename Dot>
void many_tokens(const TernaryLinearArgs& a, std::size_t panel, std::size_t first,
                 std::size_t tokens) {
  constexpr std::size_t kChunkBlocks = kChunkPlanes / Format::kPlanes;
  const std::uint8_t* bytes = a.packed + panel * a.blocks * kBlockBytes;
  const std::int8_t* q = a.q + first * a.q_stride;
  __m256i sums[kBatchTokens][kPanelVecs];
  for (std::size_t t = 0; t < tokens; ++t) {
    for (__m256i& sum : sums[t]) sum = _mm256_setzero_si256();
  }
  for (std::size_t begin = 0; begin < a.blocks; begin += kChunkBlocks) {
    const std::size_t left = a.blocks - begin;
    tiles<Format, Dot>(bytes + begin * kBlockBytes, left < kChunkBlocks ? left : kChunkBlocks,
                       q + begin * kPlaneColumns * Format::kPlanes, a.q_stride, tokens, sums);
  }
  for (std::size_t t = 0; t < tokens; ++t) finish(a, panel, first + t, sums[t]);
}

template <typename Format, typename Dot>
void ternary_panel(const TernaryLinearArgs& a, std::size_t panel) {
  switch (a.tokens) {
    case 1:
      return one_token<Format, Dot>(a, panel);
    case 2:
      return few_tokens<Format, Dot, 2>(a, panel);
    case 3:
      return few_tokens<Format, Dot, 3>(a, panel);
    case 4:
      return few_tokens<Format, Dot, 4>(a, panel);
    case 5:
      return few_tokens<Format, Dot, 5>(a, panel);
    case 6:
      return few_tokens<Format, Dot, 6>(a, panel);
    case 7:
      return few_tokens<Format, Dot, 7>(a, panel);
    case 8:
      return few_tokens<Format, Dot, 8>(a, panel);
    default: {
      const std::size_t batches = (a.tokens + kBatchTokens - 1) / kBatchTokens;
      for (std::size_t i = 0; i < batches; ++i) {
        const std::size_t first = a.tokens * i / batches;
        many_tokens<Format, Dot>(a, panel, first, a.tokens * (i + 1) / batches - first);
      }
    }
  }
}

template <typename Format, typename Dot>
void ternary_linear(const TernaryLinearArgs& a) {
  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    ternary_panel<Format, Dot>(a, panel);
  }
}

}  // namespace
}  // namespace ryz::RYZ_TIER
