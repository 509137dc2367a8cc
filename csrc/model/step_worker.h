// One thread's part in a step. Every thread of the region runs the same phases on its share and
// meets the others at barriers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cpu/thread_pool.h"
#include "model/step.h"

namespace ryz {

// A long context is attended in parts of this many keys, folded in order: the parts are a function
// of position alone, so threads may share them without changing a bit.
inline constexpr std::size_t kSplitKeys = 256;

class StepWorker {
 public:
  StepWorker(const Step& step, ThreadPool::Context& ctx);

  void run();

 private:
  enum class Output { kAssign, kAdd };
  // Part of the softmax of one token and kv head: out rows, then max, then sum.
  struct Part {
    float* out;
    float* max;
    float* sum;
  };

  void begin();
  void attention_block(std::size_t layer);
  void feed_forward_block(std::size_t layer);
  void feed_forward_token(std::size_t layer);
  std::size_t gate_and_up(const LayerWeights& layer);
  std::size_t down(const LayerWeights& layer, std::size_t k_padded);
  void finish();

  void save_hidden(std::size_t index, const float* rows);
  // out[T, rows of all linears] = or += linears(rms_norm(input, gain)). An empty gain leaves the
  // input as it is. Ends with a barrier.
  void project(const float* input, const std::vector<float>& gain, std::span<const Linear> linears,
               Output output, float* out, std::size_t out_stride);
  void quantize_rows(const float* input, const std::vector<float>& gain, const Linear& linear);
  QuantizeArgs quantize_args(const float* row, std::size_t t, const std::vector<float>& gain,
                             const Linear& linear, std::size_t mean_count) const;
  void multiply(const Linear& linear, Output output, float* out, std::size_t out_stride);
  void multiply_panels(const TernaryMatrix& matrix, std::size_t first, std::size_t last,
                       Output output, float* out, std::size_t out_stride);
  void rotate_and_store(std::size_t layer, std::size_t t, std::size_t kv_head);
  void attend(std::size_t layer);
  void attend_whole(std::size_t layer);
  void attend_shared_splits(std::size_t layer);
  void attend_split(std::size_t layer, std::size_t t, std::size_t g, std::size_t split,
                    const Part& into);
  void merge(const Part& from, const Part& into);
  void finish_head(std::size_t t, std::size_t g, const Part& whole);
  Part part(std::size_t index) const;
  std::size_t splits(std::size_t t) const;

  const Step& s_;
  ThreadPool::Context& ctx_;
  const DecoderConfig& config_;
  const KernelTable& kernels_;
  Workspace& ws_;
  const std::size_t tokens_;
  const std::size_t me_;
  const std::size_t threads_;
  // Rows this thread prepares (norms, gates, quantises): a share of them in shared buffers or, when
  // there are fewer rows than threads, all of them in buffers of its own, which costs less than the
  // barrier that sharing would take.
  const bool replicates_;
  std::size_t first_row_ = 0;
  std::size_t last_row_ = 0;
  float* normed_;
  float* gated_;
  std::int8_t* q_;
  float* act_scale_;
  std::int32_t* act_sum_;
};

}  // namespace ryz
