// Ternary linear on vpdpbusd, written once for both formats; a Format says how a group's 64 bytes
// become planes of codes. A zmm is 4 consecutive k of 16 rows, so accumulators are per row and
// nothing is summed across lanes.
//
// Three regimes, one integer result:
//   one token   memory bound. Planes are masked, not shifted: plane p's products come out times 4^p
//               in an accumulator of their own, and one exact shift at the end undoes that. The
//               four groups of a panel share each broadcast.
//   2..8        codes brought to bit 0 once, then used for every token from registers.
//   more        the same in groups of at most 8, panel by panel: all but the first find the codes
//               in cache. Unpacking them for each group costs less than bytes that are expanded
//               once and read back.
// Codes are weight + 1: the sum of activations is taken off at the end.
//
// Included by one translation unit per format, each with its own instruction-set flags.
#pragma once

#include "kernels/avx512/dot4.h"
#include "kernels/ops.h"

namespace ryz::RYZ_TIER {
namespace {

constexpr std::size_t kScaledPlanes = 4;  // distinct powers of 4 that masking leaves
constexpr std::size_t kFewTokens = 8;     // as many as registers hold sums of
// An accumulator gains at most 4 * 128 * 127 * 16 per block and must stay inside int32 until it is
// folded.
constexpr std::size_t kFoldBlocks = std::size_t{1} << 12;

inline void finish(const TernaryLinearArgs& a, std::size_t row, std::size_t token, __m512i sum) {
  if (row >= a.rows) return;
  const std::size_t left = a.rows - row;
  const auto mask = static_cast<__mmask16>(left >= kGroupRows ? 0xffffu : (1u << left) - 1);
  const __m512i exact = _mm512_sub_epi32(sum, _mm512_set1_epi32(a.act_sum[token]));
  const __m512 scale =
      _mm512_mul_ps(_mm512_loadu_ps(a.row_scale + row), _mm512_set1_ps(a.act_scale[token]));
  __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), scale);
  const std::size_t i = token * a.out_stride + row;
  if (a.residual != nullptr) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, a.residual + i), y);
  _mm512_mask_storeu_ps(a.out + i, mask, y);
}

template <typename Format>
void one_token(const TernaryLinearArgs& a, std::size_t panel) {
  const Format format;
  const std::uint8_t* bytes = a.packed + panel * a.blocks * kBlockBytes;
  const std::int8_t* q = a.q;
  __m512i totals[kPanelGroups] = {};
  for (std::size_t begin = 0; begin < a.blocks; begin += kFoldBlocks) {
    const std::size_t end = a.blocks - begin < kFoldBlocks ? a.blocks : begin + kFoldBlocks;
    __m512i sums[kPanelGroups][kScaledPlanes] = {};
    for (std::size_t block = begin; block < end; ++block) {
      prefetch_groups(bytes, kPanelGroups);
      __m512i x[Format::kPlanes];
#pragma GCC unroll 5
      for (std::size_t p = 0; p < Format::kPlanes; ++p) x[p] = load_dword(q + kPlaneColumns * p);
#pragma GCC unroll 4
      for (std::size_t g = 0; g < kPanelGroups; ++g) {
        const auto codes = format.decode(load_group(bytes + g * kGroupBytes));
#pragma GCC unroll 5
        for (std::size_t p = 0; p < Format::kPlanes; ++p) {
          dot4(sums[g][p % kScaledPlanes], format.scaled_plane(codes, p), x[p]);
        }
      }
      bytes += kBlockBytes;
      q += kPlaneColumns * Format::kPlanes;
    }
#pragma GCC unroll 4
    for (std::size_t g = 0; g < kPanelGroups; ++g) {
      const __m512i low = _mm512_add_epi32(sums[g][0], _mm512_srai_epi32(sums[g][1], 2));
      const __m512i high =
          _mm512_add_epi32(_mm512_srai_epi32(sums[g][2], 4), _mm512_srai_epi32(sums[g][3], 6));
      totals[g] = _mm512_add_epi32(totals[g], _mm512_add_epi32(low, high));
    }
  }
#pragma GCC unroll 4
  for (std::size_t g = 0; g < kPanelGroups; ++g) {
    finish(a, panel * kPanelRows + g * kGroupRows, 0, totals[g]);
  }
}

