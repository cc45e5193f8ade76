// Decides what each step computes: iteration-level batching with chunked prefill on paged blocks. Deterministic: no
// clock, no randomness.
//
//   1. if the oldest waiting sequence is older than some that run, those are preempted until it fits
//   2. every decoding sequence gets one row, oldest first; out of blocks, the youngest running sequence is preempted
//   3. sequences with more to compute get chunks of what is left of the row budget, oldest first
//   4. waiting sequences are admitted, oldest first, when blocks for all their tokens are free beside one spare block
//   per running sequence
//   5. rows, logits and blocks that are still left go to guesses of the next tokens of decoding sequences, oldest first
//
// Nothing overtakes the oldest waiting sequence, and the oldest running one is never preempted, so every request ends.
// One exception to the order: a sample whose sibling is about to have the prompt's blocks ready waits for them and lets
// others pass, which make room again when the blocks are ready (1). A constrained sample whose mask is not there yet
// keeps its place but gets no rows.
//
// Full blocks are published to the prefix cache as soon as they are computed, prompt or answer, and the last, partly
// filled one when the sequence gives it back. A sequence that is admitted, for the first time or after a preemption,
// starts with what the cache knows of its tokens: the full blocks, and a copy of the one that goes on like it. The last
// token is always computed, because its logits are needed. So are all tokens of a prompt that is scored
// (SamplingParams:: num_prompt_logprobs), in chunks for which there are logits beside one for each sequence that runs
// or may be admitted.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/prefix_cache.h"
#include "engine/sequence.h"

namespace fmo {

struct SchedulerOptions {
  int64_t num_blocks = 0;
  int64_t block_size = 16;
  int64_t max_num_seqs = 64;
  int64_t max_num_tokens = 512;  // rows of a step, at least max_num_seqs
  int64_t max_num_logits = 0;    // rows of a step whose logits are computed; 0: max_num_seqs, which leaves no guesses
  int64_t ngram_size = 0;        // tokens that are guessed ahead for one sequence, see NgramProposer
  bool shares_prefixes = true;   // between requests; samples of one request always do
  uint64_t hash_seed = 0;        // of the prefix cache's table: lookup times are nobody's to predict
};

// The next `num_tokens` uncomputed tokens of a running sequence. The chunk that reaches the last token gives the logits
// of the next one. Guessed tokens (`sequence->proposer.proposed()`) follow the last one, each with logits of its own.
// Before them come the logits of rows that score tokens of the prompt: `num_scored` rows from that of
// tokens[request->num_scored] on.
struct Chunk {
  Sequence* sequence;
  int64_t num_tokens;
  bool has_logits;
  int64_t num_scored = 0;
  int64_t num_proposed = 0;

  int64_t num_rows() const { return num_tokens + num_proposed; }
  int64_t num_sampled_rows() const { return has_logits ? 1 + num_proposed : 0; }
  int64_t num_logit_rows() const { return num_scored + num_sampled_rows(); }
};

// What must be done before the step writes, in this order.
struct BlockCopy {
  int32_t source;
  int32_t target;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // The request must outlive its samples' end; the tokens of one sample must fit num_blocks.
  void add(Request& request);
  // The chunks of the next step; valid until the next call. Their blocks are in the sequences.
  std::span<const Chunk> schedule();
  // The copies that `schedule` asks for, also when there are no chunks; valid as long as those.
  std::span<const BlockCopy> block_copies() const { return block_copies_; }
  // The next tokens of the sequence are in the KV cache now. With bad rows they are for the sequence alone: whether it
  // has any must be known before.
  void mark_computed(Sequence& sequence, int64_t num_tokens);
  // Waiting or running → finished: gives its blocks back at once. `is_sound` false: what it alone computed is not kept
  // in the prefix cache.
  void finish(Sequence& sequence, bool is_sound);

  bool has_work() const { return !running_.empty() || !waiting_.empty(); }
  // Some running sequence steps aside until its mask is there.
  bool is_waiting_for_masks() const;
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_unstarted_requests() const { return num_unstarted_requests_; }
  int64_t num_unstarted_samples() const { return num_unstarted_samples_; }
  int64_t num_preemptions() const { return num_preemptions_; }
  int64_t num_looked_up_tokens() const { return num_looked_up_tokens_; }  // prompt tokens of samples that started
  int64_t num_cached_tokens() const { return num_cached_tokens_; }        // those of them that were not computed
  const PrefixCache& cache() const { return cache_; }
  // Throws std::logic_error unless every block is owned exactly as often as it is counted. For tests; slow.
  void check_invariants() const;

 private:
  int64_t num_spare_logits() const;
  void make_room_for_oldest();
  void schedule_chunk(Sequence& sequence);
  void schedule_decodes();
  void schedule_prefills();
  void admit_waiting();
  void schedule_proposals();
  void propose(Chunk& chunk, int64_t limit);
  bool grow_for_decode(Sequence& sequence);
  bool fits(const Sequence& sequence, std::span<const int32_t> prefix) const;
  bool waits_for_sibling(const Sequence& sequence) const;
  void find_prefix(const Sequence& sequence);
  int64_t num_prefix_tokens() const;
  void admit(Sequence& sequence);
  void preempt(Sequence& sequence);
  void publish_full_blocks(Sequence& sequence);
  void forget_own_blocks(const Sequence& sequence);
  void release_blocks(Sequence& sequence, bool is_sound);
  void remove_running(Sequence& sequence);
  int32_t last_published(const Sequence& sequence) const;

  SchedulerOptions options_;
  PrefixCache cache_;
  std::vector<Sequence*> running_;  // oldest first
  WaitingSet waiting_;              // oldest first
  std::vector<Chunk> chunks_;
  std::vector<BlockCopy> block_copies_;
  std::vector<int32_t> prefix_;  // blocks found for the sequence that is being admitted
  PartialBlock partial_;         // of which what follows them can be copied
  int64_t budget_ = 0;           // rows left in the step being scheduled
  int64_t score_budget_ = 0;     // rows of logits left for scores of prompts, beside one for each sequence
  int64_t num_unstarted_requests_ = 0;
  int64_t num_unstarted_samples_ = 0;
  int64_t num_preemptions_ = 0;
  int64_t num_looked_up_tokens_ = 0;
  int64_t num_cached_tokens_ = 0;
};

}  // namespace fmo
