// Keys and values of all layers in pages of kPageTokens tokens. Knows block ids, not requests:
// who owns which block is the block manager's business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/aligned.h"
#include "kernels/ops.h"

namespace ryz {

class PagedCache {
 public:
  // One slab per layer, reserved whole and committed by the OS page by page on first write.
  // Throws ValidationError, OutOfMemoryError.
  PagedCache(std::size_t layers, std::size_t kv_heads, std::size_t head_dim, std::size_t blocks,
             KvDtype dtype);

  std::size_t layers() const { return slabs_.size(); }
  std::size_t kv_heads() const { return kv_heads_; }
  std::size_t head_dim() const { return head_dim_; }
  std::size_t blocks() const { return blocks_; }
  KvDtype dtype() const { return dtype_; }
  std::size_t bytes() const { return layers() * blocks_ * block_bytes(); }

  // A block holds one page per kv head, head after head.
  std::size_t page_bytes() const { return ryz::page_bytes(head_dim_, dtype_); }
  std::size_t block_bytes() const { return kv_heads_ * page_bytes(); }
  std::byte* page(std::size_t layer, std::size_t block, std::size_t kv_head) const {
    return slabs_[layer].as<std::byte>() + block * block_bytes() + kv_head * page_bytes();
  }

  // Throws ValidationError on a block out of range.
  void copy_block(std::size_t source, std::size_t target);

  // One block of every layer, layer after layer, as it is stored: for state files. `bytes` holds
  // layers() * block_bytes(). Throws ValidationError on a block out of range.
  void store_block(std::size_t block, std::byte* bytes) const;
  void load_block(std::size_t block, const std::byte* bytes);

  // Keys and values of one block as float [kPageTokens, kv_heads, head_dim].
  void read(std::size_t layer, std::size_t block, float* keys, float* values) const;

 private:
  void check_block(const char* op, std::size_t block) const;
  float element(const std::byte* page, std::size_t i) const;
  float scale(const std::byte* page, std::size_t i) const;

  std::size_t kv_heads_, head_dim_, blocks_;
  KvDtype dtype_;
  std::vector<Buffer> slabs_;
};

}  // namespace ryz
