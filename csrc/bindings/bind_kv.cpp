#include <string>

#include "bindings/bindings.h"
#include "bindings/numpy_view.h"
#include "kv/paged_cache.h"

namespace py = pybind11;

namespace ryz {
namespace {

KvDtype kv_dtype(const std::string& name) {
  if (name == "f16") return KvDtype::kF16;
  if (name == "f32") return KvDtype::kF32;
  if (name == "int8") return KvDtype::kInt8;
  throw ValidationError("[paged_cache] dtype '" + name + "' is not one of: f16, f32, int8");
}

py::tuple read(const PagedCache& cache, std::size_t layer, std::size_t block) {
  const py::ssize_t shape[3] = {static_cast<py::ssize_t>(kPageTokens),
                                static_cast<py::ssize_t>(cache.kv_heads()),
                                static_cast<py::ssize_t>(cache.head_dim())};
  Array<float> keys(shape);
  Array<float> values(shape);
  cache.read(layer, block, keys.mutable_data(), values.mutable_data());
  return py::make_tuple(keys, values);
}

std::size_t stored_bytes(const PagedCache& cache) { return cache.layers() * cache.block_bytes(); }

Array<std::uint8_t> store_block(const PagedCache& cache, std::size_t block) {
  Array<std::uint8_t> bytes(static_cast<py::ssize_t>(stored_bytes(cache)));
  cache.store_block(block, reinterpret_cast<std::byte*>(bytes.mutable_data()));
  return bytes;
}

void load_block(PagedCache& cache, std::size_t block, const Array<std::uint8_t>& bytes) {
  const auto source = view(bytes, "bytes");
  if (source.size() != stored_bytes(cache)) {
    throw ValidationError("[load_block] a block of this cache takes " +
                          std::to_string(stored_bytes(cache)) + " bytes, got " +
                          std::to_string(source.size()));
  }
  cache.load_block(block, reinterpret_cast<const std::byte*>(source.data()));
}

}  // namespace

void bind_kv(py::module_& m) {
  m.attr("PAGE_TOKENS") = kPageTokens;
  m.def(
      "kv_block_bytes",
      [](std::size_t layers, std::size_t kv_heads, std::size_t head_dim, const std::string& dtype) {
        return layers * kv_heads * page_bytes(head_dim, kv_dtype(dtype));
      },
      py::arg("num_layers"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("dtype"));
  py::class_<PagedCache>(m, "PagedCache")
      .def(py::init([](std::size_t layers, std::size_t kv_heads, std::size_t head_dim,
                       std::size_t blocks, const std::string& dtype) {
             return PagedCache(layers, kv_heads, head_dim, blocks, kv_dtype(dtype));
           }),
           py::arg("num_layers"), py::arg("num_kv_heads"), py::arg("head_dim"),
           py::arg("num_blocks"), py::arg("dtype"))
      .def_property_readonly("num_blocks", &PagedCache::blocks)
      .def_property_readonly("nbytes", &PagedCache::bytes)
      .def("copy_block", &PagedCache::copy_block, py::arg("source"), py::arg("target"))
      .def("store_block", &store_block, py::arg("block"))
      .def("load_block", &load_block, py::arg("block"), py::arg("bytes").noconvert())
      .def("read", &read, py::arg("layer"), py::arg("block"));
}

}  // namespace ryz
