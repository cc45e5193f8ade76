// How many threads of a pool are worth using while other processes want the same cores.
//
// A call waits at its barrier for every thread of the team, so one thread that keeps losing its core to a neighbour
// holds up all of them: `size` threads of which one is away for a share f of the time do the work of size · (1 − f).
// Where that is clearly less than the work of one thread fewer, the team shrinks; it is tried with one more after a
// while, and after twice as long each time that fails. Time is counted in time of runs. Results never depend on the
// size of the team.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fmo {

class TeamSize {
 public:
  explicit TeamSize(int max_size) : max_size_(max_size), size_(max_size) {}

  int size() const { return size_; }

  // After a run of `run_ns` in which the thread that was away longest was away for `lost_ns`.
  void observe(int64_t run_ns, int64_t lost_ns) {
    window_ns_ += run_ns;
    lost_ns_ += lost_ns;
    if (window_ns_ < kWindowNs) return;
    const double lost = static_cast<double>(lost_ns_) / static_cast<double>(window_ns_);
    if (size_ > 1 && lost > std::max(kMinLost, kLostThreads / size_)) {
      shrink();
    } else {
      stay();
    }
    window_ns_ = lost_ns_ = 0;
  }

 private:
  static constexpr int64_t kWindowNs = 20'000'000;
  static constexpr int64_t kFirstHoldNs = 100'000'000, kLongestHoldNs = 1'600'000'000;
  static constexpr double kLostThreads =
      0.75;  // below 1: decoding is bound by memory, where a thread fewer costs less than its share
  static constexpr double kMinLost = 0.1;

  void shrink() {
    --size_;
    hold_ns_ = is_trial_ ? std::min(2 * hold_ns_, kLongestHoldNs) : kFirstHoldNs;
    held_ns_ = 0;
    is_trial_ = false;
  }

  void stay() {
    if (size_ == max_size_) {
      is_trial_ = false;
      return;
    }
    held_ns_ += window_ns_;
    if (!is_trial_ && held_ns_ < hold_ns_) return;  // a trial that went well is followed by the next at once
    ++size_;
    is_trial_ = true;
  }

  int max_size_, size_;
  int64_t window_ns_ = 0, lost_ns_ = 0;           // of the runs since the last decision
  int64_t hold_ns_ = kFirstHoldNs, held_ns_ = 0;  // how long to stay small, and how long that has been
  bool is_trial_ = false;                         // the team has just grown
};

}  // namespace fmo
