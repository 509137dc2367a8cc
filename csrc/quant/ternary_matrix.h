// A ternary matrix [N, K] with one scale per row, packed as ternary.h describes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "base/aligned.h"
#include "base/dtype.h"
#include "quant/ternary.h"

namespace ryz {

class TernaryMatrix {
 public:
  // Throws ValidationError on empty or oversized shapes, OutOfMemoryError.
  TernaryMatrix(std::size_t out_features, std::size_t in_features, TernaryFormat format);

  std::size_t out_features() const { return rows_; }
  std::size_t in_features() const { return columns_; }
  std::size_t panels() const { return panels_; }
  std::size_t blocks() const { return blocks_; }
  TernaryFormat format() const { return format_; }
  std::size_t bytes() const { return packed_.bytes() + row_scale_.bytes(); }
  std::size_t rows_packed() const { return rows_packed_; }
  const std::uint8_t* packed() const { return packed_.as<std::uint8_t>(); }
  const float* row_scale() const { return row_scale_.as<float>(); }

  // Rows [row_begin, row_begin + 4 * quarter) from the Hugging Face form [quarter, K]: bits
  // 2i+1..2i of byte [r, k] are the code of row i * quarter + r. Throws QuantizationError on
  // code 3.
  void pack_hf(std::size_t row_begin, const std::uint8_t* packed, std::size_t quarter, float scale);

  // Rows from int8 values in {-1, 0, 1}. Throws QuantizationError on any other.
  void pack_codes(std::size_t row_begin, const std::int8_t* codes, std::span<const float> scales);

  // Ternarises `rows` full-precision rows: s = max(mean |w|, 1e-5) over all of them, values
  // clamp(round_half_even(w / s), -1, 1). Returns s, which becomes the scale of these rows.
  float pack_master(std::size_t row_begin, const void* weights, DType dtype, std::size_t rows);

  // The arrays that hold the packed weights.
  NamedBuffers buffers() { return {{"packed", &packed_}, {"row_scale", &row_scale_}}; }
  // Takes the arrays of a matrix of the same shape and format, packed before: every row is filled,
  // and none can be packed again. Throws ValidationError.
  void adopt(std::map<std::string, Buffer> stored);

  bool is_zero_row(std::size_t row) const;
  // The values of one row as int8 [K].
  void unpack_row(std::size_t row, std::int8_t* values) const;

 private:
  void check_rows(const char* op, std::size_t row_begin, std::size_t rows) const;
  void pack_row(std::size_t row, const std::uint8_t* codes, unsigned shift);
  [[noreturn]] void throw_invalid_code(std::size_t row, const std::uint8_t* codes,
                                       unsigned shift) const;
  void set_scale(std::size_t row_begin, std::size_t rows, float scale);

  std::size_t rows_, columns_, panels_, blocks_;
  TernaryFormat format_;
  std::size_t rows_packed_ = 0;
  bool is_stored_ = false;
  Buffer packed_;
  Buffer row_scale_;
};

}  // namespace ryz
