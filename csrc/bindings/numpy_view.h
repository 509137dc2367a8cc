// Checked views of numpy arrays. Arguments are bound with noconvert(), so a wrong dtype or a
// strided array is refused by pybind11 instead of being copied behind the caller's back.
#pragma once

#include <pybind11/numpy.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/dtype.h"
#include "base/error.h"
#include "kernels/ops.h"
#include "model/weights.h"

namespace ryz {

template <typename T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;

inline std::string shape_text(const pybind11::array& array) {
  std::string text = "[";
  for (pybind11::ssize_t i = 0; i < array.ndim(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
  }
  return text + "]";
}

inline void expect_ndim(const pybind11::array& array, int ndim, const char* name) {
  if (array.ndim() != ndim) {
    throw ValidationError(std::string("[array] ") + name + " has shape " + shape_text(array) +
                          ", expected " + std::to_string(ndim) + " dimensions");
  }
}

// A 1-d array as a span.
template <typename T>
std::span<const T> view(const Array<T>& array, const char* name) {
  expect_ndim(array, 1, name);
  return {array.data(), static_cast<std::size_t>(array.size())};
}

inline std::size_t dim(const pybind11::array& array, int axis) {
  return static_cast<std::size_t>(array.shape(axis));
}

template <typename T>
std::vector<T> to_vector(const Array<T>& array, const char* name) {
  const auto values = view(array, name);
  return {values.begin(), values.end()};
}

// A 2-d float32, float16 or bfloat16 (uint16 bit patterns) array, not copied.
inline DenseMatrix dense_view(const pybind11::array& array, const char* name) {
  expect_ndim(array, 2, name);
  if ((array.flags() & pybind11::array::c_style) == 0) {
    throw ValidationError(std::string("[array] ") + name + " must be C-contiguous");
  }
  const pybind11::dtype dtype = array.dtype();
  const bool native = dtype.byteorder() == '=';
  DType type;
  if (native && dtype.kind() == 'f' && dtype.itemsize() == 4) {
    type = DType::kF32;
  } else if (native && dtype.kind() == 'f' && dtype.itemsize() == 2) {
    type = DType::kF16;
  } else if (native && dtype.kind() == 'u' && dtype.itemsize() == 2) {
    type = DType::kBF16;
  } else {
    throw ValidationError(std::string("[array] ") + name + " has dtype " +
                          pybind11::str(static_cast<pybind11::object>(dtype)).cast<std::string>() +
                          ", expected float32, float16 or uint16 (bfloat16 bits)");
  }
  if (reinterpret_cast<std::uintptr_t>(array.data()) % size_of(type) != 0) {
    throw ValidationError(std::string("[array] ") + name + " is not aligned to its elements");
  }
  return {array.data(), type, dim(array, 0), dim(array, 1)};
}

inline Activation parse_activation(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "relu2") return Activation::kRelu2;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  throw ValidationError("[activation] '" + name + "' is not one of: silu, relu2, gelu_tanh");
}

// Keeps a Python object. Whichever thread lets go of it last has to hold the interpreter's lock to
// drop it.
inline std::shared_ptr<void> keep(const pybind11::object& object) {
  const auto drop = [](pybind11::object* kept) {
    const pybind11::gil_scoped_acquire lock;
    delete kept;
  };
  return std::shared_ptr<void>(new pybind11::object(object), drop);
}

using ArrayMap = std::map<std::string, Array<std::uint8_t>>;

// The arrays in place, each kept alive by its buffer.
inline std::map<std::string, Buffer> borrow(const ArrayMap& arrays) {
  std::map<std::string, Buffer> out;
  for (const auto& [name, array] : arrays) {
    out.emplace(name, Buffer(array.data(), static_cast<std::size_t>(array.nbytes()), keep(array)));
  }
  return out;
}

// Read-only views of the buffers that `owner` has.
inline pybind11::dict array_views(const NamedBuffers& buffers, const pybind11::object& owner) {
  pybind11::dict out;
  for (const NamedBuffer& named : buffers) {
    Array<std::uint8_t> view(static_cast<pybind11::ssize_t>(named.buffer->bytes()),
                             named.buffer->as<std::uint8_t>(), owner);
    view.attr("setflags")(pybind11::arg("write") = false);
    out[named.name] = std::move(view);
  }
  return out;
}

}  // namespace ryz
