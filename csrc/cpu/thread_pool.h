// A persistent pool that runs one region at a time; inside a region threads meet at barriers.
//
// Workers spin for a short while between regions, so that the next decode step starts within a
// microsecond, then park on a futex, so that an idle process uses no CPU.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

namespace ryz {

class ThreadPool {
 public:
  // What a thread sees inside a region.
  class Context {
   public:
    Context(ThreadPool& pool, int index, int threads)
        : pool_(pool), index_(index), threads_(threads) {}
    int index() const { return index_; }
    int threads() const { return threads_; }
    void barrier() {
      if (threads_ > 1) pool_.barrier();
    }
    // This thread's contiguous share of [0, count).
    std::pair<std::size_t, std::size_t> share(std::size_t count) const {
      const auto i = static_cast<std::size_t>(index_);
      const auto n = static_cast<std::size_t>(threads());
      return {count * i / n, count * (i + 1) / n};
    }

   private:
    ThreadPool& pool_;
    int index_;
    int threads_;
  };

  // Throws ValidationError unless 1 <= threads <= 1024 and the system grants them.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls body(Context&) on every thread, the caller included, and returns when all are done.
  // The body must not throw. Throws ValidationError in a forked child, whose workers are gone.
  // Work too small to share runs on the caller alone: waking workers and meeting at barriers costs
  // microseconds on an idle machine and scheduler ticks on a busy one.
  template <typename Body>
  void run(Body& body, bool is_small = false) {
    check_process();
    if (is_small || threads_ == 1) {
      Context context(*this, 0, 1);
      body(context);
      return;
    }
    run_region([](void* raw, Context& context) { (*static_cast<Body*>(raw))(context); }, &body);
  }

 private:
  using Region = void (*)(void*, Context&);

  void check_process() const;
  void run_region(Region region, void* argument);
  void barrier();
  void work(int index);
  void stop();

  const int threads_;
  const std::int64_t process_id_;
  std::vector<std::thread> workers_;
  Region region_ = nullptr;
  void* argument_ = nullptr;
  bool stopping_ = false;
  alignas(64) std::atomic<std::uint32_t> epoch_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> phase_{0};
};

}  // namespace ryz
