#include "cpu/thread_pool.h"

#include <string>
#include <system_error>

#include "base/error.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#ifdef _WIN32
#include <process.h>
#else
#include <unistd.h>
#endif

namespace ryz {
namespace {

// About 50 us: longer than the Python between two steps of a busy engine, too short to matter
// to anyone else on the machine.
constexpr int kSpins = 4000;

inline void cpu_pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#endif
}

std::int64_t current_process() {
#ifdef _WIN32
  return _getpid();
#else
  return getpid();
#endif
}

// Waits until `value` differs from `old`.
void await_change(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    cpu_pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) : threads_(threads), process_id_(current_process()) {
  if (threads < 1 || threads > 1024) {
    throw ValidationError("[thread_pool] threads must be in 1..1024, got " +
                          std::to_string(threads));
  }
  workers_.reserve(static_cast<std::size_t>(threads - 1));
  try {
    for (int index = 1; index < threads; ++index) {
      workers_.emplace_back([this, index] { work(index); });
    }
  } catch (const std::system_error& error) {
    stop();
    throw ValidationError("[thread_pool] cannot start " + std::to_string(threads) +
                          " threads: " + error.what() + "; use fewer");
  }
}

ThreadPool::~ThreadPool() {
  if (current_process() != process_id_) {
    // Forked child: the workers exist in the parent only and cannot be joined.
    for (std::thread& worker : workers_) worker.detach();
    return;
  }
  stop();
}

void ThreadPool::stop() {
  stopping_ = true;
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::check_process() const {
  if (current_process() == process_id_) return;
  throw ValidationError(
      "[thread_pool] this model was loaded before fork(); load it in the child process instead");
}

void ThreadPool::run_region(Region region, void* argument) {
  region_ = region;
  argument_ = argument;
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  Context context(*this, 0, threads_);
  region(argument, context);
  barrier();
}

void ThreadPool::work(int index) {
  std::uint32_t seen = 0;
  for (;;) {
    await_change(epoch_, seen);
    ++seen;
    if (stopping_) return;
    Context context(*this, index, threads_);
    region_(argument_, context);
    barrier();
  }
}

void ThreadPool::barrier() {
  const std::uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.fetch_add(1, std::memory_order_release);
    phase_.notify_all();
  } else {
    await_change(phase_, phase);
  }
}

}  // namespace ryz
