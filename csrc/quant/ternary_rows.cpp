#include "quant/ternary_rows.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/arena.h"
#include "base/error.h"

namespace ryz {
namespace {

// joined[i] = the byte of five weights that lie `stride` apart from values[i] on.
void join_planes(const std::int8_t* values, std::size_t stride, std::size_t count,
                 std::uint8_t* joined) {
  for (std::size_t i = 0; i < count; ++i) {
    int n = values[i + 4 * stride];
    for (std::size_t p = 4; p-- > 0;) n = 3 * n + values[i + p * stride];
    joined[i] = static_cast<std::uint8_t>(n < 0 ? 0x80 | -n : n);
  }
}

}  // namespace

TernaryRows::TernaryRows(std::size_t rows, std::size_t columns)
    : rows_(rows),
      columns_(columns),
      packed_(weight_buffer(rows * units() * kUnitBytes, "ternary rows")) {}

TernaryRows::TernaryRows(std::size_t rows, std::size_t columns,
                         std::map<std::string, Buffer> stored)
    : TernaryRows(rows, columns) {
  adopt_buffers(buffers(), std::move(stored));
}

TernaryRows TernaryRows::of_rows(const TernaryMatrix& matrix, std::size_t row_begin,
                                 std::size_t row_end) {
  if (row_begin >= row_end || row_end > matrix.out_features()) {
    throw ValidationError("[ternary_rows] rows " + std::to_string(row_begin) + ".." +
                          std::to_string(row_end) + " are not within a matrix of " +
                          std::to_string(matrix.out_features()));
  }
  TernaryRows out(row_end - row_begin, matrix.in_features());
  std::vector<std::int8_t> values(out.units() * kUnitColumns);
  auto* bytes = out.packed_.as<std::uint8_t>();
  for (std::size_t row = row_begin; row < row_end; ++row) {
    matrix.unpack_row(row, values.data());
    for (std::size_t unit = 0; unit < out.units(); ++unit, bytes += kUnitBytes) {
      join_planes(values.data() + unit * kUnitColumns, kUnitBytes, kUnitBytes, bytes);
    }
  }
  return out;
}

// Unit by unit: its 320 source rows are unpacked, joined along the source's columns, and the 64
// rows of bytes that gives are turned.
TernaryRows TernaryRows::of_columns(const TernaryMatrix& matrix) {
  const std::size_t width = matrix.in_features();
  TernaryRows out(width, matrix.out_features());
  std::vector<std::int8_t> values(kUnitColumns * width);
  std::vector<std::uint8_t> joined(kUnitBytes * width);
  const std::size_t stride = out.units() * kUnitBytes;
  for (std::size_t unit = 0; unit < out.units(); ++unit) {
    const std::size_t first = unit * kUnitColumns;
    const std::size_t rows = std::min(kUnitColumns, out.columns_ - first);
    for (std::size_t r = 0; r < rows; ++r) {
      matrix.unpack_row(first + r, values.data() + r * width);
    }
    std::fill(values.begin() + static_cast<std::ptrdiff_t>(rows * width), values.end(),
              std::int8_t{0});
    join_planes(values.data(), kUnitBytes * width, joined.size(), joined.data());
    std::uint8_t* bytes = out.packed_.as<std::uint8_t>() + unit * kUnitBytes;
    for (std::size_t column = 0; column < width; ++column, bytes += stride) {
      for (std::size_t b = 0; b < kUnitBytes; ++b) bytes[b] = joined[b * width + column];
    }
  }
  return out;
}

}  // namespace ryz
