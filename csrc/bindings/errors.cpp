// Maps each C++ exception to the class of the same name in ryzanstein.errors.
#include <pybind11/pybind11.h>

#include <exception>

#include "base/error.h"
#include "bindings/bindings.h"

namespace py = pybind11;

namespace ryz {
namespace {

void raise(const char* name, const Error& error) {
  const py::object type = py::module_::import("ryzanstein.errors").attr(name);
  PyErr_SetString(type.ptr(), error.what());
}

}  // namespace

void register_errors() {
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const ValidationError& error) {
      raise("ValidationError", error);
    } catch (const QuantizationError& error) {
      raise("QuantizationError", error);
    } catch (const OutOfMemoryError& error) {
      raise("OutOfMemoryError", error);
    } catch (const DistributionError& error) {
      raise("DistributionError", error);
    } catch (const Error& error) {
      raise("RyzansteinError", error);
    }
  });
}

}  // namespace ryz
