#include "kernels/ternary_timing.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "base/aligned.h"
#include "base/error.h"
#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"

namespace ryz {
namespace {

// More than the last-level caches of most hosts, so that a pass finds no weights of the one before.
constexpr std::size_t kWeightBytes = std::size_t{96} << 20;
constexpr int kOneTokenPasses = 7;
constexpr int kManyTokensPasses = 3;
// Any byte is a valid operand; this one is so in both formats.
constexpr int kWeightByte = 0x12;

// A matrix of the shape, as often as it takes to fill kWeightBytes, and operands to match.
class Bench {
 public:
  Bench(std::size_t rows, std::size_t columns, int threads)
      : rows_(rows),
        columns_(columns),
        panels_((rows + kPanelRows - 1) / kPanelRows),
        q_stride_((columns + kRowPadding - 1) / kRowPadding * kRowPadding),
        pool_(threads),
        weights_(std::max(kWeightBytes, matrix_bytes(TernaryFormat::kTwoBit)), "timed weights"),
        row_scale_(panels_ * kPanelRows * sizeof(float), "timed row scales"),
        q_(kTimedTokens * q_stride_, "timed activations"),
        act_scale_(kTimedTokens * sizeof(float), "timed scales"),
        act_sum_(kTimedTokens * sizeof(std::int32_t), "timed sums"),
        out_(kTimedTokens * rows * sizeof(float), "timed results") {
    auto fill = [this](ThreadPool::Context& ctx) {
      const auto [first, last] = ctx.share(weights_.bytes());
      std::memset(weights_.as<char>() + first, kWeightByte, last - first);
    };
    pool_.run(fill);
  }

  // Seconds for one product, over `matrices` distinct ones. Threads do not meet in between: that
  // costs every kernel the same, and on a busy machine more than what is measured.
  double time(const TernaryKernel& kernel, std::size_t tokens, std::size_t matrices) {
    const std::size_t bytes = matrix_bytes(kernel.format);
    auto body = [&](ThreadPool::Context& ctx) {
      const auto [first, last] = ctx.share(panels_);
      for (std::size_t i = 0; i < matrices; ++i) {
        kernel.linear({weights_.as<std::uint8_t>() + i * bytes, row_scale_.as<float>(), rows_,
                       blocks(kernel.format), first, last, q_.as<std::int8_t>(), q_stride_,
                       act_scale_.as<float>(), act_sum_.as<std::int32_t>(), tokens,
                       out_.as<float>(), rows_, nullptr});
      }
    };
    const auto start = std::chrono::steady_clock::now();
    pool_.run(body);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    return seconds.count() / static_cast<double>(matrices);
  }

  std::size_t matrices(TernaryFormat format) const {
    return weights_.bytes() / matrix_bytes(format);
  }

 private:
  std::size_t blocks(TernaryFormat format) const {
    return (columns_ + block_columns(format) - 1) / block_columns(format);
  }
  std::size_t matrix_bytes(TernaryFormat format) const {
    return panels_ * blocks(format) * kBlockBytes;
  }

  std::size_t rows_, columns_, panels_, q_stride_;
  ThreadPool pool_;
  Buffer weights_, row_scale_, q_, act_scale_, act_sum_, out_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

std::vector<TernaryTiming> time_ternary_kernels(Isa isa, std::size_t rows, std::size_t columns,
                                                int threads) {
  if (rows == 0 || columns == 0 || rows > kMaxInFeatures || columns > kMaxInFeatures) {
    throw ValidationError("[time_ternary_kernels] shape is not that of a ternary matrix");
  }
  Bench bench(rows, columns, threads);
  const auto kernels = ternary_kernels(isa);
  std::vector<std::vector<double>> one(kernels.size());
  std::vector<std::vector<double>> many(kernels.size());
  for (int pass = 0; pass < kOneTokenPasses; ++pass) {
    for (std::size_t i = 0; i < kernels.size(); ++i) {
      one[i].push_back(bench.time(kernels[i], 1, bench.matrices(kernels[i].format)));
      if (pass < kManyTokensPasses) many[i].push_back(bench.time(kernels[i], kTimedTokens, 1));
    }
  }
  std::vector<TernaryTiming> timings;
  for (std::size_t i = 0; i < kernels.size(); ++i) {
    timings.push_back({median(one[i]), median(many[i])});
  }
  return timings;
}

}  // namespace ryz
