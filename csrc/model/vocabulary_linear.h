// Exact logits: rows of a vocabulary, plain numbers or codes, times hidden states. A row's logit
// has the same bits whichever function computed it, and whatever beside it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/dispatch.h"
#include "model/weights.h"

namespace ryz {

// Rows are shared out in units of so many.
std::size_t unit_rows(const VocabularyMatrix& weights);

// logits[t, n] of whole units [begin, end) for hidden states x [tokens, columns].
void vocabulary_linear(const KernelTable& kernels, const VocabularyMatrix& weights, const float* x,
                       std::size_t tokens, std::size_t begin, std::size_t end, float* logits);

// logits[i] of row rows[i] for one hidden state x. Rows ascend, and may lie far apart: each costs
// what its unit costs.
void vocabulary_rows(const KernelTable& kernels, const VocabularyMatrix& weights, const float* x,
                     const std::int32_t* rows, std::size_t count, float* logits);

}  // namespace ryz
