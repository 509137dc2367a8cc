#include "quant/screen.h"

#include <algorithm>
#include <cmath>

namespace ryz {
namespace {

// Factor that makes a bound computed in double hold after rounding to float.
constexpr double kRoundUp = 1.0 + 1e-6;

}  // namespace

ScreenMatrix::ScreenMatrix(std::size_t rows, std::size_t columns)
    : rows_(rows),
      columns_(columns),
      panels_((rows + kPanelRows - 1) / kPanelRows),
      steps_((columns + kPlaneColumns - 1) / kPlaneColumns),
      packed_(panels_ * steps_ * kBlockBytes, "the head's screen"),
      row_values_(panels_ * kPanelRows * 4 * sizeof(float), "the head's screen") {}

void ScreenMatrix::fill(const void* weights, DType dtype, std::size_t row_begin,
                        std::size_t row_end, float* row) {
  const double float_error = (static_cast<double>(columns_) / 2 + 32) * 0x1p-24;
  float* const scales = row_values_.as<float>();
  for (std::size_t r = row_begin; r < row_end; ++r) {
    float absmax = 0.0f;
    for (std::size_t k = 0; k < columns_; ++k) {
      row[k] = element_to_f32(weights, dtype, r * columns_ + k);
      absmax = std::max(absmax, std::fabs(row[k]));
    }
    const float scale = absmax > 0.0f ? absmax / 127.0f : 1.0f;
    const float inverse = 1.0f / scale;
    std::int8_t* out = packed_.as<std::int8_t>() + ternary_row_byte(r, steps_);
    double norm = 0.0, error = 0.0, stored_norm = 0.0;
    std::int32_t sum = 0;
    for (std::size_t k = 0; k < columns_; ++k) {
      const float c = std::clamp(std::nearbyintf(row[k] * inverse), -127.0f, 127.0f);
      const double stored = static_cast<double>(scale) * static_cast<double>(c);
      const double value = static_cast<double>(row[k]);
      norm += value * value;
      error += (value - stored) * (value - stored);
      stored_norm += stored * stored;
      sum += static_cast<std::int32_t>(c);
      out[k / kPlaneColumns * kBlockBytes + k % kPlaneColumns] = static_cast<std::int8_t>(c);
    }
    scales[r] = scale;
    scales[padded_rows() + r] =
        static_cast<float>((std::sqrt(error) + float_error * std::sqrt(norm)) * kRoundUp);
    scales[2 * padded_rows() + r] = static_cast<float>(std::sqrt(stored_norm) * kRoundUp);
    row_values_.as<std::int32_t>()[3 * padded_rows() + r] = 64 * sum;
  }
}

ScreenActivation screen_quantize(const float* x, std::size_t columns, std::uint8_t* hi,
                                 std::uint8_t* lo) {
  float absmax = 0.0f;
  double norm = 0.0;
  for (std::size_t k = 0; k < columns; ++k) {
    absmax = std::max(absmax, std::fabs(x[k]));
    norm += static_cast<double>(x[k]) * static_cast<double>(x[k]);
  }
  // 128 * (hi - 64) + lo spans [-8192, 8191].
  const float scale = absmax > 0.0f ? absmax / 8191.0f : 1.0f;
  const float inverse = 1.0f / scale;
  double error = 0.0;
  for (std::size_t k = 0; k < columns; ++k) {
    const float rounded = std::nearbyintf(x[k] * inverse);
    // A NaN stays a NaN in norm, and with it in every bound; its code only has to be a valid byte.
    const int code = rounded > -8192.0f && rounded < 8192.0f ? static_cast<int>(rounded) : 0;
    const double rest = static_cast<double>(x[k]) - static_cast<double>(scale) * code;
    error += rest * rest;
    hi[k] = static_cast<std::uint8_t>((code + 8192) >> 7);
    lo[k] = static_cast<std::uint8_t>((code + 8192) & 127);
  }
  for (std::size_t k = columns; k % kPlaneColumns != 0; ++k) hi[k] = lo[k] = 0;
  return {scale, static_cast<float>(std::sqrt(norm) * kRoundUp),
          static_cast<float>(std::sqrt(error) * kRoundUp)};
}

}  // namespace ryz
