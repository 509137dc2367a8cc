#include <cmath>

#include "kernels/ops.h"

namespace ryz::scalar {
namespace {

std::int32_t unit_dot(const GroupedFormat& f, const std::uint8_t* record, std::size_t row,
                      std::size_t column, std::size_t columns, const std::int8_t* q) {
  std::int32_t sum = 0;
  for (std::size_t i = 0; i < columns; ++i) {
    const int code = record[f.code_byte(row, column + i)] >> f.code_shift(column + i);
    sum += ((code & f.max_code()) - f.zero()) * q[i];
  }
  return sum;
}

// The linear of one row and token.
float row_dot(const GroupedLinearArgs& a, std::size_t row, std::size_t token) {
  const GroupedFormat& f = a.format;
  const std::size_t unit = f.group < kScaleBlock ? f.group : kScaleBlock;
  const std::uint8_t* record = a.packed + row / kPanelRows * a.records * f.record_bytes();
  float y = 0.0f;
  for (std::size_t r = 0; r < a.records; ++r, record += f.record_bytes()) {
    for (std::size_t column = 0; column < f.record_columns(); column += unit) {
      const std::size_t at =
          (r * f.record_blocks() + column / kScaleBlock) * a.block_stride + token;
      const ActivationBlock& block = a.blocks[at];
      const std::int8_t* q = a.q + at * kScaleBlock + column % kScaleBlock;
      const std::size_t scale = column / f.group * kPanelRows + row % kPanelRows;
      const std::int32_t dot = unit_dot(f, record, row % kPanelRows, column, unit, q);
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

}  // namespace

void grouped_linear(const GroupedLinearArgs& a) noexcept {
  const std::size_t end = a.panel_end * kPanelRows < a.rows ? a.panel_end * kPanelRows : a.rows;
  for (std::size_t t = 0; t < a.tokens; ++t) {
    for (std::size_t row = a.panel_begin * kPanelRows; row < end; ++row) {
      const std::size_t i = t * a.out_stride + row;
      const float y = row_dot(a, row, t);
      a.out[i] = a.residual == nullptr ? y : a.residual[i] + y;
    }
  }
}

}  // namespace ryz::scalar
