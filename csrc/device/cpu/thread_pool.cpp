#include "device/cpu/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fmo {
namespace {

constexpr int kBarrierSpins = 200;  // microseconds: longer than most imbalances; more starves who shares the core
constexpr int kIdleSpins = 8000;    // about 0.2 ms: the gap between two steps of a busy engine
constexpr int kIdleYields = 50;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// The quota of cgroup v2 in whole CPUs, or 0 where there is none.
int cgroup_cpu_quota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota_us;
  long period_us = 0;
  if (!(file >> quota_us >> period_us) || quota_us == "max" || period_us <= 0) return 0;
  try {
    return static_cast<int>(std::max(1L, std::stol(quota_us) / period_us));
  } catch (const std::exception&) {
    return 0;
  }
}

}  // namespace

int usable_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int count = static_cast<int>(std::thread::hardware_concurrency());
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
  const int quota = cgroup_cpu_quota();
  if (quota > 0) count = std::min(count, quota);
  return std::max(count, 1);
}

ThreadPool::ThreadPool(int num_threads) : num_threads_(std::max(num_threads, 1)) {
  workers_.reserve(static_cast<size_t>(num_threads_ - 1));
  for (int thread = 1; thread < num_threads_; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  run_count_.fetch_add(1, std::memory_order_release);
  run_count_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_erased(Function function, void* context) {
  if (num_threads_ == 1) return function(context, 0);
  function_ = function;
  context_ = context;
  run_count_.fetch_add(1, std::memory_order_release);
  run_count_.notify_all();
  function(context, 0);
  wait_for_all();
}

void ThreadPool::wait_for_all() {
  const uint32_t before = barrier_count_.load(std::memory_order_acquire);
  if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
    num_arrived_.store(0, std::memory_order_relaxed);
    barrier_count_.store(before + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; barrier_count_.load(std::memory_order_acquire) == before; ++spins) {
    if (spins < kBarrierSpins) {
      pause();
    } else {
      sched_yield();
    }
  }
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    int waits = 0;
    while (run_count_.load(std::memory_order_acquire) == seen) {
      if (waits < kIdleSpins) {
        pause();
      } else if (waits < kIdleSpins + kIdleYields) {
        sched_yield();
      } else {
        run_count_.wait(seen, std::memory_order_acquire);
      }
      ++waits;
    }
    ++seen;
    if (stopping_.load(std::memory_order_relaxed)) return;
    function_(context_, thread);
    wait_for_all();
  }
}

}  // namespace fmo
