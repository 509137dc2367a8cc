// Linear of grouped weights, for vectors of one float sum per row. A Products says how the codes of
// kVecs * kLanes rows and a block are brought into registers and multiplied, or looked up in tables
// (kReadsTables: one token only); the rest is the same for all.
//
// The codes of a block stay in registers while every token of a tile meets them; the tokens of a
// block lie side by side (ops.h), so that weights and activations are both read forwards. A unit
// costs a conversion, a multiplication and an fma on top of its products. A tile's float sums are
// in L1, one token's in registers.
//
// Included by one translation unit per Products, after its tier's simd.h.
#pragma once

#include "kernels/lookup_format.h"
#include "kernels/ops.h"

namespace ryz::RYZ_TIER {
namespace {

constexpr std::size_t kGroupedTileTokens = 32;
constexpr std::size_t kGroupedPrefetchBytes = 4096;
constexpr std::size_t kGroupVecs = kGroupRows / kLanes;
constexpr std::size_t kPanelVecs = kPanelRows / kLanes;

inline Vec load_scales(const GroupedFormat& format, const std::uint8_t* scales, std::size_t i) {
  if (format.scale_dtype == DType::kF32) {
    return load(reinterpret_cast<const float*>(scales) + i);
  }
  return load_f16(reinterpret_cast<const std::uint16_t*>(scales) + i);
}

// x * kFactor in every lane.
template <int kFactor>
inline VecI broadcast_times(std::int32_t x) {
  if constexpr (kFactor == 0) return zero_i();
  constexpr bool kIsPower = kFactor > 0 && (kFactor & (kFactor - 1)) == 0;
  constexpr int kShift = kIsPower ? __builtin_ctz(kFactor) : 0;
  return broadcast_shifted<kShift>(kIsPower ? x : x * kFactor);
}

// Where the codes of a panel's vector of rows begin in a block.
template <std::size_t kBits>
inline const std::uint8_t* vec_codes(const std::uint8_t* block, std::size_t vec) {
  return block + vec / kGroupVecs * kBits * kGroupBytes + vec % kGroupVecs * kLanes * kQuadColumns;
}

// A block of Products::kVecs vectors of rows. kUnits are 1 for whole blocks, 2 for groups of half a
// block.
template <typename Products, std::size_t kUnits, bool kMinimum>
struct GroupedBlock {
  static constexpr std::size_t kBits = Products::kBits;
  static constexpr std::size_t kVecs = Products::kVecs;
  static constexpr std::size_t kUnitQuads = kBlockQuads / kUnits;
  // What the products of codes are to be less by, as a multiple of the activations' sum.
  static constexpr int kZero = kMinimum ? 0 : GroupedFormat{kBits, 0, DType::kF16, false}.zero();

  GroupedBlock(const GroupedFormat& format, const std::uint8_t* record, const std::uint8_t* block,
               std::size_t vec)
      : products(block, vec) {
    const std::uint8_t* minima = record + format.minima_offset();
#pragma GCC unroll 2
    for (std::size_t u = 0; u < kUnits; ++u) {
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVecs; ++v) {
        const std::size_t row = u * kPanelRows + (vec + v) * kLanes;
        scale[u][v] = load_scales(format, record, row);
        if constexpr (kMinimum) minimum[u][v] = load_scales(format, minima, row);
      }
    }
  }

  // Adds this block's products to y[v * stride] for each of its vectors.
  template <typename Operand>
  void add_to(Vec* y, std::size_t stride, const Operand* q, const ActivationBlock& x) const {
#pragma GCC unroll 2
    for (std::size_t u = 0; u < kUnits; ++u) {
      const std::int32_t minus_sum = kUnits == 1 ? x.minus_sum : x.minus_half_sums[u];
      const VecI start = broadcast_times<kZero - Products::kCentre>(minus_sum);
      VecI dots[kVecs];
      products.template dot<kUnitQuads>(u * kUnitQuads, q, start, dots);
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVecs; ++v) {
        Vec sum = y[v * stride];
        sum = fma(to_float(dots[v]), mul(scale[u][v], broadcast(x.scale)), sum);
        if constexpr (kMinimum) {
          const float scaled_sum = x.scale * static_cast<float>(-minus_sum);
          sum = fma(minimum[u][v], broadcast(scaled_sum), sum);
        }
        y[v * stride] = sum;
      }
    }
  }

  Products products;
  Vec scale[kUnits][kVecs];
  Vec minimum[kUnits][kVecs];
};

