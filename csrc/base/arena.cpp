#include "base/arena.h"

#include <memory>
#include <mutex>

namespace ryz {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{64} << 20;

// Pieces share huge pages with their neighbours, so a piece starts where the last one ended.
struct Arena {
  std::mutex mutex;
  std::weak_ptr<Buffer> chunk;
  std::size_t used = 0;
};

Arena& arena() {
  static Arena instance;
  return instance;
}

}  // namespace

Buffer weight_buffer(std::size_t bytes, const char* what) {
  const std::size_t size = round_up(bytes, kCacheLine);
#ifdef __SANITIZE_ADDRESS__
  const bool is_alone = true;  // so that accesses past its end are found
#else
  const bool is_alone = size >= kChunkBytes / 4;
#endif
  if (is_alone) return Buffer(bytes, what);
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  std::shared_ptr<Buffer> chunk = a.chunk.lock();
  if (chunk == nullptr || chunk->bytes() - a.used < size) {
    chunk = std::make_shared<Buffer>(kChunkBytes, what);
    a.chunk = chunk;
    a.used = 0;
  }
  const auto* data = chunk->as<std::byte>() + a.used;
  a.used += size;
  return Buffer(data, bytes, std::move(chunk));
}

}  // namespace ryz
