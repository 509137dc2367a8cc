// One thread's part in the attention of a step: rotates queries and keys, stores keys and values,
// and attends to them. Threads take units of work from a shared counter, biggest first; which
// thread does what changes no bit.
#pragma once

#include <cstddef>
#include <vector>

#include "cpu/thread_pool.h"
#include "model/step.h"

namespace ryz {

class AttentionWorker {
 public:
  AttentionWorker(const Step& step, ThreadPool::Context& ctx);

  // From the rows of ws.qkv to ws.attention. Starts and ends with every thread past a barrier.
  void run(std::size_t layer);

  // Cuts the batch into tiles and sizes the workspace for them.
  static void prepare(const DecoderConfig& config, const StepBatch& batch, std::size_t threads,
                      Workspace& ws);

 private:
  // Part of the softmax of a tile and kv head: out rows, then max, then sum.
  struct Part {
    float* out;
    float* max;
    float* sum;
  };

  void rotate_and_store(std::size_t layer, std::size_t t, std::size_t kv_head);
  void attend_whole(std::size_t layer);
  void attend_shared_splits(std::size_t layer);
  void attend(std::size_t layer, const AttentionTile& tile, std::size_t g, std::size_t key_begin,
              std::size_t key_end, const Part& into);
  Part fold(std::size_t layer, const AttentionTile& tile, std::size_t pair);
  void finish(const AttentionTile& tile, std::size_t g, const Part& whole);
  Part part(std::size_t index) const;
  void norm_head(const std::vector<float>& gain, float* head);
  std::size_t first_split(std::size_t layer, const AttentionTile& tile) const;
  bool is_hidden(std::size_t layer, const AttentionTile& tile, std::size_t split) const;
  std::size_t position(const AttentionTile& tile) const;
  std::size_t key_end(const AttentionTile& tile) const;
  std::size_t take() { return ws_.next_unit.fetch_add(1, std::memory_order_relaxed); }

  const Step& s_;
  ThreadPool::Context& ctx_;
  const DecoderConfig& config_;
  const KernelTable& kernels_;
  Workspace& ws_;
  const std::size_t me_;
};

}  // namespace ryz
