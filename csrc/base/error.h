// The exceptions the core throws; bindings map each one to its Python class of the same name.
// Messages start with "[op]" and say what was found and what was expected.
#pragma once

#include <stdexcept>
#include <string>

namespace ryz {

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}
};

class ValidationError : public Error {
  using Error::Error;
};

class QuantizationError : public Error {
  using Error::Error;
};

class OutOfMemoryError : public Error {
  using Error::Error;
};

class DistributionError : public Error {
  using Error::Error;
};

}  // namespace ryz
