#include "kernels/kernel_timing.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "base/aligned.h"
#include "base/error.h"
#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "kernels/lookup_format.h"

namespace ryz {
namespace {

// More than the last-level caches of most hosts, so that a pass finds no weights of the one before.
constexpr std::size_t kWeightBytes = std::size_t{96} << 20;
constexpr int kOneTokenPasses = 7;
constexpr int kManyTokensPasses = 3;
// Any byte is a valid operand; this one is so in every format, and as scales a normal number.
constexpr int kWeightByte = 0x12;

// Threads, and weights for as many matrices of a shape as it takes to fill kWeightBytes.
class Bench {
 public:
  Bench(std::size_t rows, std::size_t columns, std::size_t most_bytes, int threads)
      : rows_(rows),
        columns_(columns),
        panels_((rows + kPanelRows - 1) / kPanelRows),
        pool_(threads),
        weights_(std::max(kWeightBytes, most_bytes), "timed weights"),
        out_(kTimedTokens * rows * sizeof(float), "timed results") {
    auto fill = [this](ThreadPool::Context& ctx) {
      const auto [first, last] = ctx.share(weights_.bytes());
      std::memset(weights_.as<char>() + first, kWeightByte, last - first);
    };
    pool_.run(fill);
  }

 protected:
  // Seconds for one product(weights, thread, first panel, last panel), over all matrices that there
  // is room for, or over one. Threads do not meet in between: that costs every kernel the same, and
  // on a busy machine more than what is measured.
  template <typename Product>
  double time(std::size_t matrix_bytes, bool all, const Product& product) {
    const std::size_t matrices = all ? weights_.bytes() / matrix_bytes : 1;
    auto body = [&](ThreadPool::Context& ctx) {
      const auto [first, last] = ctx.share(panels_);
      for (std::size_t i = 0; i < matrices; ++i) {
        product(weights_.as<std::uint8_t>() + i * matrix_bytes,
                static_cast<std::size_t>(ctx.index()), first, last);
      }
    };
    const auto start = std::chrono::steady_clock::now();
    pool_.run(body);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    return seconds.count() / static_cast<double>(matrices);
  }

  std::size_t rows_, columns_, panels_;
  ThreadPool pool_;
  Buffer weights_, out_;
};

class TernaryBench : public Bench {
 public:
  TernaryBench(std::size_t rows, std::size_t columns, int threads)
      : Bench(rows, columns, matrix_bytes(rows, columns, TernaryFormat::kTwoBit), threads),
        q_stride_(round_up(columns, kRowPadding)),
        row_scale_(panels_ * kPanelRows * sizeof(float), "timed row scales"),
        q_(kTimedTokens * q_stride_, "timed activations"),
        act_scale_(kTimedTokens * sizeof(float), "timed scales"),
        act_sum_(kTimedTokens * sizeof(std::int32_t), "timed sums") {}

  double time(const TernaryKernel& kernel, std::size_t tokens) {
    const auto product = [&](const std::uint8_t* weights, std::size_t, std::size_t first,
                             std::size_t last) {
      kernel.linear({weights, row_scale_.as<float>(), rows_, blocks(columns_, kernel.format), first,
                     last, q_.as<std::int8_t>(), q_stride_, act_scale_.as<float>(),
                     act_sum_.as<std::int32_t>(), tokens, out_.as<float>(), rows_, nullptr});
    };
    return Bench::time(matrix_bytes(rows_, columns_, kernel.format), tokens == 1, product);
  }

 private:
  static std::size_t blocks(std::size_t columns, TernaryFormat format) {
    return (columns + block_columns(format) - 1) / block_columns(format);
  }
  static std::size_t matrix_bytes(std::size_t rows, std::size_t columns, TernaryFormat format) {
    return (rows + kPanelRows - 1) / kPanelRows * blocks(columns, format) * kBlockBytes;
  }

