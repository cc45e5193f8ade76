#include "engine/step_loop.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <iterator>
#include <system_error>
#include <utility>

namespace fmo {
namespace {

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

int make_event_fd() {
  const int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "cannot make an event file descriptor");
  return fd;
}

}  // namespace

StepLoop::StepLoop(const EngineOptions& options, int64_t max_queue_len, Model model)
    : engine_(options, timed(std::move(model))), max_queue_len_(max_queue_len), event_fd_(make_event_fd()) {
  if (max_queue_len < 1) {
    ::close(event_fd_);
    throw std::invalid_argument("max_queue_len is " + std::to_string(max_queue_len) + ", expected at least 1");
  }
  stats_.num_blocks = engine_.scheduler().cache().num_blocks();
}

StepLoop::~StepLoop() {
  stop();
  ::close(event_fd_);
}

int64_t StepLoop::submit(std::span<const int32_t> prompt, SamplingParams params, const CacheScope& cache_scope,
                         int32_t adapter_slot) {
  // The checks and the copies are done before the lock is taken.
  const int64_t num_samples = params.num_samples();
  auto request = engine_.make_checked_request(prompt, std::move(params), cache_scope, adapter_slot);
  const std::lock_guard lock(mailbox_mutex_);
  if (is_closed_) throw EngineStoppedError("the engine is shutting down and takes no more requests");
  const int64_t num_queued = num_unstarted_samples_in_engine_ + num_new_samples_;
  if (num_queued > 0 && num_queued + num_samples > max_queue_len_) {
    throw QueueFullError("the queue holds " + std::to_string(max_queue_len_) + " answers: " +
                         std::to_string(num_queued) + " are waiting, and " + std::to_string(num_samples) +
                         (num_samples == 1 ? " more is asked for" : " more are asked for"));
  }
  new_requests_.push_back({next_request_id_, std::move(request)});
  num_new_samples_ += num_samples;
  mailbox_changed_.notify_one();
  return next_request_id_++;
}

void StepLoop::cancel(int64_t request_id) {
  const std::lock_guard lock(mailbox_mutex_);
  cancellations_.push_back({request_id, std::nullopt, std::nullopt});
  mailbox_changed_.notify_one();
}

void StepLoop::cancel_sample(int64_t request_id, int32_t sample_idx) {
  const std::lock_guard lock(mailbox_mutex_);
  cancellations_.push_back({request_id, sample_idx, std::nullopt});
  mailbox_changed_.notify_one();
}

void StepLoop::fail_sample(int64_t request_id, int32_t sample_idx, std::string error) {
  const std::lock_guard lock(mailbox_mutex_);
  cancellations_.push_back({request_id, sample_idx, std::move(error)});
  mailbox_changed_.notify_one();
}

void StepLoop::set_mask(int64_t request_id, int32_t sample_idx, int64_t position, std::vector<uint32_t> mask) {
  if (static_cast<int64_t>(mask.size()) != engine_.num_mask_words()) {
    throw std::invalid_argument("the mask has " + std::to_string(mask.size()) + " words, expected " +
                                std::to_string(engine_.num_mask_words()));
  }
  const std::lock_guard lock(mailbox_mutex_);
  masks_.push_back({request_id, sample_idx, position, std::move(mask)});
  mailbox_changed_.notify_one();
}

void StepLoop::start() {
  const std::lock_guard lock(mailbox_mutex_);
  if (is_closed_) throw EngineStoppedError("the engine was stopped and cannot be started again");
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
}

void StepLoop::close() {
  const std::lock_guard lock(mailbox_mutex_);
  is_closed_ = true;
}

