// What a running call sees of its step. Calls cannot throw from inside the thread team: they report the first failure
// here.
#pragma once

#include <atomic>
#include <cstdint>

#include "device/cpu/thread_pool.h"
#include "executor/batch.h"

namespace fmo {

// Bad data found while a step runs (an index computed by the plan that is out of range).
struct StepFailure {
  std::atomic<bool> happened{false};
  std::atomic<int64_t> value{0}, limit{0};
  std::atomic<int> call{0};

  void report(int64_t bad_value, int64_t bad_limit, int bad_call) {
    if (happened.exchange(true)) return;
    value.store(bad_value);
    limit.store(bad_limit);
    call.store(bad_call);
  }
};

struct LoraStep;

struct Step {
  const Batch* batch = nullptr;
  const LoraStep* lora = nullptr;  // null: no row has an adapter
  ThreadPool* pool = nullptr;
  int num_threads = 1;
  char* shared_workspace = nullptr;   // one for all threads, of the size that the call asked for
  char* thread_workspaces = nullptr;  // one per thread, `thread_workspace_bytes` apart
  int64_t thread_workspace_bytes = 0;
  StepFailure* failure = nullptr;
  std::atomic<int64_t>* ticket = nullptr;  // of the running call; starts at 0
  int call = 0;                            // the running one

  // The next `count` pieces of work of this call: the first of them. One use per call.
  int64_t take(int64_t count) const { return ticket->fetch_add(count, std::memory_order_relaxed); }

  char* thread_workspace(int thread) const { return thread_workspaces + thread * thread_workspace_bytes; }
  void barrier() const { pool->barrier(); }

  // An index that must be in 0 … limit-1; a wrong one fails the step and is replaced by 0, which is always safe to
  // read.
  int64_t checked_index(int64_t index, int64_t limit) const {
    if (index >= 0 && index < limit) return index;
    failure->report(index, limit, call);
    return 0;
  }
};

}  // namespace fmo