  std::size_t q_stride_;
  Buffer row_scale_, q_, act_scale_, act_sum_;
};

class GroupedBench : public Bench {
 public:
  GroupedBench(Isa isa, std::size_t rows, std::size_t columns, std::size_t bits, int threads)
      : Bench(rows, columns, matrix_bytes(rows, columns, format_of(bits)), threads),
        kernels_(kernel_table(isa)),
        format_(format_of(bits)),
        blocks_((columns + kScaleBlock - 1) / kScaleBlock),
        q_(kTimedTokens * blocks_ * kScaleBlock, "timed activations"),
        activations_(kTimedTokens * blocks_ * sizeof(ActivationBlock), "timed blocks"),
        table_stride_(blocks_ * block_table_bytes(bits)),
        tables_(static_cast<std::size_t>(threads) * table_stride_, "timed tables") {}

  double time(const GroupedKernel& kernel, std::size_t tokens) {
    const bool looks_up = tokens == 1 && kernel.reads_tables;
    const auto run = tokens == 1 ? kernel.linear : kernels_.grouped_linear;
    const auto product = [&](const std::uint8_t* weights, std::size_t thread, std::size_t first,
                             std::size_t last) {
      auto* tables = tables_.as<std::uint8_t>() + thread * table_stride_;
      if (looks_up) kernels_.lookup_tables({q_.as<std::int8_t>(), blocks_, format_, tables});
      run({weights, format_, rows_, blocks_, first, last, q_.as<std::int8_t>(),
           activations_.as<ActivationBlock>(), tokens, tokens, out_.as<float>(), rows_, nullptr,
           tables});
    };
    return Bench::time(matrix_bytes(rows_, columns_, format_), tokens == 1, product);
  }

 private:
  static GroupedFormat format_of(std::size_t bits) {
    return {static_cast<std::uint8_t>(bits), kScaleBlock, DType::kF16, false};
  }
  static std::size_t matrix_bytes(std::size_t rows, std::size_t columns, GroupedFormat format) {
    return (rows + kPanelRows - 1) / kPanelRows * ((columns + kScaleBlock - 1) / kScaleBlock) *
           format.record_bytes();
  }

  const KernelTable& kernels_;
  GroupedFormat format_;
  std::size_t blocks_;
  Buffer q_, activations_;
  std::size_t table_stride_;
  Buffer tables_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

template <typename TimedBench, typename Kernel>
std::vector<KernelTiming> take_turns(TimedBench& bench, std::span<const Kernel> kernels) {
  std::vector<std::vector<double>> one(kernels.size());
  std::vector<std::vector<double>> many(kernels.size());
  for (int pass = 0; pass < kOneTokenPasses; ++pass) {
    for (std::size_t i = 0; i < kernels.size(); ++i) {
      one[i].push_back(bench.time(kernels[i], 1));
      if (pass < kManyTokensPasses) many[i].push_back(bench.time(kernels[i], kTimedTokens));
    }
  }
  std::vector<KernelTiming> timings;
  for (std::size_t i = 0; i < kernels.size(); ++i) {
    timings.push_back({kernels[i].name, median(one[i]), median(many[i])});
  }
  return timings;
}

void check_shape(const char* op, std::size_t rows, std::size_t columns) {
  if (rows == 0 || columns == 0 || rows > kMaxInFeatures || columns > kMaxInFeatures) {
    throw ValidationError(std::string("[") + op + "] shape is not that of a matrix");
  }
}

}  // namespace

std::vector<KernelTiming> time_ternary_kernels(Isa isa, std::size_t rows, std::size_t columns,
                                               int threads) {
  check_shape("time_ternary_kernels", rows, columns);
  TernaryBench bench(rows, columns, threads);
  return take_turns(bench, ternary_kernels(isa));
}

std::vector<KernelTiming> time_grouped_kernels(Isa isa, std::size_t rows, std::size_t columns,
                                               std::size_t bits, int threads) {
  check_shape("time_grouped_kernels", rows, columns);
  if (bits == 0 || bits > 8)
    throw ValidationError("[time_grouped_kernels] bits is not within 1..8");
  GroupedBench bench(isa, rows, columns, bits, threads);
  return take_turns(bench, grouped_kernels(isa, bits));
}

}  // namespace ryz
