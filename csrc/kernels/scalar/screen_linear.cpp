#include "kernels/ops.h"

namespace ryz::scalar {
namespace {

float head_value(const ScreenActivations& x, std::size_t token, std::int32_t high, std::int32_t low,
                 float scale) {
  const float sum = 128.0f * static_cast<float>(high) + static_cast<float>(low);
  return sum * (scale * x.scale[token]);
}

}  // namespace

void screen_linear(const ScreenLinearArgs& a) noexcept {
  for (std::size_t t = 0; t < a.tokens; ++t) {
    const std::int8_t* hi = a.x.hi + t * a.x.stride;
    const std::int8_t* lo = a.x.lo + t * a.x.stride;
    for (std::size_t row = a.panel_begin * kPanelRows;
         row < a.panel_end * kPanelRows && row < a.rows; ++row) {
      const std::size_t group = row % kPanelRows / kGroupRows;
      const std::uint8_t* block = a.codes + row / kPanelRows * a.blocks * kScreenBlockBytes;
      std::int32_t high = 0;
      std::int32_t low = 0;
      for (std::size_t b = 0; b < a.blocks; ++b, block += kScreenBlockBytes) {
        for (std::size_t k = 0; k < kScreenColumns; ++k) {
          const std::size_t lane = 4 * (row % kGroupRows) + k % kPlaneColumns;
          const int c = screen_code(block, group, lane, k / kPlaneColumns);
          high += hi[b * kScreenColumns + k] * c;
          low += lo[b * kScreenColumns + k] * c;
        }
      }
      a.out[t][row] = head_value(a.x, t, high, low, a.scale[row]);
    }
  }
}

void screen_rest(const ScreenRestArgs& a) noexcept {
  for (std::size_t i = 0; i < a.count; ++i) {
    const auto row = static_cast<std::size_t>(a.rows[i]);
    const std::uint8_t* rest = a.rest + row * a.pieces * kRestBytes;
    std::int32_t high = -3 * a.x.hi_sum[0];
    std::int32_t low = -3 * a.x.lo_sum[0];
    for (std::size_t k = 0; k < a.pieces * kRestColumns; ++k) {
      const std::size_t piece = k % kRestColumns;
      const std::uint8_t byte = rest[k / kRestColumns * kRestBytes + piece % kRestBytes];
      const int q = (byte >> (2 * (piece / kRestBytes))) & 3;
      high += 2 * q * a.x.hi[k];
      low += 2 * q * a.x.lo[k];
    }
    a.out[row] += head_value(a.x, 0, high, low, a.scale[row] * (kRestStep / 2));
  }
}

}  // namespace ryz::scalar
