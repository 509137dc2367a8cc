// Linear of grouped weights whose activations stay floats: a lane is a row, and every weight is
// made a float in registers, by moving its byte and converting. Its bits come to lie at the byte's
// top, so it is a power of two times too large; the scale makes up for that. For heads: errors of
// rounded activations would be seen in every logit.
#pragma once

#include "kernels/ops.h"
#include "kernels/vector/grouped_linear.h"

namespace ryz::RYZ_TIER {
namespace {

// Vectors of rows by tokens that are worked on together: for one token, and for several.
constexpr std::size_t kTokenVecs = 4;
constexpr std::size_t kFewFloatVecs = 2;
constexpr std::size_t kFewFloatTokens = 4;

template <std::size_t kBits, bool kMinimum, std::size_t kVecs, std::size_t kTokens>
struct WeightOnlyTile {
  static constexpr std::size_t kPlanes = 8 / kBits;
  // Codes of 4 and 8 bits get a sign in place of a zero point.
  static constexpr bool kSigned = !kMinimum && kBits > 2;
  // Where the byte of a weight is moved to: above everything, where its sign is the lane's, unless
  // it has none.
  static constexpr std::size_t kByte = kSigned ? 3 : 2;
  static constexpr float kUnit = 1.0f / (1u << (8 * kByte + 8 - kBits));
  static constexpr float kZero = kMinimum || kSigned ? 0.0f : 1.0f / kUnit;

  explicit WeightOnlyTile(const WeightOnlyLinearArgs& args) : a(args) {
    for (auto& token : sums) {
      for (Vec& sum : token) sum = zero();
    }
  }

  // Adds `columns` columns of a block from one of its quads on. `scales` are those of their group.
  void unit(const std::uint8_t* block, const std::uint8_t* scales, std::size_t vec,
            std::size_t first_quad, const float* x, std::size_t columns) {
    const Vec unit_size = broadcast(kUnit);
    Vec scale[kVecs], minimum[kVecs], parts[kTokens][kVecs];
    for (std::size_t v = 0; v < kVecs; ++v) {
      const std::size_t row = (vec + v) * kLanes;
      scale[v] = mul(load_scales(a.format, scales, row), unit_size);
      minimum[v] =
          kMinimum ? load_scales(a.format, scales + a.format.minima_offset(), row) : zero();
      for (auto& token : parts) token[v] = zero();
    }
    // A unit begins with the first plane of its bytes.
    std::size_t offset = first_quad / kPlanes * kGroupBytes;
    for (std::size_t column = 0; column < columns; offset += kGroupBytes) {
      for (std::size_t v = 0; v < kVecs; ++v) {
        prefetch_ahead<64>(vec_codes<kBits>(block, vec + v) + offset, kGroupedPrefetchBytes);
      }
#pragma GCC unroll 4
      for (std::size_t plane = 0; plane < kPlanes && column < columns; ++plane) {
        VecI tops[kVecs];
        for (std::size_t v = 0; v < kVecs; ++v) {
          tops[v] = top_bits(load_i(vec_codes<kBits>(block, vec + v) + offset), plane);
        }
        const std::size_t left = columns - column;
#pragma GCC unroll 4
        for (std::size_t j = 0; j < kQuadColumns; ++j) {
          if (j < left) multiply(tops, scale, minimum, x + column, j, parts);
        }
        column += kQuadColumns;
      }
    }
    for (std::size_t t = 0; t < kTokens; ++t) {
      for (std::size_t v = 0; v < kVecs; ++v) {
        sums[t][v] =
            kMinimum ? add(sums[t][v], parts[t][v]) : fma(scale[v], parts[t][v], sums[t][v]);
      }
    }
  }

  const WeightOnlyLinearArgs& a;
  Vec sums[kTokens][kVecs];

