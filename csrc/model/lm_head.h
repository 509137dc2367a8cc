// From final hidden rows to logits: every row of the head, or a certified-exact subset of them.
//
// A caller who will only look at the best tokens of a row says so (Screening). The head then bounds
// all logits from its int8 screen, which is half the bytes of bf16, finds the rows that can be
// among those the caller looks at, and computes these with the exact kernel: the same bits as in
// the full head. All others read as -infinity. Where too many rows qualify, the full head runs.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "model/weights.h"
#include "model/workspace.h"
#include "quant/screen.h"

namespace ryz {

// What a caller will look at in a row of logits: the `top` highest, and every one within `margin`
// below the lowest of these. top = 0: all.
struct Screening {
  std::int32_t top;
  float margin;
};

class LmHead {
 public:
  struct Counters {
    std::uint64_t full_rows;      // rows computed whole because the caller asked
    std::uint64_t screened_rows;  // rows answered by candidates
    std::uint64_t candidates;     // exact logits computed for them
    std::uint64_t fallback_rows;  // rows computed whole because candidates were too many
  };

  LmHead(DenseMatrix weights, const KernelTable& kernels);

  // Builds the screen. Throws OutOfMemoryError.
  void build_screen(ThreadPool& pool);
  // Takes the arrays of a screen built before. Throws ValidationError.
  void adopt_screen(std::map<std::string, Buffer> stored);
  NamedBuffers screen_buffers() { return screen_.buffers(); }
  bool has_screen() const { return screen_.rows() != 0; }
  Counters counters() const;
  std::size_t screen_bytes() const { return screen_.bytes(); }
  std::size_t bytes() const { return weights_.rows * weights_.columns * size_of(weights_.dtype); }

  // Before a region: takes each row's screening (empty: all full) and sizes the workspace.
  void prepare(std::size_t rows, std::span<const Screening> screening, int threads);
  // Inside a region, hidden [rows, K] being complete: fills logits [rows, V].
  void run(ThreadPool::Context& ctx, const float* hidden, float* logits);

 private:
  struct Row {
    std::size_t index;  // of the logit row
    Screening screening;
  };

  void quantize(ThreadPool::Context& ctx, const float* hidden);
  void full_rows(const float* hidden, float* logits, std::size_t begin, std::size_t end);
  void dense(const float* hidden, float* logits, std::size_t row, std::size_t rows,
             std::size_t begin, std::size_t end);
  void collect_top(std::size_t thread, std::size_t slot, std::size_t begin, std::size_t end);
  float threshold(std::size_t slot, std::size_t threads, std::size_t thread);
  std::size_t fill_candidates(std::size_t slot, float least, const float* hidden, float* logits,
                              std::size_t begin, std::size_t end);

  DenseMatrix weights_;
  const KernelTable& kernels_;
  ScreenMatrix screen_;

  std::size_t rows_ = 0;
  std::vector<bool> is_screened_;
  std::vector<Row> screened_;
  std::size_t most_top_ = 0;
  Scratch<std::uint8_t> hi_{"screened rows"};
  Scratch<std::uint8_t> lo_{"screened rows"};
  Scratch<float> x_values_{"screened rows"};  // scale, norm, error: [3, screened]
  Scratch<float> lower_{"logit bounds"};      // [screened, padded V]
  Scratch<float> upper_{"logit bounds"};
  Scratch<float> tops_{
      "highest lower bounds"};  // [threads, screened, most_top], then merged per thread
  Scratch<std::int32_t> counts_{"candidates"};  // [threads, screened]

  std::atomic<std::uint64_t> full_rows_{0}, screened_rows_{0}, candidates_{0}, fallback_rows_{0};
};

}  // namespace ryz
