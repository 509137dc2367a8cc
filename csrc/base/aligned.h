// Buffers for weights, KV pages and workspace.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace ryz {

inline constexpr std::size_t kCacheLine = 64;

constexpr std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Zeroed memory straight from the OS, 64-byte aligned or better. Pages are committed on first
// write; large buffers ask for huge pages (worth 5-15 % of streaming bandwidth). Or memory of
// somebody else, such as a mapped file.
class Buffer {
 public:
  Buffer() = default;
  // Throws OutOfMemoryError naming `what` and the size.
  Buffer(std::size_t bytes, const char* what);
  // Borrows memory that `owner` keeps alive and that nobody writes. Throws ValidationError unless
  // it is 64-byte aligned.
  Buffer(const void* data, std::size_t bytes, std::shared_ptr<const void> owner);
  ~Buffer();
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)),
        owner_(std::move(other.owner_)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(owner_, other.owner_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }
  bool is_borrowed() const { return owner_ != nullptr; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  std::shared_ptr<const void> owner_;
};

// What a packed object consists of, besides numbers that follow from its shape: what a file of
// packed weights holds of it.
struct NamedBuffer {
  const char* name;
  Buffer* buffer;
};
using NamedBuffers = std::vector<NamedBuffer>;

// Puts the stored buffers in the places of those allocated for them. Throws ValidationError, and
// changes nothing, unless names and sizes are the same.
void adopt_buffers(const NamedBuffers& places, std::map<std::string, Buffer> stored);

}  // namespace ryz
