// Scratch memory of a step, sized for the largest batch seen and reused.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/aligned.h"
#include "quant/grouped.h"

namespace ryz {

// Channels of a layer's feed-forward that were not zero, over its steps of one token.
struct ChannelCounts {
  std::uint64_t steps = 0;
  std::uint64_t open_gates = 0;
  std::uint64_t nonzero = 0;  // after quantisation
};

// An array that only grows; contents are not kept.
template <typename T>
class Scratch {
 public:
  explicit Scratch(const char* what) : what_(what) {}
  void reserve(std::size_t count) {
    if (count * sizeof(T) > buffer_.bytes()) buffer_ = Buffer(count * sizeof(T), what_);
  }
  T* data() const { return buffer_.as<T>(); }

 private:
  const char* what_;
  Buffer buffer_;
};

// Consecutive tokens of one sequence, which attend together.
struct AttentionTile {
  std::size_t sequence;
  std::size_t first;  // in the batch
  std::size_t tokens;
};

struct Workspace {
  Scratch<float> x{"hidden states"};     // [T, hidden]
  Scratch<float> normed{"normed rows"};  // [T, widest input]
  Scratch<float> qkv{"queries, keys and values"};
  Scratch<float> attention{"attention output"};
  Scratch<float> gate_up{"feed-forward rows"};
  Scratch<float> gated{"feed-forward rows"};    // [T, intermediate]
  Scratch<float> block_output{"block output"};  // [T, hidden], where it has a norm
  Scratch<float> final_rows{"final rows"};      // [R, hidden]
  Scratch<float> cos{"rotary table"};           // [ropes, T, head_dim / 2]
  Scratch<float> sin{"rotary table"};
  Scratch<std::int8_t> q{"quantised rows"};  // [T, widest input, padded]
  Scratch<float> act_scale{"activation scales"};
  Scratch<std::int32_t> act_sum{"activation sums"};
  Scratch<std::int8_t> block_q{"rows in blocks"};  // [blocks of the widest input, T, kScaleBlock]
  Scratch<ActivationBlock> blocks{"rows in blocks"};
  Scratch<std::uint8_t> tables{"lookup tables"};  // per thread
  std::size_t table_stride = 0;
  std::vector<AttentionTile> tiles;
  Scratch<float> partials{"attention parts"};
  Scratch<float> attention_scratch{"attention scores"};  // per thread
  std::size_t attention_stride = 0;
  Scratch<std::int32_t> selected{"selected channels"};  // per thread
  std::size_t selected_stride = 0;
  std::vector<ChannelCounts> channel_counts;         // [layers, threads]: gates by thread
  Scratch<std::uint8_t> column_sums{"column sums"};  // per thread
  std::size_t column_sums_stride = 0;
  std::size_t widest = 0;  // in-features of any linear
  // Key splits per (tile, kv head) in `partials`, or 0 when each thread folds its own.
  std::size_t shared_splits = 0;
  std::size_t part_rows = 0;               // rows of a part, as the largest tile needs them
  std::atomic<std::size_t> next_unit = 0;  // of the attention of a layer
};

}  // namespace ryz
