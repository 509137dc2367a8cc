#include "quant/screen.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace ryz {
namespace {

// Factor that makes a bound computed in double hold after rounding to float.
constexpr double kRoundUp = 1.0 + 1e-6;
// A row's largest level in units of its root mean square: the least error of both planes together
// for a Gaussian.
constexpr double kTopLevel = 3.4;
constexpr float kTopCode = 127.0f;

// Nearest level by twice the magnitude: levels are integers, so borders lie on halves.
constexpr std::array<std::uint8_t, 256> nearest_levels() {
  std::array<std::uint8_t, 256> nearest{};
  std::uint8_t level = 0;
  for (int twice = 0; twice < 256; ++twice) {
    if (level < 15 && twice >= kScreenLevels[level] + kScreenLevels[level + 1]) ++level;
    nearest[static_cast<std::size_t>(twice)] = level;
  }
  return nearest;
}
constexpr std::array<std::uint8_t, 256> kNearest = nearest_levels();

double square(double x) { return x * x; }

}  // namespace

ScreenMatrix::ScreenMatrix(std::size_t rows, std::size_t columns, Planes planes)
    : rows_(rows),
      columns_(columns),
      panels_((rows + kPanelRows - 1) / kPanelRows),
      blocks_((columns + kScreenColumns - 1) / kScreenColumns),
      rest_bytes_(screen_width(columns) / kRestColumns * kRestBytes),
      codes_(panels_ * blocks_ * kScreenBlockBytes, "the coded head"),
      rest_(planes == Planes::kBoth ? rows * rest_bytes_ : 0, "the coded head"),
      row_values_(panels_ * kPanelRows * 4 * sizeof(float), "the coded head") {}

std::size_t ScreenMatrix::scratch_bytes(std::size_t columns) {
  return screen_width(columns) * (sizeof(float) + 3);
}

void ScreenMatrix::fill(const void* weights, DType dtype, std::size_t row_begin,
                        std::size_t row_end, std::uint8_t* scratch) {
  const std::size_t width = screen_width(columns_);
  std::fill_n(scratch, scratch_bytes(columns_), std::uint8_t{0});
  auto* const bytes = scratch + width * sizeof(float);
  const Row row{reinterpret_cast<float*>(scratch), bytes, bytes + width, bytes + 2 * width};
  for (std::size_t r = row_begin; r < row_end; ++r) {
    double squares = 0.0;
    for (std::size_t k = 0; k < columns_; ++k) {
      row.values[k] = element_to_f32(weights, dtype, (r - row_begin) * columns_ + k);
      squares += square(static_cast<double>(row.values[k]));
    }
    code(row, r, squares);
    store(row, r);
  }
}

// Without a branch on the weights, which would be mispredicted every other time.
void ScreenMatrix::code(Row row, std::size_t r, double squares) {
  const double rms = std::sqrt(squares / static_cast<double>(columns_));
  float scale = static_cast<float>(rms * kTopLevel) / kTopCode;
  if (scale < std::numeric_limits<float>::min()) scale = 0.0f;  // its inverse would overflow
  const float inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
  double high_squares = 0.0, both_squares = 0.0;
  for (std::size_t k = 0, columns = columns_; k < columns; ++k) {
    const float value = row.values[k];
    const float code = value * inverse;
    // A NaN stays one in `squares`, and with it in every bound; its codes only have to be valid.
    const float twice = std::min(255.0f, 2.0f * std::fabs(code));
    const std::uint8_t level = kNearest[static_cast<unsigned>(static_cast<int>(twice))];
    const float high = std::copysign(static_cast<float>(kScreenLevels[level]), code);
    const float rest = (code - high) * (1.0f / kRestStep) + 2.0f;
    const auto q = static_cast<int>(std::min(3.0f, std::max(0.0f, rest)));
    const float both = high + kRestStep * (static_cast<float>(q) - 1.5f);
    const auto exact = static_cast<double>(value);
    high_squares += square(exact - static_cast<double>(scale) * static_cast<double>(high));
    both_squares += square(exact - static_cast<double>(scale) * static_cast<double>(both));
    row.levels[k] = level;
    row.signs[k] = std::signbit(code) ? 1 : 0;
    row.rests[k] = static_cast<std::uint8_t>(q);
  }
  const double norm = std::sqrt(squares);
  const double high_error = std::sqrt(high_squares);
  const double error = std::sqrt(both_squares);
  const double float_error = (static_cast<double>(columns_) / 2 + 64) * 0x1p-24 * norm;
  float* const values = row_values_.as<float>() + r;
  values[0] = scale;
  values[padded_rows()] = static_cast<float>((high_error + float_error) * kRoundUp);
  values[2 * padded_rows()] = static_cast<float>((error + float_error) * kRoundUp);
  // ||w^|| by the triangle inequality.
  values[3 * padded_rows()] = static_cast<float>((norm + std::max(high_error, error)) * kRoundUp);
}

