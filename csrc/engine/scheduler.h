// Decides what each step computes: iteration-level batching with chunked prefill on paged blocks. Deterministic: no
// clock, no randomness.
//
//   1. every decoding sequence gets one row, oldest first; out of blocks, the youngest running sequence is preempted
//   2. sequences with more to compute get chunks of what is left of the row budget, oldest first
//   3. waiting sequences are admitted, oldest first, when blocks for all their tokens are free beside one spare block
//   per running sequence
//
// Nothing overtakes the oldest waiting sequence, and the oldest running one is never preempted, so every request ends.
// Two exceptions to the order: a sample whose sibling is about to have the prompt's blocks ready waits for them and
// lets others pass, and so does a constrained sample whose mask is not there yet.
//
// Samples of one request share the full blocks of the prompt by reference count; the block that holds the prompt's last
// token is private, because its logits have to be computed and its free places belong to the answer.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <vector>

#include "engine/block_pool.h"
#include "engine/sequence.h"

namespace fmo {

struct SchedulerOptions {
  int64_t num_blocks = 0;
  int64_t block_size = 16;
  int64_t max_num_seqs = 64;
  int64_t max_num_tokens = 512;  // rows of a step, at least max_num_seqs
};

// The next `num_tokens` uncomputed tokens of a running sequence. The chunk that reaches the last token gives the logits
// of the next one.
struct Chunk {
  Sequence* sequence;
  int64_t num_tokens;
  bool has_logits;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // The request must outlive its samples' end; the tokens of one sample must fit num_blocks.
  void add(Request& request);
  // The chunks of the next step; valid until the next call. Their blocks are in the sequences.
  std::span<const Chunk> schedule();
  // The chunk's rows are in the KV cache now.
  void mark_computed(const Chunk& chunk);
  // Waiting or running → finished: gives its blocks back at once.
  void finish(Sequence& sequence);

  bool has_work() const { return !running_.empty() || !waiting_.empty(); }
  // Some running sequence steps aside until its mask is there.
  bool is_waiting_for_masks() const;
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_unstarted_requests() const { return num_unstarted_requests_; }
  int64_t num_preemptions() const { return num_preemptions_; }
  const BlockPool& pool() const { return pool_; }
  // Throws std::logic_error unless every block is owned exactly as often as it is counted. For tests; slow.
  void check_invariants() const;

 private:
  struct Older {
    bool operator()(const Sequence* a, const Sequence* b) const { return is_older(*a, *b); }
  };
  enum class PrefixState : uint8_t { none, ready, in_progress };
  struct Prefix {
    PrefixState state = PrefixState::none;
    std::span<const int32_t> blocks;
  };

  void schedule_chunk(Sequence& sequence);
  void schedule_decodes();
  void schedule_prefills();
  void admit_waiting();
  bool grow_for_decode(Sequence& sequence);
  bool make_room(int64_t num_free_wanted, const Request& keep);
  void admit(Sequence& sequence, const Prefix& prefix);
  void preempt(Sequence& sequence);

  int64_t num_shareable_blocks(const Request& request) const;
  Prefix find_prefix(const Sequence& sequence) const;
  void hold_prefix(const Sequence& sequence);
  void drop_held_prefix(Request& request);
  bool drop_youngest_held_prefix(const Request* keep);

  void release_blocks(Sequence& sequence);
  void remove_running(Sequence& sequence);

  SchedulerOptions options_;
  BlockPool pool_;
  std::vector<Sequence*> running_;        // oldest first
  std::set<Sequence*, Older> waiting_;    // oldest first
  std::vector<Request*> prefix_holders_;  // requests with a held prefix
  std::vector<Chunk> chunks_;
  int64_t budget_ = 0;  // rows left in the step being scheduled
  int64_t num_unstarted_requests_ = 0;
  int64_t num_preemptions_ = 0;
};

}  // namespace fmo
