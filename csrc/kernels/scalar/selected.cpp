#include "kernels/scalar/selected.h"

namespace ryz::scalar {
namespace {

int weight(const std::uint8_t* row, std::size_t column) {
  const std::size_t in_unit = column % kUnitColumns;
  const std::uint8_t byte = row[column / kUnitColumns * kUnitBytes + in_unit % kUnitBytes];
  return ternary_weight(TernaryFormat::kFiveTrit, byte, in_unit / kUnitBytes);
}

}  // namespace

void select_gates(const SelectGatesArgs& a) noexcept {
  constexpr float kLargest = 3.402823466e38f;
  std::size_t count = 0;
  for (std::size_t i = a.begin; i < a.end; ++i) {
    a.selected[count] = static_cast<std::int32_t>(i);
    count += !(a.gate[i] >= -kLargest && a.gate[i] <= 0.0f);
  }
  *a.count = count;
}

void select_nonzero(const SelectNonzeroArgs& a) noexcept {
  std::size_t count = 0;
  for (std::size_t i = 0; i < a.n; ++i) {
    a.selected[count] = static_cast<std::int32_t>(i);
    count += a.q[i] != 0;
  }
  *a.count = count;
}

void selected_rows(const SelectedRowsArgs& a) noexcept {
  for (std::size_t i = 0; i < a.count; ++i) {
    const auto n = static_cast<std::size_t>(a.selected[i]);
    const std::uint8_t* row = a.packed + n * a.units * kUnitBytes;
    std::int32_t sum = 0;
    for (std::size_t k = 0; k < a.units * kUnitColumns; ++k) sum += weight(row, k) * a.q[k];
    a.out[n] = static_cast<float>(sum) * (a.row_scale[n] * a.act_scale);
  }
}

void selected_columns(const SelectedColumnsArgs& a) noexcept {
  const std::size_t end = a.unit_end * kUnitColumns < a.rows ? a.unit_end * kUnitColumns : a.rows;
  for (std::size_t n = a.unit_begin * kUnitColumns; n < end; ++n) {
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < a.count; ++i) {
      const auto k = static_cast<std::size_t>(a.selected[i]);
      sum += weight(a.packed + k * a.units * kUnitBytes, n) * a.q[k];
    }
    a.out[n] = a.residual[n] + static_cast<float>(sum) * (a.row_scale[n] * a.act_scale);
  }
}

}  // namespace ryz::scalar