void ScreenMatrix::store(Row row, std::size_t r) {
  const std::size_t group = r % kPanelRows / kGroupRows;
  const std::size_t lane = 4 * (r % kGroupRows);
  std::uint8_t* block = codes_.as<std::uint8_t>() + r / kPanelRows * blocks_ * kScreenBlockBytes;
  for (std::size_t k = 0, columns = columns_; k < columns;
       k += kScreenColumns, block += kScreenBlockBytes) {
    for (std::size_t j = 0; j < kPlaneColumns; ++j) {
      const std::size_t other = k + kPlaneColumns + j;
      block[group * kGroupBytes + lane + j] =
          static_cast<std::uint8_t>(row.levels[k + j] | row.levels[other] << 4);
      block[kScreenSigns + lane + j] |= static_cast<std::uint8_t>(
          (row.signs[k + j] | row.signs[other] << 1) << (kScreenSteps * group));
    }
  }
  if (!has_rest()) return;
  std::uint8_t* rest = rest_.as<std::uint8_t>() + r * rest_bytes_;
  for (std::size_t k = 0; k < columns_; k += kRestColumns, rest += kRestBytes) {
    const std::uint8_t* q = row.rests + k;
    for (std::size_t i = 0; i < kRestBytes; ++i) {
      rest[i] = static_cast<std::uint8_t>(q[i] | q[kRestBytes + i] << 2 |
                                          q[2 * kRestBytes + i] << 4 | q[3 * kRestBytes + i] << 6);
    }
  }
}

ScreenActivation screen_quantize(const float* x, std::size_t columns, std::int8_t* hi,
                                 std::int8_t* lo) {
  float absmax = 0.0f;
  double squares = 0.0;
  for (std::size_t k = 0; k < columns; ++k) {
    absmax = std::max(absmax, std::fabs(x[k]));
    squares += square(static_cast<double>(x[k]));
  }
  // 128 * hi + lo spans [-8256, 8127].
  const float scale = absmax > 0.0f ? absmax / 8127.0f : 1.0f;
  const float inverse = 1.0f / scale;
  double error = 0.0;
  std::int32_t hi_sum = 0, lo_sum = 0;
  for (std::size_t k = 0; k < columns; ++k) {
    // To the nearest even integer by the last bits of a float, which needs no library call.
    const float rounded = (x[k] * inverse + 0x1.8p23f) - 0x1.8p23f;
    // A NaN stays a NaN in norm, and with it in every bound; its code only has to be a valid one.
    const int code = rounded > -8128.0f && rounded < 8128.0f ? static_cast<int>(rounded) : 0;
    error += square(static_cast<double>(x[k]) - static_cast<double>(scale) * code);
    hi[k] = static_cast<std::int8_t>((code + 64) >> 7);
    lo[k] = static_cast<std::int8_t>(code - 128 * hi[k]);
    hi_sum += hi[k];
    lo_sum += lo[k];
  }
  std::fill(hi + columns, hi + screen_width(columns), std::int8_t{0});
  std::fill(lo + columns, lo + screen_width(columns), std::int8_t{0});
  return {scale, static_cast<float>(std::sqrt(squares) * kRoundUp),
          static_cast<float>(std::sqrt(error) * kRoundUp), hi_sum, lo_sum};
}

}  // namespace ryz
