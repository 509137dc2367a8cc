#include <cmath>

#include "kernels/lookup_format.h"
#include "kernels/ops.h"
#include "kernels/vector/lookup_tables.h"

namespace ryz::scalar {
namespace {

// Sums of (code - zero) * q over the columns [column, column + columns) of a row and a record.
// `block` is where the record's first block is in the activations.
struct MultiplyAdd {
  const GroupedLinearArgs& a;
  std::size_t token;

  std::int32_t dot(const std::uint8_t* record, std::size_t block, std::size_t row,
                   std::size_t column, std::size_t columns) const {
    const std::size_t at = (block + column / kScaleBlock) * a.block_stride + token;
    const std::int8_t* q = a.q + at * kScaleBlock + column % kScaleBlock;
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < columns; ++i) {
      sum += (a.format.code(record, row, column + i) - a.format.zero()) * q[i];
    }
    return sum;
  }
};

struct LookUp {
  const GroupedLinearArgs& a;

  std::int32_t dot(const std::uint8_t* record, std::size_t block, std::size_t row,
                   std::size_t column, std::size_t columns) const {
    const GroupedFormat& f = a.format;
    block += column / kScaleBlock;
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < f.parts(); ++i) {
      const CodePart part = f.part(i);
      const LookupPart lookup{part.bits};
      const std::uint8_t* tables = a.tables + block * block_table_bytes(f.bits) +
                                   block_nibbles(part.vector) * kNibbleTableBytes;
      // By quads of the first code of a nibble.
      for (std::size_t c = column; c < column + columns; c += lookup.codes() * kQuadColumns) {
        const std::size_t nibble = c % kScaleBlock / kQuadColumns / lookup.codes();
        const std::uint8_t* table = tables + nibble * kNibbleTableBytes;
        for (std::size_t j = 0; j < kQuadColumns; ++j) {
          const unsigned byte = record[f.code_byte(part, row, c + j)];
          const std::size_t at =
              kTableOfColumn[j] * kNibbleSums + (byte >> nibble % 2 * 4) % kNibbleSums;
          const int biased = table[at] + (table[kPieceBytes + at] << lookup.low_bits());
          sum += (biased - lookup.bias()) * (1 << part.shift);
        }
      }
    }
    const ActivationBlock& x = a.blocks[block * a.block_stride];
    const std::int32_t minus_sum =
        columns == kScaleBlock ? x.minus_sum : x.minus_half_sums[column / columns % 2];
    return sum + minus_sum * (f.zero() - lookup_centre(f.bits));
  }
};

// The linear of one row and token.
template <typename Products>
float row_dot(const GroupedLinearArgs& a, const Products& products, std::size_t row,
              std::size_t token) {
  const GroupedFormat& f = a.format;
  const std::size_t unit = f.group < kScaleBlock ? f.group : kScaleBlock;
  const std::uint8_t* record = a.packed + row / kPanelRows * a.records * f.record_bytes();
  float y = 0.0f;
  for (std::size_t r = 0; r < a.records; ++r, record += f.record_bytes()) {
    for (std::size_t column = 0; column < f.record_columns(); column += unit) {
      const std::size_t first = r * f.record_blocks();
      const ActivationBlock& block =
          a.blocks[(first + column / kScaleBlock) * a.block_stride + token];
      const std::size_t scale = column / f.group * kPanelRows + row % kPanelRows;
      const std::int32_t dot = products.dot(record, first, row % kPanelRows, column, unit);
      const float factor = element_to_f32(record, f.scale_dtype, scale) * block.scale;
      y = std::fma(static_cast<float>(dot), factor, y);
      if (!f.has_minimum) continue;
      const std::int32_t minus_sum =
          unit == kScaleBlock ? block.minus_sum : block.minus_half_sums[column / unit % 2];
      const float minimum = element_to_f32(record + f.minima_offset(), f.scale_dtype, scale);
      y = std::fma(minimum, block.scale * static_cast<float>(-minus_sum), y);
    }
  }
  return y;
}

template <typename Products>
void rows_of_token(const GroupedLinearArgs& a, const Products& products, std::size_t token) {
  const std::size_t end = a.panel_end * kPanelRows < a.rows ? a.panel_end * kPanelRows : a.rows;
  for (std::size_t row = a.panel_begin * kPanelRows; row < end; ++row) {
    const std::size_t i = token * a.out_stride + row;
    const float y = row_dot(a, products, row, token);
    a.out[i] = a.residual == nullptr ? y : a.residual[i] + y;
  }
}

void nibble_tables(LookupPart part, const std::int8_t* q, std::uint8_t* tables) {
  for (std::size_t j = 0; j < kQuadColumns; ++j) {
    for (std::size_t index = 0; index < kNibbleSums; ++index) {
      int sum = part.bias();
      for (std::size_t i = 0; i < part.codes(); ++i) {
        const auto code = static_cast<int>(index >> i * part.bits & ((1u << part.bits) - 1));
        sum += (code - part.centre()) * q[i * kQuadColumns + j];
      }
      std::uint8_t* at = tables + kTableOfColumn[j] * kNibbleSums + index;
      at[0] = static_cast<std::uint8_t>(sum & ((1 << part.low_bits()) - 1));
      at[kPieceBytes] = static_cast<std::uint8_t>(sum >> part.low_bits());
    }
  }
}

}  // namespace

void grouped_linear(const GroupedLinearArgs& a) noexcept {
  for (std::size_t t = 0; t < a.tokens; ++t) rows_of_token(a, MultiplyAdd{a, t}, t);
}

void lookup_linear(const GroupedLinearArgs& a) noexcept { rows_of_token(a, LookUp{a}, 0); }

void lookup_tables(const LookupTablesArgs& a) noexcept { make_tables(a, nibble_tables); }

}  // namespace ryz::scalar
