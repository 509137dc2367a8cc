// The LM head in 5 bits and 2 more: a screen that tells which rows' exact weights are needed, or,
// on request, the head itself (screen_format.h has the layout).
//
// The hidden state x is taken as x ~ x_scale * (128 * hi + lo) with digits within [-64, 63]: their
// rounding stays far below that of the weights, and their products with bytes inside vpmaddubsw's
// int16. Sums of products are exact. With w^ what a row's planes hold,
//
//   |w.x - w^.x^| <= ||w - w^|| ||x|| + ||w^|| ||x - x^||        (Cauchy-Schwarz, twice)
//
// and float error comes on top as a multiple of ||w|| ||x||: the exact kernel rounds at most
// K/2 + 1 times along a sum (the scalar tier's two accumulators), the screen itself a few times.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/aligned.h"
#include "base/dtype.h"
#include "quant/screen_format.h"

namespace ryz {

class ScreenMatrix {
 public:
  // Whether the low plane is kept.
  enum class Planes : std::uint8_t { kHigh, kBoth };

  // An empty screen.
  ScreenMatrix() = default;
  // Reserves [rows, columns]; fill() each row before use. Throws OutOfMemoryError.
  ScreenMatrix(std::size_t rows, std::size_t columns, Planes planes);

  std::size_t rows() const { return rows_; }
  std::size_t columns() const { return columns_; }
  std::size_t panels() const { return panels_; }
  std::size_t blocks() const { return blocks_; }
  bool has_rest() const { return rest_.bytes() != 0; }
  std::size_t rest_bytes() const { return rest_bytes_; }
  std::size_t bytes() const { return codes_.bytes() + rest_.bytes() + row_values_.bytes(); }

  // Codes rows [row_begin, row_end) from `weights`, which hold no others. Threads may fill distinct
  // panels at once, each with scratch_bytes() of its own, aligned for floats.
  void fill(const void* weights, DType dtype, std::size_t row_begin, std::size_t row_end,
            std::uint8_t* scratch);
  static std::size_t scratch_bytes(std::size_t columns);

  // The arrays that hold the codes; another's of the same shape and planes may take their places.
  NamedBuffers buffers() {
    NamedBuffers all{{"codes", &codes_}, {"row_values", &row_values_}};
    if (has_rest()) all.push_back({"rest", &rest_});
    return all;
  }

  const std::uint8_t* codes() const { return codes_.as<std::uint8_t>(); }
  const std::uint8_t* rest() const { return rest_.as<std::uint8_t>(); }  // rest_bytes() per row
  // Per row, [panels * 64] each: the scale; the factors of ||x|| in the bound for the high plane
  // and for both; the factor of ||x - x^||.
  const float* scale() const { return row_values_.as<float>(); }
  const float* high_error() const { return scale() + padded_rows(); }
  const float* error() const { return scale() + 2 * padded_rows(); }
  const float* norm() const { return scale() + 3 * padded_rows(); }

 private:
  // One row as floats, then as what its codes are made of, a byte each; padded with zeros.
  struct Row {
    float* values;
    std::uint8_t* levels;
    std::uint8_t* signs;
    std::uint8_t* rests;
  };

  std::size_t padded_rows() const { return panels_ * kPanelRows; }
  void code(Row row, std::size_t r, double squares);
  void store(Row row, std::size_t r);

  std::size_t rows_ = 0, columns_ = 0, panels_ = 0, blocks_ = 0, rest_bytes_ = 0;
  Buffer codes_;
  Buffer rest_;
  Buffer row_values_;
};

// Digits of a hidden state are padded with zeros to whole pieces of either plane.
constexpr std::size_t screen_width(std::size_t columns) { return round_up(columns, kRestColumns); }

// What goes with a hidden state's digits.
struct ScreenActivation {
  float scale;
  float norm;   // ||x||, rounded up
  float error;  // ||x - x^||, rounded up
  std::int32_t hi_sum;
  std::int32_t lo_sum;
};

// Fills hi and lo [screen_width(columns)].
ScreenActivation screen_quantize(const float* x, std::size_t columns, std::int8_t* hi,
                                 std::int8_t* lo);

}  // namespace ryz
