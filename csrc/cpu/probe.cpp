#include "cpu/probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>

#include "base/aligned.h"
#include "base/error.h"
#include "cpu/thread_pool.h"

namespace ryz {
namespace {

constexpr int kPasses = 7;
// Far enough ahead that the line is there when it is its turn, as in the kernels.
constexpr std::size_t kPrefetchBytes = 4096;

// The sum keeps the compiler from leaving the reads out; baseline vector loads are wide enough to
// wait for memory and not for themselves.
[[gnu::noinline]] std::uint64_t sum_lines(const std::uint64_t* words, std::size_t lines) {
  constexpr std::size_t kWords = kCacheLine / sizeof(std::uint64_t);
  std::uint64_t sums[kWords] = {};
  for (std::size_t line = 0; line < lines; ++line) {
    const std::uint64_t* p = words + line * kWords;
    __builtin_prefetch(reinterpret_cast<const char*>(p) + kPrefetchBytes);
    for (std::size_t i = 0; i < kWords; ++i) sums[i] += p[i];
  }
  std::uint64_t total = 0;
  for (const std::uint64_t sum : sums) total += sum;
  return total;
}

}  // namespace

double read_bandwidth(int threads, std::size_t bytes) {
  ThreadPool pool(threads);
  const std::size_t lines = bytes / kCacheLine;
  if (lines < static_cast<std::size_t>(threads)) {
    throw ValidationError("[probe] a buffer of " + std::to_string(bytes) + " bytes is too small");
  }
  const Buffer buffer(lines * kCacheLine, "the bandwidth probe");
  auto fill = [&](ThreadPool::Context& ctx) {
    const auto [first, last] = ctx.share(lines);
    std::memset(buffer.as<char>() + first * kCacheLine, 1, (last - first) * kCacheLine);
  };
  pool.run(fill);

  std::atomic<std::uint64_t> sink{0};
  auto read = [&](ThreadPool::Context& ctx) {
    const auto [first, last] = ctx.share(lines);
    const char* begin = buffer.as<char>() + first * kCacheLine;
    sink += sum_lines(reinterpret_cast<const std::uint64_t*>(begin), last - first);
  };
  double best = std::numeric_limits<double>::infinity();
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    pool.run(read);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
  }
  return static_cast<double>(lines * kCacheLine) / best;
}

}  // namespace ryz
