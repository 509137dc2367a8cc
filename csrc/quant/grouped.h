// Weights of 1, 2, 3, 4 or 8 bits in groups of columns that share a scale, in panels, for kernels
// that multiply 4 consecutive k of 16 rows at once:
//
//   weight[n, k] = scale[n, k / group] * (code[n, k] - zero)                     zero = 1, 1, 4, 8,
//   128 weight[n, k] = scale[n, k / group] * code[n, k] + minimum[n, k / group]      with minima
//
// A panel is 64 rows, four row groups of 16 as in ternary.h. Its columns come in records of 32, or
// of a group where that is more, and its records follow each other: a kernel that walks the columns
// of a panel reads memory strictly forwards, scales included. A record is
//
//   scales  [record / group][64]   float16, or float32 where products of scales are to be exact
//   minima  as scales, if there are any
//   codes   [record / 32][row group][bits][64 bytes]
//
// A block is 32 columns: 8 quads of 4. Vector v of a row group's block holds the quads from
// v * 8 / bits on, each at the next higher `bits` bits of a byte: of quad q, byte 4*r + j is row r,
// column 4*q + j. Codes of 3 bits are held in two parts: their lower two bits as those of a 2-bit
// block, then the third as a 1-bit block of its own. Columns past K and rows past N hold zeros and
// are met by activations of zero or not stored. The layout is the same for every tier.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "quant/ternary.h"

namespace ryz {

// Columns whose activations share a scale, and the most whose products are summed as integers.
inline constexpr std::size_t kScaleBlock = 32;
inline constexpr std::size_t kQuadColumns = 4;
inline constexpr std::size_t kBlockQuads = kScaleBlock / kQuadColumns;

// Blocks that fill whole records of every format, for activations of `columns` columns.
constexpr std::size_t padded_blocks(std::size_t columns) { return (columns + 127) / 128 * 4; }

// The bits of a code that lie together in a byte.
struct CodePart {
  std::size_t bits;
  std::size_t shift;   // of the part in a code
  std::size_t vector;  // where in a row group's block its vectors begin

  constexpr std::size_t quads_per_vector() const { return 8u / bits; }
  constexpr unsigned mask() const { return (1u << bits) - 1; }
};

struct GroupedFormat {
  std::uint8_t bits;   // 1, 2, 3, 4 or 8
  std::uint8_t group;  // 16, 32, 64 or 128 columns
  DType scale_dtype;   // kF16 or kF32
  bool has_minimum;

  constexpr std::size_t parts() const { return bits == 3 ? 2 : 1; }
  constexpr CodePart part(std::size_t i) const {
    if (i == 1) return {1, 2, 2};
    return {bits == 3 ? 2u : bits, 0, 0};
  }
  constexpr int zero() const { return has_minimum ? 0 : bits == 2 ? 1 : 1 << (bits - 1); }
  constexpr int max_code() const { return (1 << bits) - 1; }
  constexpr std::size_t record_columns() const { return group < kScaleBlock ? kScaleBlock : group; }
  constexpr std::size_t record_blocks() const { return record_columns() / kScaleBlock; }
  // Rows of scales in a record.
  constexpr std::size_t record_groups() const { return record_columns() / group; }
  constexpr std::size_t scale_row_bytes() const { return kPanelRows * size_of(scale_dtype); }
  constexpr std::size_t minima_offset() const { return record_groups() * scale_row_bytes(); }
  constexpr std::size_t codes_offset() const { return minima_offset() * (has_minimum ? 2 : 1); }
  constexpr std::size_t group_block_bytes() const { return kGroupBytes * bits; }
  constexpr std::size_t block_bytes() const { return kPanelGroups * group_block_bytes(); }
  constexpr std::size_t record_bytes() const {
    return codes_offset() + record_blocks() * block_bytes();
  }
  // Where in a record the part of a code of a panel's row and a column of the record is: the byte,
  // and in it the lowest bit.
  constexpr std::size_t code_byte(CodePart part, std::size_t row, std::size_t column) const {
    const std::size_t quad = column % kScaleBlock / kQuadColumns;
    return codes_offset() + column / kScaleBlock * block_bytes() +
           row / kGroupRows * group_block_bytes() +
           (part.vector + quad / part.quads_per_vector()) * kGroupBytes +
           row % kGroupRows * kQuadColumns + column % kQuadColumns;
  }
  constexpr int code(const std::uint8_t* record, std::size_t row, std::size_t column) const {
    unsigned value = 0;
    for (std::size_t i = 0; i < parts(); ++i) {
      const CodePart p = part(i);
      const std::size_t bit = column / kQuadColumns % p.quads_per_vector() * p.bits;
      value |= (static_cast<unsigned>(record[code_byte(p, row, column)]) >> bit & p.mask())
               << p.shift;
    }
    return static_cast<int>(value);
  }
};

// A block of one token's activations, beside its 32 int8 codes. Kernels start their sums of
// products from minus the codes' sum, which takes off the zero point.
struct ActivationBlock {
  float scale;
  std::int32_t minus_sum;
  std::int32_t minus_half_sums[2];  // of 16 columns each
};

}  // namespace ryz