template <typename Format, std::size_t kTokens, std::size_t kGroups>
void small_tile(const TernaryLinearArgs& a, std::size_t panel, std::size_t group) {
  const Format format;
  const std::uint8_t* bytes = a.packed + panel * a.blocks * kBlockBytes + group * kGroupBytes;
  const std::int8_t* q = a.q;
  __m512i sums[kGroups][kTokens] = {};
  for (std::size_t block = 0; block < a.blocks; ++block) {
    prefetch_groups(bytes, kGroups);
    typename Format::Codes codes[kGroups];
#pragma GCC unroll 4
    for (std::size_t g = 0; g < kGroups; ++g) {
      codes[g] = format.decode(load_group(bytes + g * kGroupBytes));
    }
#pragma GCC unroll 5
    for (std::size_t p = 0; p < Format::kPlanes; ++p) {
      __m512i weights[kGroups];
#pragma GCC unroll 4
      for (std::size_t g = 0; g < kGroups; ++g) weights[g] = format.plane(codes[g], p);
#pragma GCC unroll 8
      for (std::size_t t = 0; t < kTokens; ++t) {
        const __m512i x = load_dword(q + t * a.q_stride + kPlaneColumns * p);
#pragma GCC unroll 4
        for (std::size_t g = 0; g < kGroups; ++g) dot4(sums[g][t], weights[g], x);
      }
    }
    bytes += kBlockBytes;
    q += kPlaneColumns * Format::kPlanes;
  }
#pragma GCC unroll 4
  for (std::size_t g = 0; g < kGroups; ++g) {
#pragma GCC unroll 8
    for (std::size_t t = 0; t < kTokens; ++t) {
      finish(a, panel * kPanelRows + (group + g) * kGroupRows, t, sums[g][t]);
    }
  }
}

template <typename Format, std::size_t kTokens, std::size_t kGroups>
void small_tiles(const TernaryLinearArgs& a) {
  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    for (std::size_t group = 0; group < kPanelGroups; group += kGroups) {
      small_tile<Format, kTokens, kGroups>(a, panel, group);
    }
  }
}

template <typename Format>
void ternary_linear(const TernaryLinearArgs& a);

// Panel by panel in even groups of at most 8 tokens: all but the first find the codes in cache.
template <typename Format>
void grouped_tokens(const TernaryLinearArgs& a) {
  const std::size_t groups = (a.tokens + kFewTokens - 1) / kFewTokens;
  TernaryLinearArgs part = a;
  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    part.panel_begin = panel;
    part.panel_end = panel + 1;
    for (std::size_t i = 0; i < groups; ++i) {
      const std::size_t first = a.tokens * i / groups;
      part.tokens = a.tokens * (i + 1) / groups - first;
      part.q = a.q + first * a.q_stride;
      part.act_scale = a.act_scale + first;
      part.act_sum = a.act_sum + first;
      part.out = a.out + first * a.out_stride;
      part.residual = a.residual == nullptr ? nullptr : a.residual + first * a.out_stride;
      ternary_linear<Format>(part);
    }
  }
}

template <typename Format>
void ternary_linear(const TernaryLinearArgs& a) {
  switch (a.tokens) {
    case 1:
      for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
        one_token<Format>(a, panel);
      }
      return;
    case 2:
      return small_tiles<Format, 2, 4>(a);
    case 3:
      return small_tiles<Format, 3, 4>(a);
    case 4:
      return small_tiles<Format, 4, 4>(a);
    case 5:
      return small_tiles<Format, 5, 4>(a);
    case 6:
      return small_tiles<Format, 6, 2>(a);
    case 7:
      return small_tiles<Format, 7, 2>(a);
    case 8:
      return small_tiles<Format, 8, 2>(a);
    default:
      return grouped_tokens<Format>(a);
  }
}

}  // namespace
}  // namespace ryz::RYZ_TIER
