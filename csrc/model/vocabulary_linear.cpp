#include "model/vocabulary_linear.h"

#include <algorithm>

namespace ryz {
namespace {

// The next row is on its way while one is computed.
void plain_rows(const KernelTable& kernels, const DenseMatrix& stored, const float* x,
                const std::int32_t* rows, std::size_t count, float* logits) {
  const std::size_t row_bytes = stored.columns * size_of(stored.dtype);
  const auto* const weights = static_cast<const char*>(stored.data);
  for (std::size_t i = 0; i < count; ++i) {
    if (i + 1 < count) {
      const char* next = weights + static_cast<std::size_t>(rows[i + 1]) * row_bytes;
      for (std::size_t at = 0; at < row_bytes; at += kCacheLine) __builtin_prefetch(next + at);
    }
    const char* row = weights + static_cast<std::size_t>(rows[i]) * row_bytes;
    kernels.dense_linear({row, stored.dtype, stored.columns, 0, 1, x, 1, logits + i, 1});
  }
}

// Rows of one panel are computed together.
void coded_rows(const KernelTable& kernels, const GroupedMatrix& stored, const float* x,
                const std::int32_t* rows, std::size_t count, float* logits) {
  const std::size_t panel_bytes = stored.records() * stored.format().record_bytes();
  float panel_logits[kPanelRows];
  for (std::size_t i = 0; i < count;) {
    const std::size_t panel = static_cast<std::size_t>(rows[i]) / kPanelRows;
    const std::size_t first = panel * kPanelRows;
    const std::size_t end = std::min(first + kPanelRows, stored.out_features());
    kernels.weight_only_linear({stored.packed() + panel * panel_bytes, stored.format(), end - first,
                                stored.records(), 0, 1, x, stored.in_features(), 1, panel_logits,
                                kPanelRows});
    for (; i < count && static_cast<std::size_t>(rows[i]) < end; ++i) {
      logits[i] = panel_logits[static_cast<std::size_t>(rows[i]) - first];
    }
  }
}

}  // namespace

std::size_t unit_rows(const VocabularyMatrix& weights) {
  return weights.grouped() == nullptr ? kDenseLotRows : kPanelRows;
}

void vocabulary_linear(const KernelTable& kernels, const VocabularyMatrix& weights, const float* x,
                       std::size_t tokens, std::size_t begin, std::size_t end, float* logits) {
  const std::size_t vocab = weights.rows, k = weights.columns;
  if (const GroupedMatrix* codes = weights.grouped()) {
    kernels.weight_only_linear({codes->packed(), codes->format(), vocab, codes->records(),
                                begin / kPanelRows, (end + kPanelRows - 1) / kPanelRows, x, k,
                                tokens, logits, vocab});
  } else {
    const DenseMatrix& plain = weights.dense();
    kernels.dense_linear({plain.data, plain.dtype, k, begin, end, x, tokens, logits, vocab});
  }
}

void vocabulary_rows(const KernelTable& kernels, const VocabularyMatrix& weights, const float* x,
                     const std::int32_t* rows, std::size_t count, float* logits) {
  if (const GroupedMatrix* codes = weights.grouped()) {
    coded_rows(kernels, *codes, x, rows, count, logits);
  } else {
    plain_rows(kernels, weights.dense(), x, rows, count, logits);
  }
}

}  // namespace ryz
