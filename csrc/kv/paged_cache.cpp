#include "kv/paged_cache.h"

#include <cstring>
#include <string>

#include "base/error.h"

namespace ryz {

PagedCache::PagedCache(std::size_t layers, std::size_t kv_heads, std::size_t head_dim,
                       std::size_t blocks, DType dtype)
    : kv_heads_(kv_heads), head_dim_(head_dim), blocks_(blocks), dtype_(dtype) {
  // Slots are int32: block * kPageTokens + offset.
  constexpr std::size_t kMaxBlocks = INT32_MAX / kPageTokens;
  constexpr std::size_t kMaxSize = std::size_t{1} << 16;
  if (layers == 0 || layers > kMaxSize || kv_heads == 0 || kv_heads > kMaxSize || head_dim == 0 ||
      head_dim > kMaxSize || blocks == 0 || blocks > kMaxBlocks) {
    throw ValidationError("[paged_cache] layers, kv heads and head dim must be within 1.." +
                          std::to_string(kMaxSize) + ", blocks within 1.." +
                          std::to_string(kMaxBlocks));
  }
  // Below 2^16 * 2^16 * 2^16 * 2^9 bytes a block, which times blocks may be beyond 64 bits.
  if (block_bytes() > SIZE_MAX / blocks) {
    throw OutOfMemoryError("[paged_cache] " + std::to_string(blocks) + " blocks of " +
                           std::to_string(block_bytes()) + " bytes exceed the address space");
  }
  if (dtype == DType::kBF16) throw ValidationError("[paged_cache] dtype must be f16 or f32");
  slabs_.reserve(layers);
  for (std::size_t i = 0; i < layers; ++i) slabs_.emplace_back(blocks * block_bytes(), "KV pages");
}

void PagedCache::check_block(const char* op, std::size_t block) const {
  if (block >= blocks_) {
    throw ValidationError(std::string("[") + op + "] block " + std::to_string(block) +
                          " is outside a cache of " + std::to_string(blocks_) + " blocks");
  }
}

void PagedCache::copy_block(std::size_t source, std::size_t target) {
  check_block("copy_block", source);
  check_block("copy_block", target);
  if (source == target) return;
  for (std::size_t layer = 0; layer < layers(); ++layer) {
    std::memcpy(page(layer, target, 0), page(layer, source, 0), block_bytes());
  }
}

void PagedCache::read(std::size_t layer, std::size_t block, float* keys, float* values) const {
  check_block("read", block);
  if (layer >= layers()) throw ValidationError("[read] layer is out of range");
  const std::size_t padded = padded_head_dim(head_dim_);
  for (std::size_t g = 0; g < kv_heads_; ++g) {
    const std::byte* source = page(layer, block, g);
    for (std::size_t t = 0; t < kPageTokens; ++t) {
      for (std::size_t d = 0; d < head_dim_; ++d) {
        const std::size_t out = (t * kv_heads_ + g) * head_dim_ + d;
        keys[out] = element_to_f32(source, dtype_, d * kPageTokens + t);
        values[out] = element_to_f32(source, dtype_, head_dim_ * kPageTokens + t * padded + d);
      }
    }
  }
}

}  // namespace ryz
