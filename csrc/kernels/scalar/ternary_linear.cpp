#include "kernels/ops.h"

namespace ryz::scalar {
namespace {

std::int32_t dot(const TernaryLinearArgs& a, std::size_t row, const std::int8_t* q) {
  const std::uint8_t* first = a.packed + ternary2_byte(row, 0, a.blocks);
  std::int32_t sum = 0;
  for (std::size_t block = 0; block < a.blocks; ++block) {
    const std::uint8_t* bytes = first + block * kBlockBytes;
    const std::int8_t* x = q + block * kBlockColumns;
    for (unsigned plane = 0; plane < 4; ++plane) {
      for (unsigned j = 0; j < 4; ++j) {
        const int weight = ((bytes[j] >> (2 * plane)) & 3) - 1;
        sum += weight * x[4 * plane + j];
      }
    }
  }
  return sum;
}

}  // namespace

void ternary_linear(const TernaryLinearArgs& a) noexcept {
  const std::size_t end = a.panel_end * kPanelRows < a.rows ? a.panel_end * kPanelRows : a.rows;
  for (std::size_t t = 0; t < a.tokens; ++t) {
    const std::int8_t* q = a.q + t * a.blocks * kBlockColumns;
    for (std::size_t row = a.panel_begin * kPanelRows; row < end; ++row) {
      const std::size_t i = t * a.out_stride + row;
      const float y = static_cast<float>(dot(a, row, q)) * (a.row_scale[row] * a.act_scale[t]);
      a.out[i] = a.residual == nullptr ? y : a.residual[i] + y;
    }
  }
}

}  // namespace ryz::scalar
