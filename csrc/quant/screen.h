// An int8 copy of the LM head that bounds every logit from both sides, so that only rows which
// could matter need their exact weights read.
//
// Row r is stored as w ~ scale[r] * c, c in [-127, 127]. The hidden state x is taken as
// x ~ x_scale * (128 * (hi - 64) + lo) with hi, lo in [0, 127]: two unsigned 7-bit planes keep its
// rounding far below that of the weights, and the products inside vpmaddubsw's int16. Then
//
//   |w.x - approx| <= ||w - scale*c|| ||x|| + ||scale*c|| ||x - x^||        (Cauchy-Schwarz, twice)
//
// and float error is added as a multiple of ||w|| ||x||: the exact kernel rounds at most K/2 + 1
// times along a sum (the scalar tier's two accumulators), the bound itself a few times.
//
// Layout as ternary.h's panels: 64 rows by 4 columns in 256 consecutive bytes, byte 4*r + j of a
// group's 64 holding row r, column 4*step + j.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/aligned.h"
#include "base/dtype.h"
#include "quant/ternary.h"

namespace ryz {

class ScreenMatrix {
 public:
  // An empty screen: nothing can be screened with it.
  ScreenMatrix() = default;
  // Reserves [rows, columns]; fill() each row before use. Throws OutOfMemoryError.
  ScreenMatrix(std::size_t rows, std::size_t columns);

  std::size_t rows() const { return rows_; }
  std::size_t panels() const { return panels_; }
  std::size_t steps() const { return steps_; }
  std::size_t bytes() const { return packed_.bytes() + row_values_.bytes(); }

  // Quantises rows [row_begin, row_end) of a dense matrix; `row` is scratch for `columns` floats.
  // Threads may fill distinct rows at once.
  void fill(const void* weights, DType dtype, std::size_t row_begin, std::size_t row_end,
            float* row);

  // The arrays that hold the filled screen; another one's of the same shape may take their places.
  NamedBuffers buffers() { return {{"packed", &packed_}, {"row_values", &row_values_}}; }

  const std::int8_t* packed() const { return packed_.as<std::int8_t>(); }
  // Per row, [panels * 64] each: scale; 64 * sum of c (what the offset of hi adds); the factors of
  // ||x|| and of ||x - x^|| in the bound.
  const float* scale() const { return row_values_.as<float>(); }
  const float* weight_error() const { return scale() + padded_rows(); }
  const float* weight_norm() const { return scale() + 2 * padded_rows(); }
  const std::int32_t* offset() const { return row_values_.as<std::int32_t>() + 3 * padded_rows(); }

 private:
  std::size_t padded_rows() const { return panels_ * kPanelRows; }

  std::size_t rows_ = 0, columns_ = 0, panels_ = 0, steps_ = 0;
  Buffer packed_;
  Buffer row_values_;
};

// A hidden state as the screen reads it.
struct ScreenActivation {
  float scale;
  float norm;   // ||x||, rounded up
  float error;  // ||x - x^||, rounded up
};

// Fills hi and lo [columns padded to 4] with zeros past `columns`.
ScreenActivation screen_quantize(const float* x, std::size_t columns, std::uint8_t* hi,
                                 std::uint8_t* lo);

}  // namespace ryz
