#include "device/cpu/thread_pool.h"

#include <sched.h>
#include <time.h>

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
constexpr uint32_t kTeamBits = 11;
constexpr uint32_t kTeamMask = (1u << kTeamBits) - 1;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

int64_t clock_ns(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
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

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(std::clamp(num_threads, 1, static_cast<int>(kTeamMask))),
      team_(num_threads_),
      lost_(static_cast<size_t>(num_threads_)) {
  workers_.reserve(static_cast<size_t>(num_threads_ - 1));
  for (int thread = 1; thread < num_threads_; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  run_.fetch_add(1u << kTeamBits, std::memory_order_release);
  run_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_erased(Function function, void* context, int team) {
  if (num_threads_ == 1) return function(context, 0);
  team_ = team;
  function_ = function;
  context_ = context;
  if (team == 1) return run_timed(0);
  const uint32_t number = (run_.load(std::memory_order_relaxed) >> kTeamBits) + 1;
  run_.store(number << kTeamBits | static_cast<uint32_t>(team), std::memory_order_release);
  run_.notify_all();
  run_timed(0);
  barrier();
}

// On a core of its own a thread uses as much of the core as time passes: it never sleeps in a run.
void ThreadPool::run_timed(int thread) {
  const int64_t start_ns = clock_ns(CLOCK_MONOTONIC), start_cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
  function_(context_, thread);
  const int64_t used_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - start_cpu_ns;
  lost_[static_cast<size_t>(thread)].ns = clock_ns(CLOCK_MONOTONIC) - start_ns - used_ns;
}

int64_t ThreadPool::lost_ns() const {
  int64_t most_ns = 0;
  for (int thread = 0; thread < team_; ++thread) most_ns = std::max(most_ns, lost_[static_cast<size_t>(thread)].ns);
  return most_ns;
}

void ThreadPool::wait_for_all() {
  const int team = team_;  // before arriving: the next run may have another one
  const uint32_t before = barrier_count_.load(std::memory_order_acquire);
  if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) == team - 1) {
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
  bool is_spare = false;  // not in the team of the last run: sleeps at once
  for (;;) {
    int waits = is_spare ? kIdleSpins + kIdleYields : 0;
    uint32_t run;
    while ((run = run_.load(std::memory_order_acquire)) == seen) {
      if (waits < kIdleSpins) {
        pause();
      } else if (waits < kIdleSpins + kIdleYields) {
        sched_yield();
      } else {
        run_.wait(seen, std::memory_order_acquire);
      }
      ++waits;
    }
    seen = run;
    if (stopping_.load(std::memory_order_relaxed)) return;
    is_spare = thread >= static_cast<int>(run & kTeamMask);
    if (is_spare) continue;
    run_timed(thread);
    wait_for_all();
  }
}

}  // namespace fmo