 private:
  // The bits of a plane at the top of their bytes, with zeros below.
  static VecI top_bits(VecI codes, std::size_t plane) {
    constexpr int kTop = 0xff & (0xff << (8 - kBits));
    const VecI top = shift_bytes<kTop>(codes, static_cast<int>(8 - kBits - plane * kBits));
    return kSigned ? flip_bytes<0x80>(top) : top;
  }

  void multiply(const VecI* tops, const Vec* scale, const Vec* minimum, const float* x,
                std::size_t j, Vec (&parts)[kTokens][kVecs]) {
    Vec xs[kTokens];
    for (std::size_t t = 0; t < kTokens; ++t) xs[t] = broadcast(x[t * a.k + j]);
    for (std::size_t v = 0; v < kVecs; ++v) {
      Vec weight = to_float(move_byte<kByte>(tops[v], j));
      if constexpr (kMinimum) weight = fma(scale[v], weight, minimum[v]);
      if constexpr (kZero > 0.0f) weight = sub(weight, broadcast(kZero));
      for (std::size_t t = 0; t < kTokens; ++t) parts[t][v] = fma(weight, xs[t], parts[t][v]);
    }
  }
};

// kVecs vectors of a panel's rows from `vec` on, and kTokens tokens.
template <std::size_t kBits, bool kMinimum, std::size_t kVecs, std::size_t kTokens>
inline void weight_only_tile(const WeightOnlyLinearArgs& a, std::size_t panel, std::size_t vec,
                             std::size_t token) {
  const GroupedFormat& f = a.format;
  const std::size_t width = f.group < kScaleBlock ? f.group : kScaleBlock;
  const std::uint8_t* record = a.packed + panel * a.records * f.record_bytes();
  const float* x = a.x + token * a.k;
  WeightOnlyTile<kBits, kMinimum, kVecs, kTokens> tile(a);
  std::size_t left = a.k;
  for (std::size_t r = 0; r < a.records; ++r, record += f.record_bytes()) {
    for (std::size_t column = 0; column < f.record_columns() && left > 0; column += width) {
      const std::size_t columns = left < width ? left : width;
      tile.unit(record + f.codes_offset() + column / kScaleBlock * f.block_bytes(),
                record + column / f.group * f.scale_row_bytes(), vec,
                column % kScaleBlock / kQuadColumns, x, columns);
      x += columns;
      left -= columns;
    }
  }
  for (std::size_t t = 0; t < kTokens; ++t) {
    for (std::size_t v = 0; v < kVecs; ++v) {
      const std::size_t row = panel * kPanelRows + (vec + v) * kLanes;
      if (row >= a.rows) break;
      store_first(a.out + (token + t) * a.out_stride + row, tile.sums[t][v], a.rows - row);
    }
  }
}

template <std::size_t kBits, bool kMinimum>
inline void weight_only_panels(const WeightOnlyLinearArgs& a) {
  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    std::size_t t = 0;
    for (; t + kFewFloatTokens <= a.tokens; t += kFewFloatTokens) {
      for (std::size_t vec = 0; vec < kPanelVecs; vec += kFewFloatVecs) {
        weight_only_tile<kBits, kMinimum, kFewFloatVecs, kFewFloatTokens>(a, panel, vec, t);
      }
    }
    for (; t < a.tokens; ++t) {
      for (std::size_t vec = 0; vec < kPanelVecs; vec += kTokenVecs) {
        weight_only_tile<kBits, kMinimum, kTokenVecs, 1>(a, panel, vec, t);
      }
    }
  }
}

template <std::size_t kBits>
inline void weight_only_of_bits(const WeightOnlyLinearArgs& a) {
  a.format.has_minimum ? weight_only_panels<kBits, true>(a) : weight_only_panels<kBits, false>(a);
}

inline void weight_only_linear(const WeightOnlyLinearArgs& a) noexcept {
  switch (a.format.bits) {
    case 2:
      return weight_only_of_bits<2>(a);
    case 4:
      return weight_only_of_bits<4>(a);
    default:
      return weight_only_of_bits<8>(a);
  }
}

}  // namespace
}  // namespace ryz::RYZ_TIER
