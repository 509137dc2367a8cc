#include "kv/paged_cache.h"

#include <cstring>
#include <string>

#include "base/dtype.h"
#include "base/error.h"

namespace ryz {

PagedCache::PagedCache(std::size_t layers, std::size_t kv_heads, std::size_t head_dim,
                       std::size_t blocks, KvDtype dtype)
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

void PagedCache::store_block(std::size_t block, std::byte* bytes) const {
  check_block("store_block", block);
  for (std::size_t layer = 0; layer < layers(); ++layer) {
    std::memcpy(bytes + layer * block_bytes(), page(layer, block, 0), block_bytes());
  }
}

void PagedCache::load_block(std::size_t block, const std::byte* bytes) {
  check_block("load_block", block);
  for (std::size_t layer = 0; layer < layers(); ++layer) {
    std::memcpy(page(layer, block, 0), bytes + layer * block_bytes(), block_bytes());
  }
}

void PagedCache::read(std::size_t layer, std::size_t block, float* keys, float* values) const {
  check_block("read", block);
  if (layer >= layers()) throw ValidationError("[read] layer is out of range");
  const std::size_t padded = padded_head_dim(head_dim_);
  const std::size_t depth = kv_depth(dtype_);
  const std::size_t first_value = page_key_elements(head_dim_, dtype_);
  for (std::size_t g = 0; g < kv_heads_; ++g) {
    const std::byte* source = page(layer, block, g);
    for (std::size_t t = 0; t < kPageTokens; ++t) {
      for (std::size_t d = 0; d < head_dim_; ++d) {
        const std::size_t key = (d / depth * kPageTokens + t) * depth + d % depth;
        const std::size_t value = first_value + (t / depth * padded + d) * depth + t % depth;
        const std::size_t out = (t * kv_heads_ + g) * head_dim_ + d;
        keys[out] = element(source, key) * scale(source, t);
        values[out] = element(source, value) * scale(source, kPageTokens + t);
      }
    }
  }
}

float PagedCache::element(const std::byte* page, std::size_t i) const {
  switch (dtype_) {
    case KvDtype::kF32:
      return element_to_f32(page, DType::kF32, i);
    case KvDtype::kF16:
      return element_to_f32(page, DType::kF16, i);
    case KvDtype::kInt8:
      return static_cast<float>(std::to_integer<std::int8_t>(page[i]));
  }
  return 0.0f;  // not reached
}

// What an element is multiplied by: of token t's key, or of its value at kPageTokens + t.
float PagedCache::scale(const std::byte* page, std::size_t i) const {
  if (dtype_ != KvDtype::kInt8) return 1.0f;
  return element_to_f32(page + page_elements(head_dim_, dtype_), DType::kF32, i);
}

}  // namespace ryz
