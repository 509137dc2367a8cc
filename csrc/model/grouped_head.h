// A head that answers for every logit from 8 or 4 bits of the stored weights, in groups of 32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "model/weights.h"
#include "model/workspace.h"
#include "quant/grouped_matrix.h"

namespace ryz {

class GroupedHead {
 public:
  // Throws ValidationError, OutOfMemoryError.
  GroupedHead(const VocabularyMatrix& weights, int bits, const KernelTable& kernels);

  // Throws QuantizationError.
  void build(const VocabularyMatrix& weights, ThreadPool& pool);
  GroupedMatrix& matrix() { return matrix_; }
  const GroupedMatrix& matrix() const { return matrix_; }

  // Before a region of `rows` hidden states.
  void prepare(std::size_t rows);
  // Inside a region, hidden [rows, K] being complete: fills this thread's columns of logits
  // [rows, V], which are those of the panels that it gets of a share.
  void run(ThreadPool::Context& ctx, const float* hidden, float* logits);

 private:
  const KernelTable& kernels_;
  GroupedMatrix matrix_;
  std::size_t rows_ = 0;
  Scratch<std::int8_t> q_{"head inputs"};           // [blocks, rows, kScaleBlock]
  Scratch<ActivationBlock> blocks_{"head inputs"};  // [blocks, rows]
};

}  // namespace ryz
