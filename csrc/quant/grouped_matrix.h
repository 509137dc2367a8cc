// A matrix [N, K] of 1-, 2-, 3-, 4- or 8-bit codes with scales for groups of columns, packed as
// grouped.h describes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/dtype.h"
#include "quant/grouped.h"

namespace ryz {

class GroupedMatrix {
 public:
  // Throws ValidationError on empty or oversized shapes and unknown formats, OutOfMemoryError.
  GroupedMatrix(std::size_t out_features, std::size_t in_features, GroupedFormat format);

  std::size_t out_features() const { return rows_; }
  std::size_t in_features() const { return columns_; }
  const GroupedFormat& format() const { return format_; }
  std::size_t panels() const { return panels_; }
  std::size_t records() const { return records_; }
  // Of activations that meet it: whole records.
  std::size_t blocks() const { return records_ * format_.record_blocks(); }
  std::size_t groups() const { return (columns_ + format_.group - 1) / format_.group; }
  std::size_t bytes() const { return packed_.bytes(); }
  std::size_t rows_packed() const { return rows_packed_.load(); }
  const std::uint8_t* packed() const { return packed_.as<std::uint8_t>(); }

  // Rows from floats, each group to the nearest codes by a scale that depends on the group alone.
  // Only without minima. Distinct rows may be packed by distinct threads. Throws QuantizationError
  // on NaN, infinities and groups whose scale does not fit the scale's type.
  void pack_float(std::size_t row_begin, const void* weights, DType dtype, std::size_t rows);

  // Rows from codes [rows, K], scales [rows, groups] and minima of that shape, or null without.
  // Throws QuantizationError on codes out of range and scales that their type cannot hold exactly.
  void pack_codes(std::size_t row_begin, const std::uint8_t* codes, const float* scales,
                  const float* minima, std::size_t rows);

  // The arrays that hold the packed weights.
  NamedBuffers buffers() { return {{"packed", &packed_}}; }
  // Takes the arrays of a matrix of the same shape and format, packed before: every row is filled,
  // and none can be packed again. Throws ValidationError.
  void adopt(std::map<std::string, Buffer> stored);

  // One row's codes [K], scales [groups] and, where there are any, minima [groups].
  void unpack_row(std::size_t row, std::uint8_t* codes, float* scales, float* minima) const;
  // The values of one row [K].
  void dequantize_row(std::size_t row, float* values) const;

 private:
  void check_rows(const char* op, std::size_t row_begin, std::size_t rows) const;
  void pack_row(std::size_t row, const std::uint8_t* codes, const float* scales,
                const float* minima);
  std::uint8_t* record(std::size_t row, std::size_t index) const;
  int code(std::size_t row, std::size_t column) const;
  void set_scale(std::uint8_t* scale_rows, std::size_t row, std::size_t group, float value);

  std::size_t rows_, columns_, panels_, records_;
  GroupedFormat format_;
  std::atomic<std::size_t> rows_packed_{0};
  bool is_stored_ = false;
  Buffer packed_;
};

}  // namespace ryz
