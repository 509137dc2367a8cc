// The transformer. One call, one thread-pool region: prefill, decode, chunked prefill and batches
// are all the same step with different T, S and R.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "cpu/features.h"
#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "kv/paged_cache.h"
#include "model/lm_head.h"
#include "model/step.h"
#include "model/weights.h"
#include "model/workspace.h"

namespace ryz {

class Decoder {
 public:
  // A coded head takes `coded_head`, its arrays made before, or makes them if there are none. Steps
  // of fewer than `small_step` multiplications run on one thread. Throws ValidationError when
  // shapes contradict the configuration.
  Decoder(DecoderConfig config, std::vector<LayerWeights> layers, VocabularyMatrix embedding,
          std::vector<float> final_norm, VocabularyMatrix lm_head, HeadKind head_kind,
          std::map<std::string, Buffer> coded_head, int threads, Isa isa, std::size_t small_step);

  const DecoderConfig& config() const { return config_; }
  std::size_t num_layers() const { return layers_.size(); }
  const std::vector<LayerWeights>& layers() const { return layers_; }
  Isa isa() const { return isa_; }
  const LmHead& head() const { return head_; }
  NamedBuffers coded_head_buffers() { return head_.buffers(); }
  int threads() const { return pool_.threads(); }
  // Of the linears: what a token costs at least, in bytes read and products added up.
  std::size_t linear_bytes() const { return linear_bytes_; }
  std::size_t multiplications_per_token() const { return multiplications_per_token_; }
  // Layer by layer; only between steps.
  std::vector<ChannelCounts> channel_counts() const;

  // Fills logits [R, V] and, unless null, hidden_states [L + 1, T, hidden]. One caller at a time:
  // others wait. Throws ValidationError, OutOfMemoryError.
  void step(const StepBatch& batch, PagedCache& cache, float* logits, float* hidden_states);

 private:
  void reserve(const StepBatch& batch);

  DecoderConfig config_;
  std::vector<LayerWeights> layers_;
  VocabularyMatrix embedding_;
  std::vector<float> final_norm_;
  Isa isa_;
  const KernelTable& kernels_;
  std::size_t small_step_;
  ThreadPool pool_;
  LmHead head_;
  std::size_t multiplications_per_token_ = 0;
  std::size_t linear_bytes_ = 0;
  Workspace workspace_;
  std::mutex mutex_;
};

}  // namespace ryz
