// Owning buffers for weights, KV pages and workspace.
#pragma once

#include <cstddef>
#include <utility>

namespace ryz {

inline constexpr std::size_t kCacheLine = 64;

constexpr std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Zeroed memory straight from the OS, 64-byte aligned or better. Pages are committed on first
// write; large buffers ask for huge pages (worth 5-15 % of streaming bandwidth).
class Buffer {
 public:
  Buffer() = default;
  // Throws OutOfMemoryError naming `what` and the size.
  Buffer(std::size_t bytes, const char* what);
  ~Buffer();
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace ryz
