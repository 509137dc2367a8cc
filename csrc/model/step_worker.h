// One thread's part in a step. Every thread of the region runs the same phases on its share and
// meets the others at barriers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cpu/thread_pool.h"
#include "model/attention_worker.h"
#include "model/step.h"

namespace ryz {

class StepWorker {
 public:
  StepWorker(const Step& step, ThreadPool::Context& ctx);

  void run();

 private:
  enum class Output { kAssign, kAdd };

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
  void multiply_panels(const Linear& linear, std::size_t first, std::size_t last, Output output,
                       float* out, std::size_t out_stride);

  const Step& s_;
  ThreadPool::Context& ctx_;
  const DecoderConfig& config_;
  const KernelTable& kernels_;
  Workspace& ws_;
  AttentionWorker attention_;
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
