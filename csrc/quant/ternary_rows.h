// Ternary weights row by row, packed as ternary.h describes, for products that leave rows out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "base/aligned.h"
#include "quant/ternary_matrix.h"

namespace ryz {

class TernaryRows {
 public:
  // Arrays that buffers() of rows of this shape once gave. Throws ValidationError.
  TernaryRows(std::size_t rows, std::size_t columns, std::map<std::string, Buffer> stored);
  // Rows [row_begin, row_end) of a matrix. Throws ValidationError, OutOfMemoryError.
  static TernaryRows of_rows(const TernaryMatrix& matrix, std::size_t row_begin,
                             std::size_t row_end);
  // The columns of a matrix, each as a row. Throws OutOfMemoryError.
  static TernaryRows of_columns(const TernaryMatrix& matrix);

  std::size_t rows() const { return rows_; }
  std::size_t columns() const { return columns_; }
  std::size_t units() const { return (columns_ + kUnitColumns - 1) / kUnitColumns; }
  std::size_t bytes() const { return packed_.bytes(); }
  const std::uint8_t* packed() const { return packed_.as<std::uint8_t>(); }
  NamedBuffers buffers() { return {{"packed", &packed_}}; }

 private:
  TernaryRows(std::size_t rows, std::size_t columns);

  std::size_t rows_, columns_;
  Buffer packed_;
};

}  // namespace ryz
