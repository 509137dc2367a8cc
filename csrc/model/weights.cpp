#include "model/weights.h"

namespace ryz {
namespace {

std::size_t rows(const TernaryMatrix& m) { return m.out_features(); }
std::size_t rows(const DenseMatrix& m) { return m.rows; }
std::size_t rows(const GroupedMatrix& m) { return m.out_features(); }
std::size_t columns(const TernaryMatrix& m) { return m.in_features(); }
std::size_t columns(const GroupedMatrix& m) { return m.in_features(); }
std::size_t columns(const DenseMatrix& m) { return m.columns; }
std::size_t bytes_of(const TernaryMatrix& m) { return m.bytes(); }
std::size_t bytes_of(const GroupedMatrix& m) { return m.bytes(); }
std::size_t bytes_of(const DenseMatrix& m) { return m.rows * m.columns * size_of(m.dtype); }
std::size_t rows_of_unit(const TernaryMatrix&) { return kPanelRows; }
std::size_t rows_of_unit(const GroupedMatrix&) { return kPanelRows; }
std::size_t rows_of_unit(const DenseMatrix&) { return kDenseLotRows; }

}  // namespace

std::size_t Linear::in_features() const {
  return std::visit([](const auto& m) { return columns(*m); }, matrix);
}

std::size_t Linear::out_features() const {
  return std::visit([](const auto& m) { return rows(*m); }, matrix);
}

std::size_t Linear::bytes() const {
  return std::visit([](const auto& m) { return bytes_of(*m); }, matrix);
}

std::size_t Linear::unit_rows() const {
  return std::visit([](const auto& m) { return rows_of_unit(*m); }, matrix);
}

}  // namespace ryz
