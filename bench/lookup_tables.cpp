// Lookup tables against the tiers' products for grouped weights of one token (decision 13).
//
// lookup_tables           compares the results, bit by bit; fails where any differs
// lookup_tables THREADS   and prints how fast each is, from caches and from memory
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "base/aligned.h"
#include "cpu/features.h"
#include "cpu/thread_pool.h"
#include "kernels/dispatch.h"
#include "lookup_kernel.h"

namespace {

using namespace ryz;

constexpr std::size_t kMemoryBytes = std::size_t{96} << 20;
constexpr int kPasses = 21;
enum Side { kLookup, kAvx2, kBest, kSides };

// As many copies of a random matrix as asked for, in both layouts, and one token.
class Trial {
 public:
  Trial(GroupedFormat format, std::size_t rows, std::size_t columns, std::size_t least_bytes,
        int threads)
      : format_(format),
        rows_(rows),
        records_(columns / format.record_columns()),
        bytes_(rows / kPanelRows * records_ * format.record_bytes()),
        copies_((least_bytes + bytes_ - 1) / bytes_),
        pool_(threads),
        quads_(copies_ * bytes_, "quads"),
        planes_(copies_ * bytes_, "planes"),
        table_bytes_(columns / kQuadColumns * RYZ_TIER::kTableBytes),
        tables_(static_cast<std::size_t>(threads) * table_bytes_, "tables"),
        q_(columns, "activations"),
        blocks_(columns / kScaleBlock),
        out_{std::vector<float>(rows), std::vector<float>(rows), std::vector<float>(rows)} {
    std::mt19937 random(1);
    for (std::size_t i = 0; i < bytes_; i += format.record_bytes()) fill_record(i, random);
    for (std::size_t i = 1; i < copies_; ++i) {
      std::memcpy(quads_.as<char>() + i * bytes_, quads_.as<char>(), bytes_);
      std::memcpy(planes_.as<char>() + i * bytes_, planes_.as<char>(), bytes_);
    }
    for (std::size_t i = 0; i < columns; ++i) {
      // The codes that tables must hold at their ends are frequent.
      const auto code = static_cast<std::int8_t>(random() % 4 == 0 ? -128 : random());
      q_.as<std::int8_t>()[i] = code;
      blocks_[i / kScaleBlock].minus_sum -= code;
      blocks_[i / kScaleBlock].scale = 0.01f;
    }
  }

  // Seconds for one product.
  double time(Side side) {
    const KernelTable& table = kernel_table(resolve_isa(side == kAvx2 ? "avx2" : ""));
    auto body = [&](ThreadPool::Context& ctx) {
      const auto [first, last] = ctx.share(rows_ / kPanelRows);
      auto* tables =
          tables_.as<std::uint8_t>() + static_cast<std::size_t>(ctx.index()) * table_bytes_;
      for (std::size_t i = 0; i < copies_; ++i) {
        const Buffer& weights = side == kLookup ? planes_ : quads_;
        const GroupedLinearArgs a{weights.as<std::uint8_t>() + i * bytes_,
                                  format_,
                                  rows_,
                                  records_,
                                  first,
                                  last,
                                  q_.as<std::int8_t>(),
                                  blocks_.data(),
                                  1,
                                  1,
                                  out_[side].data(),
                                  rows_,
                                  nullptr};
        if (side != kLookup) {
          table.grouped_linear(a);
        } else {
          format_.bits == 2 ? RYZ_TIER::lookup_linear<2>(a, tables)
                            : RYZ_TIER::lookup_linear<4>(a, tables);
        }
      }
    };
    const auto start = std::chrono::steady_clock::now();
    pool_.run(body);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    return seconds.count() / static_cast<double>(copies_);
  }

  bool same() const {
    const std::size_t size = rows_ * sizeof(float);
    return std::memcmp(out_[kLookup].data(), out_[kAvx2].data(), size) == 0 &&
           std::memcmp(out_[kLookup].data(), out_[kBest].data(), size) == 0;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  void fill_record(std::size_t offset, std::mt19937& random) {
    const GroupedFormat& f = format_;
    auto* quads = quads_.as<std::uint8_t>() + offset;
    auto* planes = planes_.as<std::uint8_t>() + offset;
    for (std::size_t i = 0; i < f.record_bytes(); ++i) {
      quads[i] = static_cast<std::uint8_t>(random());
    }
    for (std::size_t i = 0; i < f.codes_offset(); i += sizeof(std::uint16_t)) {
      const auto scale = static_cast<std::uint16_t>(0x2000 + random() % 0x800);
      std::memcpy(quads + i, &scale, sizeof scale);
      std::memcpy(planes + i, &scale, sizeof scale);
    }
    for (std::size_t row = 0; row < kPanelRows; ++row) {
      for (std::size_t column = 0; column < f.record_columns(); ++column) {
        const int code = quads[f.code_byte(row, column)] >> f.code_shift(column);
        std::uint8_t* block = planes + f.codes_offset() + column / kScaleBlock * f.block_bytes();
        for (std::size_t plane = 0; plane < f.bits; ++plane) {
          const std::size_t quad = column % kScaleBlock / kQuadColumns;
          const int bit = (code >> plane & 1) << RYZ_TIER::plane_shift(column, plane);
          block[RYZ_TIER::plane_byte(f.bits, row, quad, plane)] |= static_cast<std::uint8_t>(bit);
        }
      }
    }
  }

  GroupedFormat format_;
  std::size_t rows_, records_, bytes_, copies_;
  ThreadPool pool_;
  Buffer quads_, planes_;
  std::size_t table_bytes_;
  Buffer tables_, q_;
  std::vector<ActivationBlock> blocks_;
  std::array<std::vector<float>, kSides> out_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Medians of passes in which the sides take turns.
void print_times(Trial& trial, const char* where) {
  std::array<std::vector<double>, kSides> seconds;
  std::array<std::vector<double>, kSides> gains;
  for (int pass = 0; pass < kPasses; ++pass) {
    for (const Side side : {kLookup, kAvx2, kBest}) {
      seconds[side].push_back(trial.time(side));
      gains[side].push_back(seconds[side].back() / seconds[kLookup].back());
    }
  }
  std::printf("  %-7s", where);
  for (const Side side : {kLookup, kAvx2, kBest}) {
    std::printf("  %6.1f GB/s (%.2f)",
                static_cast<double>(trial.bytes()) / median(seconds[side]) / 1e9,
                median(gains[side]));
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 0;
  bool all_same = true;
  for (const std::uint8_t bits : {std::uint8_t{2}, std::uint8_t{4}}) {
    for (const std::size_t columns : {2048u, 8192u}) {
      const GroupedFormat format{bits, 64, DType::kF16, false};
      Trial cached(format, 512, columns, 1, std::max(threads, 1));
      for (const Side side : {kLookup, kAvx2, kBest}) cached.time(side);
      const bool same = cached.same();
      std::printf("%d bits, %zu columns: %s\n", bits, columns, same ? "same bits" : "DIFFERENT");
      all_same = all_same && same;
      if (threads == 0) continue;
      std::printf("           lookup              avx2                best (times the lookup's)\n");
      print_times(cached, "caches");
      Trial streamed(format, 2048, columns, kMemoryBytes, threads);
      print_times(streamed, "memory");
    }
  }
  return all_same ? EXIT_SUCCESS : EXIT_FAILURE;
}