// Calls body(block, vec, index) for every block of a panel, some vectors of rows at a time.
template <typename Block, typename Body>
inline void walk_panel(const GroupedLinearArgs& a, std::size_t panel, const Body& body) {
  constexpr std::size_t kStepBytes = kGroupBytes * Block::kBits * Block::kVecs / kGroupVecs;
  const GroupedFormat& f = a.format;
  const std::uint8_t* record = a.packed + panel * a.records * f.record_bytes();
  std::size_t index = 0;
  for (std::size_t r = 0; r < a.records; ++r, record += f.record_bytes()) {
    const std::uint8_t* block = record + f.codes_offset();
    for (std::size_t i = 0; i < f.record_blocks(); ++i, ++index, block += f.block_bytes()) {
#pragma GCC unroll 8
      for (std::size_t vec = 0; vec < kPanelVecs; vec += Block::kVecs) {
        prefetch_ahead<kStepBytes>(block + vec / Block::kVecs * kStepBytes, kGroupedPrefetchBytes);
        body(Block(f, record, block, vec), vec, index);
      }
    }
  }
}

inline void finish(const GroupedLinearArgs& a, std::size_t row, std::size_t token, Vec y) {
  if (row >= a.rows) return;
  const std::size_t left = a.rows - row;
  const std::size_t i = token * a.out_stride + row;
  if (a.residual != nullptr) y = add(load_first(a.residual + i, left), y);
  store_first(a.out + i, y, left);
}

// `operands` are what the weights meet, so many of them for each block.
template <typename Block, typename Operand>
void one_token(const GroupedLinearArgs& a, std::size_t panel, const Operand* operands,
               std::size_t stride) {
  Vec sums[kPanelVecs] = {};
  walk_panel<Block>(a, panel, [&](const Block& block, std::size_t vec, std::size_t index) {
    block.add_to(sums + vec, 1, operands + index * stride, a.blocks[index * a.block_stride]);
  });
#pragma GCC unroll 8
  for (std::size_t vec = 0; vec < kPanelVecs; ++vec) {
    finish(a, panel * kPanelRows + vec * kLanes, 0, sums[vec]);
  }
}

template <typename Block>
void tile(const GroupedLinearArgs& a, std::size_t panel, std::size_t first, std::size_t tokens) {
  Vec sums[kPanelVecs][kGroupedTileTokens];
  for (auto& vec : sums) {
    for (std::size_t t = 0; t < tokens; ++t) vec[t] = zero();
  }
  walk_panel<Block>(a, panel, [&](const Block& block, std::size_t vec, std::size_t index) {
    const std::size_t at = index * a.block_stride + first;
    const std::int8_t* q = a.q + at * kScaleBlock;
    for (std::size_t t = 0; t < tokens; ++t, q += kScaleBlock) {
      block.add_to(&sums[vec][t], kGroupedTileTokens, q, a.blocks[at + t]);
    }
  });
  for (std::size_t vec = 0; vec < kPanelVecs; ++vec) {
    for (std::size_t t = 0; t < tokens; ++t) {
      finish(a, panel * kPanelRows + vec * kLanes, first + t, sums[vec][t]);
    }
  }
}

template <typename Products, std::size_t kUnits, bool kMinimum>
void grouped_panels(const GroupedLinearArgs& a) {
  using Block = GroupedBlock<Products, kUnits, kMinimum>;
  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    if constexpr (Products::kReadsTables) {
      one_token<Block>(a, panel, a.tables, block_table_bytes(Products::kBits));
    } else if (a.tokens == 1) {
      one_token<Block>(a, panel, a.q, a.block_stride * kScaleBlock);
    } else {
      const std::size_t tiles = (a.tokens + kGroupedTileTokens - 1) / kGroupedTileTokens;
      for (std::size_t i = 0; i < tiles; ++i) {
        const std::size_t first = a.tokens * i / tiles;
        tile<Block>(a, panel, first, a.tokens * (i + 1) / tiles - first);
      }
    }
  }
}

template <typename Products>
void grouped_linear_of_bits(const GroupedLinearArgs& a) {
  const bool halves = a.format.group < kScaleBlock;
  if (a.format.has_minimum) {
    halves ? grouped_panels<Products, 2, true>(a) : grouped_panels<Products, 1, true>(a);
  } else {
    halves ? grouped_panels<Products, 2, false>(a) : grouped_panels<Products, 1, false>(a);
  }
}

// kMostBits is 8, or 4 for tables.
template <template <std::size_t> typename Products, std::size_t kMostBits>
void grouped_linear_by(const GroupedLinearArgs& a) {
  switch (a.format.bits) {
    case 1:
      return grouped_linear_of_bits<Products<1>>(a);
    case 2:
      return grouped_linear_of_bits<Products<2>>(a);
    case 3:
      return grouped_linear_of_bits<Products<3>>(a);
    case 4:
      return grouped_linear_of_bits<Products<4>>(a);
    default:
      if constexpr (kMostBits == 8) grouped_linear_of_bits<Products<8>>(a);
  }
}

}  // namespace
}  // namespace ryz::RYZ_TIER
