// Regions and barriers, with as many threads as cores and with several times more.
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "cpu/thread_pool.h"

#ifdef __linux__
#include <sys/resource.h>
#endif

namespace {

using ryz::ThreadPool;

// Every thread runs each region exactly once, and run() returns after the last.
void regions(int threads, int count) {
  ThreadPool pool(threads);
  std::vector<int> seen(static_cast<std::size_t>(threads));
  for (int region = 1; region <= count; ++region) {
    auto body = [&](ThreadPool::Context& context) {
      ++seen[static_cast<std::size_t>(context.index())];
    };
    pool.run(body);
    for (int runs : seen) RYZ_CHECK(runs == region);
  }
}

// Between barriers each thread reads what all others wrote before: a barrier that lets anyone
// through early, or that hides a write, gives a wrong sum.
void barriers(int threads, int rounds) {
  ThreadPool pool(threads);
  const auto n = static_cast<std::size_t>(threads);
  std::vector<std::int64_t> values(n, 1);
  std::vector<std::int64_t> sums(n);
  auto body = [&](ThreadPool::Context& context) {
    const auto me = static_cast<std::size_t>(context.index());
    for (int round = 0; round < rounds; ++round) {
      std::int64_t sum = 0;
      for (std::int64_t value : values) sum += value;
      sums[me] = sum;
      context.barrier();
      values[me] = sums[(me + 1) % n] % 1000003 + static_cast<std::int64_t>(me);
      context.barrier();
    }
  };
  pool.run(body);

  std::vector<std::int64_t> expected(n, 1);
  for (int round = 0; round < rounds; ++round) {
    std::int64_t sum = 0;
    for (std::int64_t value : expected) sum += value;
    for (std::size_t i = 0; i < n; ++i) {
      expected[i] = sum % 1000003 + static_cast<std::int64_t>(i);
    }
  }
  RYZ_CHECK(values == expected);
}

void shares_cover_everything_once() {
  for (int threads = 1; threads <= 8; ++threads) {
    ThreadPool pool(threads);
    for (std::size_t count : {0u, 1u, 5u, 7u, 8u, 1000u}) {
      std::vector<std::atomic<int>> hits(count);
      auto body = [&](ThreadPool::Context& context) {
        const auto [first, last] = context.share(count);
        for (std::size_t i = first; i < last; ++i) hits[i].fetch_add(1);
      };
      pool.run(body);
      for (const auto& hit : hits) RYZ_CHECK(hit.load() == 1);
    }
  }
}

// Workers park after a while without work; the next region must wake them, and a pool that never
// ran anything must end.
void parked_workers() {
  const ThreadPool never_used(4);
  ThreadPool pool(4);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> runs{0};
    auto body = [&](ThreadPool::Context&) { runs.fetch_add(1); };
    pool.run(body);
    RYZ_CHECK(runs.load() == 4);
  }
}

// One region at a time, but not always from the same thread.
void regions_from_other_threads() {
  ThreadPool pool(3);
  int total = 0;
  for (int i = 0; i < 50; ++i) {
    std::thread caller([&] {
      std::atomic<int> runs{0};
      auto body = [&](ThreadPool::Context&) { runs.fetch_add(1); };
      pool.run(body);
      total += runs.load();
    });
    caller.join();
  }
  RYZ_CHECK(total == 150);
}

void bad_counts() {
  for (int threads : {-1, 0, 1025}) {
    const std::string message =
        message_of<ryz::ValidationError>([&] { const ThreadPool pool(threads); });
    RYZ_CHECK(message.find("1..1024, got " + std::to_string(threads)) != std::string::npos);
  }
}

// Threads that the system refuses are an error, not the end of the process.
void threads_the_system_refuses() {
  // A sanitizer's shadow memory alone is beyond any limit on the address space.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  rlimit before;
  RYZ_CHECK(getrlimit(RLIMIT_AS, &before) == 0);
  rlimit little = before;
  little.rlim_cur = rlim_t{256} << 20;  // room for some of the stacks
  RYZ_CHECK(setrlimit(RLIMIT_AS, &little) == 0);
  const std::string message = message_of<ryz::ValidationError>([] { const ThreadPool pool(1000); });
  RYZ_CHECK(setrlimit(RLIMIT_AS, &before) == 0);
  RYZ_CHECK(message.find("[thread_pool] cannot start 1000 threads") == 0);
  regions(2, 1);
#endif
}

}  // namespace

int main() {
  return run_tests([] {
    bad_counts();
    threads_the_system_refuses();
    for (int threads = 1; threads <= 8; ++threads) {
      regions(threads, 100);
      barriers(threads, 50);
    }
    regions(2, 5000);
    barriers(2, 2500);
    regions(16, 50);  // far more threads than cores
    barriers(16, 50);
    shares_cover_everything_once();
    parked_workers();
    regions_from_other_threads();
  });
}
