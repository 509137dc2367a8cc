// AVX-512: vpdpbusd of unsigned codes with broadcast activations; a zmm is 4 consecutive k of 16 rows,
// so accumulators are per row and nothing is summed across lanes.
//
// Three regimes, one integer result:
//   one token   memory bound. Planes are masked, not shifted: plane p's products come out times 4^p
//               in an accumulator of their own, and one exact shift at the end undoes that. Per 64
//               bytes: 4 vpandd + 4 vpdpbusd. Four row groups share each broadcast.
//   2..8        codes shifted to bit 0 once, then used for every token from registers.
//   more        two row groups expanded to bytes in scratch (L2), then tiles of 2 groups x 12
//               tokens: 24 accumulators, 2 weight loads and 12 broadcasts for 24 vpdpbusd.
// Codes are weight + 1: the sum of activations is taken off at the end.
#include <immintrin.h>

#include "kernels/ops.h"

namespace ryz::avx512 {
namespace {

constexpr std::size_t kPlanes = 4;
constexpr std::size_t kSmallTokens = 8;   // widest tile that unpacks on the fly
constexpr std::size_t kTileTokens = 12;   // widest tile over an expanded panel
constexpr std::size_t kPanelGroups = 2;
// Plane 3 gains at most 4 * 128 * 127 * 16 per block and must stay inside int32 until it is folded.
constexpr std::size_t kFoldBlocks = std::size_t{1} << 12;

inline __m512i load_dword(const std::int8_t* p) {
  int dword;
  __builtin_memcpy(&dword, p, sizeof dword);
  return _mm512_set1_epi32(dword);
}

inline __m512i load_block(const std::uint8_t* p) { return _mm512_load_si512(p); }

inline void finish(const TernaryLinearArgs& a, std::size_t group, std::size_t token,
                   __m512i sum) {
  const std::size_t row = group * kGroupRows;
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

template <std::size_t kGroups>
void one_token(const TernaryLinearArgs& a, std::size_t group) {
  const std::uint8_t* packed = a.packed + group * a.blocks * kBlockBytes;
  const std::size_t group_bytes = a.blocks * kBlockBytes;
  const __m512i masks[kPlanes] = {_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c),
                                  _mm512_set1_epi8(0x30), _mm512_set1_epi8(-0x40)};
  __m512i totals[kGroups] = {};
  for (std::size_t begin = 0; begin < a.blocks; begin += kFoldBlocks) {
    const std::size_t end = a.blocks - begin < kFoldBlocks ? a.blocks : begin + kFoldBlocks;
    __m512i sums[kGroups][kPlanes] = {};
    for (std::size_t block = begin; block < end; ++block) {
      const std::int8_t* q = a.q + block * kBlockColumns;
      const std::uint8_t* bytes = packed + block * kBlockBytes;
#pragma GCC unroll 4
      for (std::size_t plane = 0; plane < kPlanes; ++plane) {
        const __m512i x = load_dword(q + 4 * plane);
#pragma GCC unroll 4
        for (std::size_t g = 0; g < kGroups; ++g) {
          const __m512i codes =
              _mm512_and_si512(load_block(bytes + g * group_bytes), masks[plane]);
          sums[g][plane] = _mm512_dpbusd_epi32(sums[g][plane], codes, x);
        }
      }
    }
    for (std::size_t g = 0; g < kGroups; ++g) {
      const __m512i low = _mm512_add_epi32(sums[g][0], _mm512_srai_epi32(sums[g][1], 2));
      const __m512i high = _mm512_add_epi32(_mm512_srai_epi32(sums[g][2], 4),
                                            _mm512_srai_epi32(sums[g][3], 6));
      totals[g] = _mm512_add_epi32(totals[g], _mm512_add_epi32(low, high));
    }
  }
  for (std::size_t g = 0; g < kGroups; ++g) finish(a, group + g, 0, totals[g]);
}

template <std::size_t kTokens, std::size_t kGroups>
void small_tile(const TernaryLinearArgs& a, std::size_t group, std::size_t token) {
  const std::size_t stride = a.blocks * kBlockColumns;
  const std::size_t group_bytes = a.blocks * kBlockBytes;
  const std::uint8_t* packed = a.packed + group * group_bytes;
  const std::int8_t* q = a.q + token * stride;
  const __m512i code_mask = _mm512_set1_epi8(3);
  __m512i sums[kGroups][kTokens] = {};
  for (std::size_t block = 0; block < a.blocks; ++block) {
    __m512i codes[kGroups];
    for (std::size_t g = 0; g < kGroups; ++g) {
      codes[g] = load_block(packed + g * group_bytes + block * kBlockBytes);
    }
#pragma GCC unroll 4
    for (std::size_t plane = 0; plane < kPlanes; ++plane) {
      __m512i weights[kGroups];
      for (std::size_t g = 0; g < kGroups; ++g) {
        weights[g] = _mm512_and_si512(codes[g], code_mask);
        codes[g] = _mm512_srli_epi16(codes[g], 2);
      }
#pragma GCC unroll 8
      for (std::size_t t = 0; t < kTokens; ++t) {
        const __m512i x = load_dword(q + t * stride + block * kBlockColumns + 4 * plane);
        for (std::size_t g = 0; g < kGroups; ++g) {
          sums[g][t] = _mm512_dpbusd_epi32(sums[g][t], weights[g], x);
        }
      }
    }
  }
  for (std::size_t g = 0; g < kGroups; ++g) {
    for (std::size_t t = 0; t < kTokens; ++t) finish(a, group + g, token + t, sums[g][t]);
  }
}

// Expands `groups` (1 or 2) row groups to bytes: scratch[block][plane][group][64]. A missing second
// group is left as it was: its sums are not stored.
void expand_panel(const TernaryLinearArgs& a, std::size_t group, std::size_t groups) {
  const __m512i code_mask = _mm512_set1_epi8(3);
  for (std::size_t g = 0; g < groups; ++g) {
    const std::uint8_t* packed = a.packed + (group + g) * a.blocks * kBlockBytes;
    std::uint8_t* out = a.scratch + g * kBlockBytes;
    for (std::size_t block = 0; block < a.blocks; ++block) {
      __m512i codes = load_block(packed + block * kBlockBytes);
      for (std::size_t plane = 0; plane < kPlanes; ++plane) {
        _mm512_store_si512(out + (block * kPlanes + plane) * kPanelGroups * kBlockBytes,
                           _mm512_and_si512(codes, code_mask));
        codes = _mm512_srli_epi16(codes, 2);
      }
    }
  }
}

template <std::size_t kTokens>
void panel_tile(const TernaryLinearArgs& a, std::size_t group, std::size_t groups,
                std::size_t token) {
  const std::size_t stride = a.blocks * kBlockColumns;
  // Base pointers three rows apart: base, base + stride and base + 2 * stride are one address mode
  // each, so 12 rows take 5 registers where 12 pointers would spill.
  constexpr std::size_t kBases = (kTokens + 2) / 3;
  const std::int8_t* bases[kBases];
  for (std::size_t i = 0; i < kBases; ++i) bases[i] = a.q + (token + 3 * i) * stride;
  const std::uint8_t* weights = a.scratch;
  __m512i sums[kPanelGroups][kTokens] = {};
  for (std::size_t step = 0; step < a.blocks * kPlanes; ++step) {
    const __m512i w0 = load_block(weights);
    const __m512i w1 = load_block(weights + kBlockBytes);
#pragma GCC unroll 12
    for (std::size_t t = 0; t < kTokens; ++t) {
      const __m512i x = load_dword(bases[t / 3] + t % 3 * stride);
      sums[0][t] = _mm512_dpbusd_epi32(sums[0][t], w0, x);
      sums[1][t] = _mm512_dpbusd_epi32(sums[1][t], w1, x);
    }
    weights += kPanelGroups * kBlockBytes;
    for (std::size_t i = 0; i < kBases; ++i) bases[i] += 4;
  }
  for (std::size_t g = 0; g < groups; ++g) {
    for (std::size_t t = 0; t < kTokens; ++t) finish(a, group + g, token + t, sums[g][t]);
  }
}

template <std::size_t kTokens>
void small_tiles(const TernaryLinearArgs& a) {
  std::size_t group = a.group_begin;
  for (; group + 2 <= a.group_end; group += 2) small_tile<kTokens, 2>(a, group, 0);
  if (group < a.group_end) small_tile<kTokens, 1>(a, group, 0);
}

void panel_remainder(const TernaryLinearArgs& a, std::size_t group, std::size_t groups,
                     std::size_t token) {
  using Tile = void (*)(const TernaryLinearArgs&, std::size_t, std::size_t, std::size_t);
  static constexpr Tile kTiles[kTileTokens] = {
      nullptr,       panel_tile<1>, panel_tile<2>, panel_tile<3>, panel_tile<4>,  panel_tile<5>,
      panel_tile<6>, panel_tile<7>, panel_tile<8>, panel_tile<9>, panel_tile<10>, panel_tile<11>};
  const std::size_t left = a.tokens - token;
  if (left != 0) kTiles[left](a, group, groups, token);
}

void many_tokens(const TernaryLinearArgs& a) {
  for (std::size_t group = a.group_begin; group < a.group_end; group += kPanelGroups) {
    const std::size_t left = a.group_end - group;
    const std::size_t groups = left < kPanelGroups ? left : kPanelGroups;
    expand_panel(a, group, groups);
    std::size_t token = 0;
    for (; token + kTileTokens <= a.tokens; token += kTileTokens) {
      panel_tile<kTileTokens>(a, group, groups, token);
    }
    panel_remainder(a, group, groups, token);
  }
}

}  // namespace

void ternary_linear(const TernaryLinearArgs& a) noexcept {
  static_assert(kSmallTokens == 8);
  switch (a.tokens) {
    case 1: {
      std::size_t group = a.group_begin;
      for (; group + 4 <= a.group_end; group += 4) one_token<4>(a, group);
      for (; group < a.group_end; ++group) one_token<1>(a, group);
      return;
    }
    case 2:
      return small_tiles<2>(a);
    case 3:
      return small_tiles<3>(a);
    case 4:
      return small_tiles<4>(a);
    case 5:
      return small_tiles<5>(a);
    case 6:
      return small_tiles<6>(a);
    case 7:
      return small_tiles<7>(a);
    case kSmallTokens:
      return small_tiles<8>(a);
    default:
      return many_tokens(a);
  }
}

}  // namespace ryz::avx512
