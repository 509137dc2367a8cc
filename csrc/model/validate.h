// Checks that turn a wrong model or batch into one clear error before any arithmetic starts.
#pragma once

#include <vector>

#include "kv/paged_cache.h"
#include "model/decoder.h"
#include "model/weights.h"

namespace ryz {

// Throws ValidationError naming the part whose shape contradicts the configuration.
void validate_model(const DecoderConfig& config, const std::vector<LayerWeights>& layers,
                    const VocabularyMatrix& embedding, const std::vector<float>& final_norm,
                    const VocabularyMatrix& lm_head);

// Throws ValidationError naming the index that is out of range or inconsistent.
void validate_batch(const DecoderConfig& config, std::size_t layers, const StepBatch& batch,
                    const PagedCache& cache);

}  // namespace ryz
