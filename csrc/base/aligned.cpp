#include "base/aligned.h"

#include <string>

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
  if (data_ != nullptr) munmap(data_, bytes_);
}

#else

Buffer::Buffer(std::size_t bytes, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  data_ = ::operator new(bytes, std::align_val_t{kCacheLine}, std::nothrow);
  if (data_ == nullptr) throw_out_of_memory(bytes, what);
  std::memset(data_, 0, bytes);
}

Buffer::~Buffer() { ::operator delete(data_, std::align_val_t{kCacheLine}); }

#endif

}  // namespace ryz
