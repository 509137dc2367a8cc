// One call of Decoder::step: what the caller asks for, and what the threads of its region share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/dispatch.h"
#include "kv/paged_cache.h"
#include "model/lm_head.h"
#include "model/weights.h"
#include "model/workspace.h"

namespace ryz {

// T tokens of S sequences; R of the tokens want logits.
struct StepBatch {
  std::span<const std::int32_t> token_ids;     // [T]
  std::span<const std::int32_t> positions;     // [T]
  std::span<const std::int32_t> seq_starts;    // [S + 1]
  std::span<const std::int32_t> slots;         // [T]
  std::span<const std::int32_t> block_tables;  // [S, max_blocks]
  std::size_t max_blocks;
  std::span<const std::int32_t> logit_rows;  // [R]
  std::span<const Screening> screening;      // [R], or empty: every row whole
  std::span<const std::int32_t> rope_sets;   // [S], or empty: the first for every sequence

  std::size_t tokens() const { return token_ids.size(); }
  std::size_t sequences() const { return seq_starts.size() - 1; }
};

// A step in flight.
struct Step {
  const DecoderConfig& config;
  const std::vector<LayerWeights>& layers;
  const VocabularyMatrix& embedding;
  const std::vector<float>& final_norm;
  const KernelTable& kernels;
  LmHead& head;
  Workspace& workspace;
  const StepBatch& batch;
  PagedCache& cache;
  float* logits;         // [R, V]
  float* hidden_states;  // [L + 1, T, hidden] or null
  std::size_t threads;   // of the pool; the region of a small step has one
};

}  // namespace ryz
