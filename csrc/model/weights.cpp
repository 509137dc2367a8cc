#include "model/weights.h"

#include <utility>

#include "kernels/lookup_format.h"

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

VocabularyMatrix::VocabularyMatrix(const DenseMatrix& matrix)
    : rows(matrix.rows), columns(matrix.columns), stored(matrix) {}

VocabularyMatrix::VocabularyMatrix(Grouped matrix)
    : rows(matrix->out_features()), columns(matrix->in_features()), stored(std::move(matrix)) {}

const GroupedMatrix* VocabularyMatrix::grouped() const {
  const auto* matrix = std::get_if<Grouped>(&stored);
  return matrix == nullptr ? nullptr : matrix->get();
}

std::size_t VocabularyMatrix::bytes() const {
  return grouped() == nullptr ? bytes_of(dense()) : grouped()->bytes();
}

DenseMatrix VocabularyMatrix::slice(std::size_t first, std::size_t last, float* decoded) const {
  if (const GroupedMatrix* matrix = grouped()) {
    for (std::size_t row = first; row < last; ++row) {
      matrix->dequantize_row(row, decoded + (row - first) * columns);
    }
    return {decoded, DType::kF32, last - first, columns};
  }
  const auto* data = static_cast<const std::uint8_t*>(dense().data);
  return {data + first * columns * size_of(dense().dtype), dense().dtype, last - first, columns};
}

std::size_t Linear::in_features() const {
  return std::visit([](const auto& m) { return columns(*m); }, matrix);
}

std::size_t Linear::out_features() const {
  return std::visit([](const auto& m) { return rows(*m); }, matrix);
}

std::size_t Linear::bytes() const {
  return std::visit([](const auto& m) { return bytes_of(*m); }, matrix);
}

std::size_t Linear::table_bytes() const {
  if (grouped_kernel == nullptr || !grouped_kernel->reads_tables) return 0;
  const GroupedMatrix& m = *std::get<Grouped>(matrix);
  return m.blocks() * block_table_bytes(m.format().bits);
}

std::size_t Linear::unit_rows() const {
  return std::visit([](const auto& m) { return rows_of_unit(*m); }, matrix);
}

}  // namespace ryz
