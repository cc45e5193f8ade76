#include "kernels/limits/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "base/memory.h"
#include "base/split.h"

namespace fmo {
namespace {

constexpr int64_t kReadBytes = int64_t{256} << 20;
constexpr int64_t kFmaRounds = 1000000;  // about 2 ms: waking the threads must not count
constexpr int kRepeats = 10;

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <class F>
double best_seconds(F&& f) {
  double best = 1e30;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const double start = now_s();
    f();
    best = std::min(best, now_s() - start);
  }
  return best;
}

double best_read_gb_s(ThreadPool& pool, const LimitLoops& loops) {
  const PageBuffer memory(kReadBytes, "the measurement of the read bandwidth");
  const auto share_of = [&](int thread) { return split(kReadBytes / 4096, thread, pool.num_threads()); };
  pool.run([&](int thread) {
    std::memset(memory.data() + share_of(thread).begin * 4096, thread + 1,
                static_cast<size_t>(share_of(thread).size() * 4096));
  });
  std::atomic<uint64_t> sink{0};
  double best = 0.0;
  for (int num_streams : {1, 4}) {
    const double seconds = best_seconds([&] {
      pool.run([&](int thread) {
        const Range pages = share_of(thread);
        sink += loops.read_streams(memory.data() + pages.begin * 4096, pages.size() * 4096, num_streams);
      });
    });
    best = std::max(best, static_cast<double>(kReadBytes) / seconds * 1e-9);
  }
  return best;
}

}  // namespace

MachineLimits measure_limits(ThreadPool& pool, Isa isa) {
  const LimitLoops loops = isa == Isa::avx2 ? limit_loops_avx2() : limit_loops_scalar();
  MachineLimits limits;
  std::atomic<double> sink{0.0};
  double flop_per_thread = 0.0;
  const double seconds = best_seconds([&] {
    pool.run([&](int thread) {
      double flop = 0.0;
      sink.store(loops.fma(kFmaRounds, &flop), std::memory_order_relaxed);
      if (thread == 0) flop_per_thread = flop;
    });
  });
  limits.fma_gflop_s = flop_per_thread * pool.num_threads() / seconds * 1e-9;
  limits.read_bandwidth_gb_s = best_read_gb_s(pool, loops);
  return limits;
}

}  // namespace fmo
