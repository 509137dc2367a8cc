#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/numpy_view.h"
#include "quant/grouped_matrix.h"

namespace py = pybind11;

namespace ryz {
namespace {

using Codes = Array<std::uint8_t>;
using Floats = Array<float>;

DType parse_scale_dtype(const std::string& name) {
  if (name == "f16") return DType::kF16;
  if (name == "f32") return DType::kF32;
  throw ValidationError("[grouped_matrix] scale_dtype '" + name + "' is not one of: f16, f32");
}

GroupedFormat parse_format(int bits, int group, const std::string& scale_dtype, bool has_minimum) {
  if ((bits < 1 || bits > 4) && bits != 8) {
    throw ValidationError("[grouped_matrix] bits is " + std::to_string(bits) +
                          ", expected 1, 2, 3, 4 or 8");
  }
  if (group != 16 && group != 32 && group != 64 && group != 128) {
    throw ValidationError("[grouped_matrix] group is " + std::to_string(group) +
                          ", expected 16, 32, 64 or 128");
  }
  return {static_cast<std::uint8_t>(bits), static_cast<std::uint8_t>(group),
          parse_scale_dtype(scale_dtype), has_minimum};
}

std::shared_ptr<GroupedMatrix> make_matrix(std::size_t out_features, std::size_t in_features,
                                           int bits, int group, const std::string& scale_dtype,
                                           bool has_minimum,
                                           const std::optional<ArrayMap>& arrays) {
  auto matrix = std::make_shared<GroupedMatrix>(
      out_features, in_features, parse_format(bits, group, scale_dtype, has_minimum));
  if (arrays) matrix->adopt(borrow(*arrays));
  return matrix;
}

void expect_shape(const py::array& array, std::size_t rows, std::size_t columns, const char* name) {
  expect_ndim(array, 2, name);
  if (dim(array, 0) != rows || dim(array, 1) != columns) {
    throw ValidationError(std::string("[array] ") + name + " has shape " + shape_text(array) +
                          ", expected [" + std::to_string(rows) + ", " + std::to_string(columns) +
                          "]");
  }
}

void pack_float(GroupedMatrix& matrix, std::size_t row_begin, const py::array& weights) {
  const DenseMatrix dense = dense_view(weights, "weights");
  expect_shape(weights, dense.rows, matrix.in_features(), "weights");
  const py::gil_scoped_release release;
  matrix.pack_float(row_begin, dense.data, dense.dtype, dense.rows);
}

void pack_codes(GroupedMatrix& matrix, std::size_t row_begin, const Codes& codes,
                const Floats& scales, const std::optional<Floats>& minima) {
  expect_ndim(codes, 2, "codes");
  const std::size_t rows = dim(codes, 0);
  expect_shape(codes, rows, matrix.in_features(), "codes");
  expect_shape(scales, rows, matrix.groups(), "scales");
  if (minima) expect_shape(*minima, rows, matrix.groups(), "minima");
  const std::uint8_t* data = codes.data();
  const float* scale = scales.data();
  const float* minimum = minima ? minima->data() : nullptr;
  const py::gil_scoped_release release;
  matrix.pack_codes(row_begin, data, scale, minimum, rows);
}

// (codes [N, K], scales [N, groups], minima [N, groups] or None)
py::tuple unpack(const GroupedMatrix& matrix) {
  const std::size_t rows = matrix.out_features(), columns = matrix.in_features();
  Codes codes({rows, columns});
  Floats scales({rows, matrix.groups()});
  Floats minima({rows, matrix.groups()});
  for (std::size_t row = 0; row < rows; ++row) {
    matrix.unpack_row(row, codes.mutable_data() + row * columns,
                      scales.mutable_data() + row * matrix.groups(),
                      minima.mutable_data() + row * matrix.groups());
  }
  return py::make_tuple(codes, scales,
                        matrix.format().has_minimum ? py::object(minima) : py::none());
}

Floats dequantize(const GroupedMatrix& matrix, std::size_t row_begin,
                  std::optional<std::size_t> row_end) {
  const std::size_t end = row_end.value_or(matrix.out_features());
  if (row_begin > end || end > matrix.out_features()) {
    throw ValidationError("[dequantize] rows " + std::to_string(row_begin) + ".." +
                          std::to_string(end) + " are not within a matrix of " +
                          std::to_string(matrix.out_features()) + " rows");
  }
  Floats out({end - row_begin, matrix.in_features()});
  float* to = out.mutable_data();
  const py::gil_scoped_release release;
  for (std::size_t row = row_begin; row < end; ++row, to += matrix.in_features()) {
    matrix.dequantize_row(row, to);
  }
  return out;
}

}  // namespace

void bind_grouped(py::module_& m) {
  py::class_<GroupedMatrix, std::shared_ptr<GroupedMatrix>>(m, "GroupedMatrix")
      .def(py::init(&make_matrix), py::arg("out_features"), py::arg("in_features"), py::arg("bits"),
           py::arg("group") = 32, py::arg("scale_dtype") = "f16", py::arg("has_minimum") = false,
           py::arg("arrays").noconvert() = py::none())
      .def_property_readonly("out_features", &GroupedMatrix::out_features)
      .def_property_readonly("in_features", &GroupedMatrix::in_features)
      .def_property_readonly("bits", [](const GroupedMatrix& m_) { return m_.format().bits; })
      .def_property_readonly("group", [](const GroupedMatrix& m_) { return m_.format().group; })
      .def_property_readonly("nbytes", &GroupedMatrix::bytes)
      .def("pack_float", &pack_float, py::arg("row_begin"), py::arg("weights").noconvert())
      .def("pack_codes", &pack_codes, py::arg("row_begin"), py::arg("codes").noconvert(),
           py::arg("scales").noconvert(), py::arg("minima").noconvert() = py::none())
      .def("arrays",
           [](const py::object& self) {
             return array_views(self.cast<GroupedMatrix&>().buffers(), self);
           })
      .def("unpack", &unpack)
      .def("dequantize", &dequantize, py::arg("row_begin") = 0, py::arg("row_end") = py::none());
}

}  // namespace ryz
