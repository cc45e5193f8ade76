// A fixed team of threads that runs one body at a time, every thread with its own number (single program, many data).
//
//   pool.run([&](int thread) { …; pool.barrier(); …; });      // thread 0 is the caller
//   pool.run(body, team);                                     // threads 0 … team-1 only; the others sleep
//
// Work is split by the body from (thread, size of the team). Workers wait for the next body by spinning for a short
// time, then yielding, then sleeping; at a barrier they spin, then yield. No allocation per run, no nesting. The body
// must not throw.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace fmo {

// How many threads this process may use: its CPU affinity, and its cgroup's CPU quota.
int usable_threads();

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  template <class Body>
  void run(Body&& body) {
    run(body, num_threads_);
  }

  template <class Body>
  void run(Body&& body, int team) {
    using Plain = std::remove_reference_t<Body>;
    run_erased([](void* context, int thread) { (*static_cast<Plain*>(context))(thread); },
               const_cast<void*>(static_cast<const void*>(&body)), team);
  }

  // Only inside a body, by every thread of the team.
  void barrier() {
    if (team_ > 1) wait_for_all();
  }

  // Of the last run: nanoseconds that the thread which was off its core longest was off it. 0 for a pool of one thread.
  int64_t lost_ns() const;

 private:
  using Function = void (*)(void*, int);
  void run_erased(Function function, void* context, int team);
  void run_timed(int thread);
  void wait_for_all();
  void work(int thread);

  const int num_threads_;
  Function function_ = nullptr;
  void* context_ = nullptr;
  std::atomic<bool> stopping_{false};
  int team_;
  struct alignas(64) Lost {
    int64_t ns = 0;
  };
  std::vector<Lost> lost_;                    // by thread, of the last run it took part in
  alignas(64) std::atomic<uint32_t> run_{0};  // its number and, in the low bits, the size of its team
  alignas(64) std::atomic<int> num_arrived_{0};
  alignas(64) std::atomic<uint32_t> barrier_count_{0};
  std::vector<std::thread> workers_;
};

}  // namespace fmo