void StepLoop::stop() {
  const std::lock_guard stop_lock(stop_mutex_);
  {
    const std::lock_guard lock(mailbox_mutex_);
    is_closed_ = is_stopping_ = true;
    mailbox_changed_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
  read_mailbox();
  engine_.cancel_all();
  publish();
}

bool StepLoop::step() {
  read_mailbox();
  const int64_t start_ns = now_ns();
  const bool has_stepped = engine_.begin_step();
  if (has_stepped) {
    read_mailbox();
    engine_.finish_step();
    last_step_ns_ = now_ns() - start_ns;
    busy_ns_ += last_step_ns_;
  }
  publish();
  return has_stepped;
}

void StepLoop::take_events(int timeout_ms, std::vector<TokenEvent>& events) {
  events.clear();
  pollfd poll_fd{event_fd_, POLLIN, 0};
  while (poll(&poll_fd, 1, timeout_ms) < 0 && errno == EINTR) {
  }
  const std::lock_guard lock(outbox_mutex_);
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t num_read = read(event_fd_, &count, sizeof(count));  // empty: nothing to clear
  events.swap(outbox_);
}

EngineStats StepLoop::stats() const {
  EngineStats stats;
  {
    const std::lock_guard lock(outbox_mutex_);
    stats = stats_;
  }
  const std::lock_guard lock(mailbox_mutex_);
  stats.num_queued_requests = num_unstarted_in_engine_ + static_cast<int64_t>(new_requests_.size());
  stats.num_queued_samples = num_unstarted_samples_in_engine_ + num_new_samples_;
  return stats;
}

int64_t StepLoop::num_queued_requests() const {
  const std::lock_guard lock(mailbox_mutex_);
  return num_unstarted_in_engine_ + static_cast<int64_t>(new_requests_.size());
}

int64_t StepLoop::num_queued_samples() const {
  const std::lock_guard lock(mailbox_mutex_);
  return num_unstarted_samples_in_engine_ + num_new_samples_;
}

double StepLoop::heartbeat_age_s() const {
  const int64_t beat_ns = heartbeat_ns_.load(std::memory_order_relaxed);
  return beat_ns == 0 ? 0.0 : static_cast<double>(now_ns() - beat_ns) * 1e-9;
}

void StepLoop::run() {
  while (wait_for_work()) {
    heartbeat_ns_.store(now_ns(), std::memory_order_relaxed);
    try {
      step();
    } catch (const std::exception& error) {
      // A bug of the engine: end what is open, keep serving what comes.
      engine_.fail_all(std::string("internal error of the engine: ") + error.what());
      publish();
    }
  }
  heartbeat_ns_.store(0, std::memory_order_relaxed);
}

// False: the loop shall end.
bool StepLoop::wait_for_work() {
  std::unique_lock lock(mailbox_mutex_);
  auto is_needed = [this] {
    return is_stopping_ || (engine_.has_work() && !engine_.is_stalled()) || !new_requests_.empty() ||
           !cancellations_.empty() || !masks_.empty();
  };
  if (!is_needed()) {
    heartbeat_ns_.store(0, std::memory_order_relaxed);
    mailbox_changed_.wait(lock, is_needed);
  }
  return !is_stopping_;
}

void StepLoop::read_mailbox() {
  {
    const std::lock_guard lock(mailbox_mutex_);
    taken_requests_.swap(new_requests_);
    taken_cancellations_.swap(cancellations_);
    taken_masks_.swap(masks_);
    num_unstarted_in_engine_ += static_cast<int64_t>(taken_requests_.size());
    num_unstarted_samples_in_engine_ += std::exchange(num_new_samples_, 0);
  }
  for (auto& [id, request] : taken_requests_) engine_.add(id, std::move(request));
  for (Mask& mask : taken_masks_) {
    engine_.set_mask(mask.request_id, mask.sample_idx, mask.position, std::move(mask.bits));
  }
  for (const Cancellation& cancellation : taken_cancellations_) {
    if (cancellation.error) {
      engine_.fail_sample(cancellation.request_id, cancellation.sample_idx.value_or(0), *cancellation.error);
    } else if (cancellation.sample_idx) {
      engine_.cancel_sample(cancellation.request_id, *cancellation.sample_idx);
    } else {
      engine_.cancel(cancellation.request_id);
    }
  }
  taken_requests_.clear();
  taken_cancellations_.clear();
  taken_masks_.clear();
}

// Counts the time of its steps; the engine itself reads no clock.
Model StepLoop::timed(Model model) {
  model.forward = [this, forward = std::move(model.forward)](const Batch& batch) {
    const int64_t start_ns = now_ns();
    const LogitsView logits = forward(batch);
    model_ns_ += now_ns() - start_ns;
    return logits;
  };
  return model;
}

void StepLoop::publish() {
  {
    const std::lock_guard lock(mailbox_mutex_);
    num_unstarted_in_engine_ = engine_.scheduler().num_unstarted_requests();
    num_unstarted_samples_in_engine_ = engine_.scheduler().num_unstarted_samples();
  }
  const Scheduler& scheduler = engine_.scheduler();
  const std::lock_guard lock(outbox_mutex_);
  stats_.counters = engine_.counters();
  stats_.num_running = scheduler.num_running();
  stats_.num_waiting = scheduler.num_waiting();
  stats_.num_used_blocks = scheduler.cache().num_used();
  stats_.num_unused_blocks = scheduler.cache().num_unused();
  stats_.num_evictions = scheduler.cache().num_evictions();
  stats_.num_looked_up_tokens = scheduler.num_looked_up_tokens();
  stats_.num_cached_tokens = scheduler.num_cached_tokens();
  stats_.num_preemptions = scheduler.num_preemptions();
  stats_.last_step_ns = last_step_ns_;
  stats_.busy_ns = busy_ns_;
  stats_.model_ns = model_ns_;
  auto& events = engine_.events();
  if (events.empty()) return;
  const bool was_empty = outbox_.empty();
  if (was_empty) {
    outbox_.swap(events);
  } else {
    outbox_.insert(outbox_.end(), std::make_move_iterator(events.begin()), std::make_move_iterator(events.end()));
  }
  events.clear();
  if (was_empty) wake();
}

void StepLoop::wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t num_written = write(event_fd_, &one, sizeof(one));  // full: it is readable already
}

}  // namespace fmo
