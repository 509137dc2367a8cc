#include "kernels/probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "cpu/thread_pool.h"
#include "kernels/ops.h"

namespace ryz {

#ifdef RYZ_HAVE_AVX2
namespace avx2 {
std::size_t multiply_add_probe(const MultiplyAddProbeArgs& a) noexcept;
}
#endif
#ifdef RYZ_HAVE_AVX512
namespace avx512 {
std::size_t multiply_add_probe(const MultiplyAddProbeArgs& a) noexcept;
}
#endif

namespace {

constexpr int kPasses = 9;
// Some milliseconds, so that waking the threads does not count.
constexpr std::size_t kRounds = std::size_t{1} << 21;

using Probe = std::size_t (*)(const MultiplyAddProbeArgs&) noexcept;

Probe probe_of(Isa isa) {
  switch (isa) {
#ifdef RYZ_HAVE_AVX512
    case Isa::kAvx512:
      return avx512::multiply_add_probe;
#endif
#ifdef RYZ_HAVE_AVX2
    case Isa::kAvx2:
      return avx2::multiply_add_probe;
#endif
    default:
      return nullptr;
  }
}

}  // namespace

std::optional<double> multiply_add_rate(Isa isa, int threads) {
  ThreadPool pool(threads);
  const Probe probe = probe_of(isa);
  if (probe == nullptr) return std::nullopt;
  std::atomic<std::int64_t> sink{0};
  std::atomic<std::size_t> products{0};
  auto body = [&](ThreadPool::Context&) {
    std::int32_t out = 0;
    products += probe({kRounds, &out});
    sink += out;
  };
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    products = 0;
    const auto start = std::chrono::steady_clock::now();
    pool.run(body);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(products.load()) / seconds.count());
  }
  return best;
}

}  // namespace ryz
