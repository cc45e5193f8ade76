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
constexpr int64_t kByteRounds = 100000;
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

// Operations per second of all threads together, in 10^9. `loop` runs `num_rounds` and says how many operations it did.
template <class Loop>
double best_gop_s(ThreadPool& pool, int64_t num_rounds, Loop loop) {
  std::atomic<double> sink{0.0};
  double ops_per_thread = 0.0;
  const double seconds = best_seconds([&] {
    pool.run([&](int thread) {
      double ops = 0.0;
      sink.store(static_cast<double>(loop(num_rounds, &ops)), std::memory_order_relaxed);
      if (thread == 0) ops_per_thread = ops;
    });
  });
  return ops_per_thread * pool.num_threads() / seconds * 1e-9;
}

}  // namespace

MachineLimits measure_limits(ThreadPool& pool, Isa isa) {
  const LimitLoops loops = isa == Isa::avx2 ? limit_loops_avx2() : limit_loops_scalar();
  MachineLimits limits;
  limits.fma_gflop_s = best_gop_s(pool, kFmaRounds, loops.fma);
  limits.byte_gop_s = best_gop_s(pool, kByteRounds, loops.bytes);
  limits.read_bandwidth_gb_s = best_read_gb_s(pool, loops);
  return limits;
}

}  // namespace fmo
