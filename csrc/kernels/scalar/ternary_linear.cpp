#include "kernels/ops.h"

namespace ryz::scalar {
namespace {

template <TernaryFormat kFormat>
std::int32_t dot(const TernaryLinearArgs& a, std::size_t row, const std::int8_t* q) {
  const std::uint8_t* bytes = a.packed + ternary_row_byte(row, a.blocks);
  std::int32_t sum = 0;
  for (std::size_t block = 0; block < a.blocks; ++block, bytes += kBlockBytes) {
    for (std::size_t plane = 0; plane < planes_of(kFormat); ++plane) {
      for (std::size_t j = 0; j < kPlaneColumns; ++j) {
        sum += ternary_weight(kFormat, bytes[j], plane) * *q++;
      }
    }
  }
  return sum;
}

template <TernaryFormat kFormat>
void linear(const TernaryLinearArgs& a) {
  const std::size_t end = a.panel_end * kPanelRows < a.rows ? a.panel_end * kPanelRows : a.rows;
  for (std::size_t t = 0; t < a.tokens; ++t) {
    for (std::size_t row = a.panel_begin * kPanelRows; row < end; ++row) {
      const std::size_t i = t * a.out_stride + row;
      const auto sum = static_cast<float>(dot<kFormat>(a, row, a.q + t * a.q_stride));
      const float y = sum * (a.row_scale[row] * a.act_scale[t]);
      a.out[i] = a.residual == nullptr ? y : a.residual[i] + y;
    }
  }
}

}  // namespace

void ternary2_linear(const TernaryLinearArgs& a) noexcept { linear<TernaryFormat::kTwoBit>(a); }
void ternary5_linear(const TernaryLinearArgs& a) noexcept { linear<TernaryFormat::kFiveTrit>(a); }

}  // namespace ryz::scalar
