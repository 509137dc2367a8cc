#include "base/aligned.h"

#include <cstdint>

#include "base/error.h"

// AddressSanitizer sees nothing of mapped memory: under it, buffers come from the heap, where it
// finds every access past their ends.
#if (defined(__unix__) || defined(__APPLE__)) && !defined(__SANITIZE_ADDRESS__)
#define RYZ_MMAP 1
#include <sys/mman.h>
#else
#include <cstring>
#include <new>
#endif

namespace ryz {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

[[noreturn]] void throw_out_of_memory(std::size_t bytes, const char* what) {
  throw OutOfMemoryError("[memory] cannot allocate " + std::to_string(bytes) + " bytes for " +
                         what + "; use a smaller context or model, or free memory");
}

}  // namespace

Buffer::Buffer(const void* data, std::size_t bytes, std::shared_ptr<const void> owner)
    : data_(const_cast<void*>(data)), bytes_(bytes), owner_(std::move(owner)) {
  if (bytes != 0 && reinterpret_cast<std::uintptr_t>(data) % kCacheLine != 0) {
    throw ValidationError("[memory] a borrowed buffer must be aligned to " +
                          std::to_string(kCacheLine) + " bytes");
  }
}

void adopt_buffers(const NamedBuffers& places, std::map<std::string, Buffer> stored) {
  for (const NamedBuffer& place : places) {
    const auto found = stored.find(place.name);
    const std::size_t bytes = found == stored.end() ? 0 : found->second.bytes();
    if (bytes != place.buffer->bytes()) {
      throw ValidationError(std::string("[memory] stored array '") + place.name + "' has " +
                            std::to_string(bytes) + " bytes, expected " +
                            std::to_string(place.buffer->bytes()));
    }
  }
  if (stored.size() != places.size()) {
    throw ValidationError("[memory] " + std::to_string(stored.size()) + " arrays are stored, " +
                          std::to_string(places.size()) + " are known");
  }
  for (const NamedBuffer& place : places) *place.buffer = std::move(stored[place.name]);
}

#ifdef RYZ_MMAP

Buffer::Buffer(std::size_t bytes, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw_out_of_memory(bytes, what);
  data_ = data;
#ifdef MADV_HUGEPAGE
  // Advice only: a kernel without huge pages still gives correct, slower memory.
  if (bytes >= kHugePage) (void)madvise(data, bytes, MADV_HUGEPAGE);
#endif
}

Buffer::~Buffer() {
  if (data_ != nullptr && !is_borrowed()) munmap(data_, bytes_);
}

#else

Buffer::Buffer(std::size_t bytes, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  data_ = ::operator new(bytes, std::align_val_t{kCacheLine}, std::nothrow);
  if (data_ == nullptr) throw_out_of_memory(bytes, what);
  std::memset(data_, 0, bytes);
}

Buffer::~Buffer() {
  if (!is_borrowed()) ::operator delete(data_, std::align_val_t{kCacheLine});
}

#endif

}  // namespace ryz
