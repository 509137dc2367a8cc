// From final hidden rows to logits, by one of six kinds of head.
//
// The exact head is certified: a caller who will only look at the best tokens of a row says so
// (Screening). The head bounds all logits from 5-bit codes of its rows, narrows the bounds of those
// rows that could matter by 2 further bits, and computes what then is left with the dense head's
// kernel: the same bits. All others read as -infinity. Where too many rows are left, and where the
// caller wants every logit, the dense head runs.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "model/grouped_head.h"
#include "model/weights.h"
#include "model/workspace.h"
#include "quant/screen.h"

namespace ryz {

enum class HeadKind : std::uint8_t {
  kDense,  // every logit from the stored weights
  kExact,  // the same, or as much of it as the caller looks at
  kInt7,   // every logit from 7-bit codes
  kInt5,   // every logit from 5-bit codes
  kInt8,   // every logit from 8-bit codes in groups, activations in 8 bits too
  kInt4,   // the same with 4-bit codes
};

// What a caller will look at in a row of logits: those of `known` tokens, the `top` highest others,
// and every one within `margin` below the lowest of these. top = 0: all.
struct Screening {
  std::int32_t top;
  float margin;
  std::span<const std::int32_t> known;
};

class LmHead {
 public:
  struct Counters {
    std::uint64_t full_rows;      // rows computed whole because the caller asked
    std::uint64_t screened_rows;  // rows answered by candidates
    std::uint64_t survivors;      // logits that the 5-bit codes alone could not rule out in them
    std::uint64_t candidates;     // exact logits computed for them
    std::uint64_t fallback_rows;  // rows computed whole because candidates were too many
  };

  // A soft cap of 0 is none. Throws ValidationError for a dense or exact head of codes in a format
  // that vocabulary_linear.h or the bounds cannot take.
  LmHead(VocabularyMatrix weights, HeadKind kind, float softcap, const KernelTable& kernels);

  // Codes the weights, unless the head is dense. Throws OutOfMemoryError.
  void build(ThreadPool& pool);
  // Takes the arrays of the same head coded before. Throws ValidationError.
  void adopt(std::map<std::string, Buffer> stored);
  NamedBuffers buffers() { return grouped_ ? grouped_->matrix().buffers() : coded_.buffers(); }
  HeadKind kind() const { return kind_; }
  Counters counters() const;
  std::size_t coded_bytes() const { return grouped_ ? grouped_->matrix().bytes() : coded_.bytes(); }
  // Of these, what is read for some rows only.
  std::size_t rest_bytes() const {
    return kind_ == HeadKind::kExact ? coded_.rows() * coded_.rest_bytes() : 0;
  }
  std::size_t bytes() const { return weights_.bytes(); }

  // Before a region: takes each row's screening (empty: all full) and sizes the workspace.
  void prepare(std::size_t rows, std::span<const Screening> screening, int threads);
  // Inside a region, hidden [rows, K] being complete: fills logits [rows, V].
  void run(ThreadPool::Context& ctx, const float* hidden, float* logits);

 private:
  void reserve();
  struct Row {
    std::size_t index;  // of the logit row
    Screening screening;
  };
  struct Ranked {
    float value;
    std::int32_t row;  // of the head; -1 for none
  };
  // A thread's part of the head.
  struct Share {
    std::size_t thread;
    std::size_t threads;
    std::size_t begin;
    std::size_t end;
    std::int32_t* rows;  // room for as many rows as that
  };
  struct Count {
    std::size_t survivors;
    std::size_t candidates;
    float least;  // upper bound of a candidate
  };

  static bool precedes(const Ranked& a, const Ranked& b);
  bool is_lossy() const { return kind_ == HeadKind::kInt7 || kind_ == HeadKind::kInt5; }
  void quantize(ThreadPool::Context& ctx, const float* hidden, float* logits);
  ScreenActivations activations(std::size_t slot) const;
  void high_plane(std::size_t panel_begin, std::size_t panel_end);
  void low_plane(std::size_t slot, const std::int32_t* rows, std::size_t count);
  void lossy(const Share& share);
  void soften(float* logits, std::size_t count) const;
  void full_rows(const float* hidden, float* logits, std::size_t begin, std::size_t end);
  void screen(ThreadPool::Context& ctx, const Share& share, const float* hidden);
  void collect_top(const Share& share, std::size_t slot);
  void score_best(const Share& share, std::size_t slot, const float* hidden);
  float threshold(std::size_t slot) const;
  std::size_t find_survivors(std::size_t slot, float least, std::size_t begin, std::size_t end,
                             std::int32_t* rows) const;
  std::size_t narrow(std::size_t slot, float least, std::int32_t* rows, std::size_t count) const;
  void compute(std::size_t slot, const std::int32_t* rows, std::size_t count, const float* hidden);
  void fill_candidates(const Share& share, const float* hidden);
  void settle(const Share& share, std::size_t slot, const float* hidden);

  VocabularyMatrix weights_;
  HeadKind kind_;
  float softcap_;
  const KernelTable& kernels_;
  std::size_t max_candidates_;
  ScreenMatrix coded_;
  std::optional<GroupedHead> grouped_;  // of kInt8 and kInt4

  std::size_t rows_ = 0;
  std::vector<bool> is_coded_;
  std::vector<Row> slots_;  // the logit rows that begin with codes
  std::size_t most_top_ = 0;
  Scratch<std::int8_t> hi_{"coded rows"};
  Scratch<std::int8_t> lo_{"coded rows"};
  Scratch<ScreenActivation> x_{"coded rows"};    // [slots]
  Scratch<float> x_scale_{"coded rows"};         // [slots]
  Scratch<std::int32_t> x_sums_{"coded rows"};   // of hi, then of lo: [2, slots]
  Scratch<float*> out_{"coded rows"};            // [slots], their logits
  Scratch<std::int32_t> listed_{"listed rows"};  // [threads, rows of a share]
  Scratch<Ranked> tops_{"highest logits"};  // [threads, slots, most_top], then merged per thread
  Scratch<float> best_{"highest logits"};   // [slots, most_top]
  Scratch<Count> counts_{"candidates"};     // [threads, slots]

  std::atomic<std::uint64_t> full_rows_{0}, screened_rows_{0}, survivors_{0}, candidates_{0},
      fallback_rows_{0};
};

}  // namespace ryz
