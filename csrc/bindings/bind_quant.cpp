#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/numpy_view.h"
#include "kernels/dispatch.h"
#include "quant/fingerprint.h"
#include "quant/ternary_matrix.h"
#include "quant/ternary_rows.h"

namespace py = pybind11;

namespace ryz {
namespace {

void expect_columns(const TernaryMatrix& matrix, const py::array& array, const char* name) {
  expect_ndim(array, 2, name);
  if (dim(array, 1) != matrix.in_features()) {
    throw ValidationError(std::string("[array] ") + name + " has shape " + shape_text(array) +
                          ", expected " + std::to_string(matrix.in_features()) + " columns");
  }
}

void pack_hf(TernaryMatrix& matrix, std::size_t row_begin, const Array<std::uint8_t>& packed,
             float scale) {
  expect_columns(matrix, packed, "packed");
  const std::uint8_t* data = packed.data();
  const std::size_t quarter = dim(packed, 0);
  const py::gil_scoped_release release;
  matrix.pack_hf(row_begin, data, quarter, scale);
}

void pack_codes(TernaryMatrix& matrix, std::size_t row_begin, const Array<std::int8_t>& codes,
                const Array<float>& row_scales) {
  expect_columns(matrix, codes, "codes");
  const auto scales = view(row_scales, "row_scales");
  if (scales.size() != dim(codes, 0)) {
    throw ValidationError("[pack_codes] codes and row_scales differ in their number of rows");
  }
  const std::int8_t* data = codes.data();
  const py::gil_scoped_release release;
  matrix.pack_codes(row_begin, data, scales);
}

float pack_master(TernaryMatrix& matrix, std::size_t row_begin, const py::array& weights) {
  const DenseMatrix dense = dense_view(weights, "weights");
  expect_columns(matrix, weights, "weights");
  const py::gil_scoped_release release;
  return matrix.pack_master(row_begin, dense.data, dense.dtype, dense.rows);
}

Array<std::int8_t> codes(const TernaryMatrix& matrix) {
  Array<std::int8_t> out({matrix.out_features(), matrix.in_features()});
  for (std::size_t row = 0; row < matrix.out_features(); ++row) {
    matrix.unpack_row(row, out.mutable_data() + row * matrix.in_features());
  }
  return out;
}

Array<std::int32_t> zero_rows(const TernaryMatrix& matrix) {
  std::vector<std::int32_t> rows;
  for (std::size_t row = 0; row < matrix.out_features(); ++row) {
    if (matrix.is_zero_row(row)) rows.push_back(static_cast<std::int32_t>(row));
  }
  return Array<std::int32_t>(static_cast<py::ssize_t>(rows.size()), rows.data());
}

Array<float> row_scales(const TernaryMatrix& matrix) {
  Array<float> out(static_cast<py::ssize_t>(matrix.out_features()));
  std::copy_n(matrix.row_scale(), matrix.out_features(), out.mutable_data());
  return out;
}

std::shared_ptr<TernaryRows> rows_of(const TernaryMatrix& matrix, std::size_t row_begin,
                                     std::size_t row_end) {
  const py::gil_scoped_release release;
  return std::make_shared<TernaryRows>(TernaryRows::of_rows(matrix, row_begin, row_end));
}

std::shared_ptr<TernaryRows> columns_of(const TernaryMatrix& matrix) {
  const py::gil_scoped_release release;
  return std::make_shared<TernaryRows>(TernaryRows::of_columns(matrix));
}

TernaryFormat parse_format(const std::string& name) {
  for (const TernaryFormat format : {TernaryFormat::kTwoBit, TernaryFormat::kFiveTrit}) {
    if (name == format_name(format)) return format;
  }
  throw ValidationError("[ternary_matrix] format '" + name + "' is not one of: two_bit, five_trit");
}

std::shared_ptr<TernaryMatrix> make_matrix(std::size_t out_features, std::size_t in_features,
                                           const std::string& format,
                                           const std::optional<ArrayMap>& arrays) {
  auto matrix = std::make_shared<TernaryMatrix>(out_features, in_features, parse_format(format));
  if (arrays) matrix->adopt(borrow(*arrays));
  return matrix;
}

}  // namespace

void bind_quant(py::module_& m) {
  m.def("packing_fingerprint", &packing_fingerprint);
  m.def(
      "skips_zeros",
      [](const std::optional<std::string>& isa) {
        return has_selected_kernels(resolve_isa(isa.value_or("")));
      },
      py::arg("isa") = py::none());
  py::class_<TernaryMatrix, std::shared_ptr<TernaryMatrix>>(m, "TernaryMatrix")
      .def(py::init(&make_matrix), py::arg("out_features"), py::arg("in_features"),
           py::arg("format") = "two_bit", py::arg("arrays").noconvert() = py::none())
      .def_property_readonly(
          "format", [](const TernaryMatrix& matrix) { return format_name(matrix.format()); })
      .def_property_readonly("out_features", &TernaryMatrix::out_features)
      .def_property_readonly("in_features", &TernaryMatrix::in_features)
      .def_property_readonly("nbytes", &TernaryMatrix::bytes)
      .def("pack_hf", &pack_hf, py::arg("row_begin"), py::arg("packed").noconvert(),
           py::arg("scale"))
      .def("pack_codes", &pack_codes, py::arg("row_begin"), py::arg("codes").noconvert(),
           py::arg("row_scales").noconvert())
      .def("pack_master", &pack_master, py::arg("row_begin"), py::arg("weights").noconvert())
      .def("arrays",
           [](const py::object& self) {
             return array_views(self.cast<TernaryMatrix&>().buffers(), self);
           })
      .def("codes", &codes)
      .def("zero_rows", &zero_rows)
      .def("row_scales", &row_scales);
  py::class_<TernaryRows, std::shared_ptr<TernaryRows>>(m, "TernaryRows")
      .def(py::init([](std::size_t rows, std::size_t columns, const ArrayMap& arrays) {
             return std::make_shared<TernaryRows>(rows, columns, borrow(arrays));
           }),
           py::arg("rows"), py::arg("columns"), py::arg("arrays").noconvert())
      .def("arrays",
           [](const py::object& self) {
             return array_views(self.cast<TernaryRows&>().buffers(), self);
           })
      .def_static("of_rows", &rows_of, py::arg("matrix"), py::arg("row_begin"), py::arg("row_end"))
      .def_static("of_columns", &columns_of, py::arg("matrix"))
      .def_property_readonly("rows", &TernaryRows::rows)
      .def_property_readonly("columns", &TernaryRows::columns)
      .def_property_readonly("nbytes", &TernaryRows::bytes);
}

}  // namespace ryz
