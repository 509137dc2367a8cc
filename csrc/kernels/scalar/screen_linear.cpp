#include "kernels/ops.h"

namespace ryz::scalar {

void screen_linear(const ScreenLinearArgs& a) noexcept {
  for (std::size_t t = 0; t < a.tokens; ++t) {
    const std::uint8_t* hi = a.hi + t * a.x_stride;
    const std::uint8_t* lo = a.lo + t * a.x_stride;
    for (std::size_t row = a.panel_begin * kPanelRows; row < a.panel_end * kPanelRows; ++row) {
      const std::int8_t* c = a.packed + ternary_row_byte(row, a.steps);
      std::int32_t high = -a.offset[row];
      std::int32_t low = 0;
      for (std::size_t step = 0; step < a.steps; ++step, c += kBlockBytes) {
        for (std::size_t j = 0; j < kPlaneColumns; ++j) {
          high += hi[kPlaneColumns * step + j] * c[j];
          low += lo[kPlaneColumns * step + j] * c[j];
        }
      }
      const float sum = 128.0f * static_cast<float>(high) + static_cast<float>(low);
      const float approx = sum * (a.scale[row] * a.x_scale[t]);
      const float magnitude = approx < 0.0f ? -approx : approx;
      const float slack = a.weight_error[row] * a.x_norm[t] + a.weight_norm[row] * a.x_error[t] +
                          magnitude * 0x1p-20f;
      a.lower[t * a.out_stride + row] = approx - slack;
      a.upper[t * a.out_stride + row] = approx + slack;
    }
  }
}

}  // namespace ryz::scalar
