// Puts an Engine on a thread of its own and makes it safe to talk to from any other.
//
//   submit, cancel ──▶ mailbox ──▶ Engine (step thread) ──▶ outbox + event fd ──▶ take_events
//
// The thread sleeps when nothing is open. The mailbox is read before each step and again between forward and sampling,
// so a cancellation takes effect in the step that is running, and the mask of a constrained sample may arrive while the
// model runs. Events reach the outbox once per step. The event fd is
// readable while the outbox holds events.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"

namespace fmo {

class QueueFullError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The loop was closed or stopped.
class EngineStoppedError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A snapshot taken after each step.
struct EngineStats {
  EngineCounters counters;
  int64_t num_running = 0;
  int64_t num_waiting = 0;          // samples, preempted ones included
  int64_t num_queued_requests = 0;  // requests of which no sample has started
  int64_t num_queued_samples = 0;   // samples that have not started
  int64_t num_used_blocks = 0;
  int64_t num_blocks = 0;
  int64_t num_unused_blocks = 0;  // kept by the prefix cache, ready to be given away
  int64_t num_evictions = 0;      // blocks that the prefix cache gave up for others
  int64_t num_looked_up_tokens = 0;
  int64_t num_cached_tokens = 0;
  int64_t num_preemptions = 0;
  int64_t last_step_ns = 0;
  int64_t busy_ns = 0;   // sum of all step times
  int64_t model_ns = 0;  // of which the model ran
};

class StepLoop {
 public:
  // `max_queue_len`: samples that may wait for their first step; a request of more waits only where no other does.
  StepLoop(const EngineOptions& options, int64_t max_queue_len, Model model);
  ~StepLoop();
  StepLoop(const StepLoop&) = delete;
  StepLoop& operator=(const StepLoop&) = delete;

  // Returns the request's id, from 1 upwards in order of arrival.
  // Throws std::invalid_argument, RequestTooLargeError, QueueFullError or EngineStoppedError; then nothing was queued.
  // `adapter_slot`: of the model, filled until the request has ended; `cache_scope` must be that adapter's own.
  int64_t submit(std::span<const int32_t> prompt, SamplingParams params, const CacheScope& cache_scope = {},
                 int32_t adapter_slot = -1);
  void cancel(int64_t request_id);
  void cancel_sample(int64_t request_id, int32_t sample_idx);
  void fail_sample(int64_t request_id, int32_t sample_idx, std::string error);
  // The mask of the next token of a constrained sample, see `Engine::set_mask`. Throws std::invalid_argument unless it
  // has one bit per token of the vocabulary, in 32-bit words.
  void set_mask(int64_t request_id, int32_t sample_idx, int64_t position, std::vector<uint32_t> mask);

  void start();
  void close();  // takes no more requests; what runs goes on
  void stop();   // close, cancel everything, end the thread; its last events are in the outbox

  // One step on the calling thread, for a loop that was not started. False: there was nothing to do.
  bool step();

  // Replaces `events` by all new ones, waiting up to `timeout_ms` for the first. One caller at a time; one that passes
  // the same vector again lets its memory be used again.
  void take_events(int timeout_ms, std::vector<TokenEvent>& events);
  void wake();  // lets a waiting take_events return, with or without events
  int event_fd() const { return event_fd_; }

  EngineStats stats() const;
  int64_t num_queued_requests() const;  // of `stats`, alone
  int64_t num_queued_samples() const;
  // Seconds since the step thread last showed a sign of life; 0 while it has nothing to do.
  double heartbeat_age_s() const;
  int64_t max_total_len() const { return engine_.max_total_len(); }
  // Only while no thread runs.
  const Engine& engine() const { return engine_; }

 private:
  struct Cancellation {
    int64_t request_id;
    std::optional<int32_t> sample_idx;  // none: all
    std::optional<std::string> error;   // the sample failed
  };
  struct Mask {
    int64_t request_id;
    int32_t sample_idx;
    int64_t position;
    std::vector<uint32_t> bits;
  };

  void run();
  bool wait_for_work();
  void read_mailbox();
  void publish();
  Model timed(Model model);

  Engine engine_;
  const int64_t max_queue_len_;
  const int event_fd_;

  mutable std::mutex mailbox_mutex_;
  std::condition_variable mailbox_changed_;
  struct NewRequest {
    int64_t id;
    RequestTable::node_type request;
  };
  std::vector<NewRequest> new_requests_;
  std::vector<Cancellation> cancellations_;
  std::vector<Mask> masks_;
  int64_t next_request_id_ = 1;
  int64_t num_unstarted_in_engine_ = 0;
  int64_t num_new_samples_ = 0;  // of new_requests_
  int64_t num_unstarted_samples_in_engine_ = 0;
  bool is_closed_ = false;
  bool is_stopping_ = false;
  std::mutex stop_mutex_;  // several threads may stop the loop at once

  mutable std::mutex outbox_mutex_;
  std::vector<TokenEvent> outbox_;
  EngineStats stats_;

  std::atomic<int64_t> heartbeat_ns_{0};    // 0: idle
  std::vector<NewRequest> taken_requests_;  // the step thread's side of the mailbox
  std::vector<Cancellation> taken_cancellations_;
  std::vector<Mask> taken_masks_;
  int64_t last_step_ns_ = 0;
  int64_t busy_ns_ = 0;
  int64_t model_ns_ = 0;
  std::thread thread_;
};

}  // namespace fmo
