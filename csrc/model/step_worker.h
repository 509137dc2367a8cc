// One thread's part in a step. Every thread of the region runs the same phases on its share and
// meets the others at barriers.
#pragma once

#include <cstddef>
#include <vector>

#include "cpu/thread_pool.h"
#include "model/attention_worker.h"
#include "model/linear_worker.h"
#include "model/step.h"

namespace ryz {

class StepWorker {
 public:
  StepWorker(const Step& step, ThreadPool::Context& ctx);

  void run();

 private:
  void begin();
  void rotation(std::size_t set, std::size_t rope, std::size_t t);
  void attention_block(std::size_t layer);
  void feed_forward_block(std::size_t layer);
  void feed_forward_token(std::size_t layer);
  std::size_t gate_and_up(const LayerWeights& layer);
  std::size_t down(const LayerWeights& layer, std::size_t k_padded);
  void finish();

  void save_hidden(std::size_t index, const float* rows);
  // x += rms_norm(block output, gain).
  void add_output(const std::vector<float>& gain);

  const Step& s_;
  ThreadPool::Context& ctx_;
  const DecoderConfig& config_;
  const KernelTable& kernels_;
  Workspace& ws_;
  LinearWorker linears_;
  AttentionWorker attention_;
  const std::size_t tokens_;
  const std::size_t me_;
};

}  // namespace ryz
