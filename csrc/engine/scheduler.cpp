#include "engine/scheduler.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "base/error.h"

namespace fmo {
namespace {

void require_at_least(const char* name, int64_t value, int64_t minimum) {
  if (value >= minimum) return;
  throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ", expected at least " +
                              std::to_string(minimum));
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), cache_(options.num_blocks, options.block_size, options.hash_seed) {
  require_at_least("max_num_seqs", options.max_num_seqs, 1);
  require_at_least("max_num_tokens (rows of a step; every running sequence needs one)", options.max_num_tokens,
                   options.max_num_seqs);
  if (options_.max_num_logits == 0) options_.max_num_logits = options_.max_num_seqs;
  require_at_least("max_num_logits (every running sequence needs one)", options_.max_num_logits, options_.max_num_seqs);
  require_at_least("ngram_size", options_.ngram_size, 0);
  running_.reserve(static_cast<size_t>(options.max_num_seqs));
  chunks_.reserve(static_cast<size_t>(options.max_num_seqs));
  block_copies_.reserve(static_cast<size_t>(options.max_num_seqs) + 1);
  prefix_.reserve(static_cast<size_t>(options.num_blocks));
}

void Scheduler::add(Request& request) {
  // Blocks of a request that shares with nobody are found by its own samples only.
  if (!options_.shares_prefixes || !request.params.embedding_positions.empty())
    request.cache_scope = {~uint64_t{0}, static_cast<uint64_t>(request.id)};
  for (Sequence& sequence : request.samples) waiting_.insert(std::move(sequence.place));
  ++num_unstarted_requests_;
  num_unstarted_samples_ += request.num_open_samples;
}

std::span<const Chunk> Scheduler::schedule() {
  chunks_.clear();
  block_copies_.clear();
  budget_ = options_.max_num_tokens;
  score_budget_ = num_spare_logits();
  make_room_for_oldest();
  schedule_decodes();
  schedule_prefills();
  admit_waiting();
  if (options_.ngram_size > 0) schedule_proposals();
  return chunks_;
}

void Scheduler::mark_computed(Sequence& sequence, int64_t num_tokens) {
  sequence.num_computed += num_tokens;
  publish_full_blocks(sequence);
}

// Beside one for each sequence that runs or could be admitted in this step.
int64_t Scheduler::num_spare_logits() const {
  return options_.max_num_logits - std::min(num_running() + num_waiting(), options_.max_num_seqs);
}

// What was admitted while the oldest waited for its sibling gives way.
void Scheduler::make_room_for_oldest() {
  if (waiting_.empty() || running_.empty()) return;
  Sequence& oldest = **waiting_.begin();
  auto is_overtaken = [&] { return !running_.empty() && Older{}(&oldest, running_.back()); };
  if (!is_overtaken()) return;
  find_prefix(oldest);
  if (waits_for_sibling(oldest)) return;
  while (is_overtaken() && (num_running() == options_.max_num_seqs || !fits(oldest, prefix_)))
    preempt(*running_.back());
  if (num_running() == options_.max_num_seqs || !fits(oldest, prefix_)) return;
  oldest.place = waiting_.extract(waiting_.begin());
  admit(oldest);
}

void Scheduler::schedule_chunk(Sequence& sequence) {
  int64_t num_tokens = std::min(sequence.num_pending(), budget_);
  int64_t num_scored = 0;
  if (const int64_t num_wanted = num_unscored(*sequence.request); num_wanted > 0) {
    // Rows that were scored before a preemption come first. The last row of the prompt gives a token, not a score.
    const int64_t num_before = std::max<int64_t>(0, sequence.request->num_scored - sequence.num_computed);
    const int64_t num_logits = 1 + score_budget_;
    if (num_logits <= num_wanted) num_tokens = std::min(num_tokens, num_before + num_logits);
    num_scored = std::clamp<int64_t>(num_tokens - num_before, 0, num_wanted);
    score_budget_ -= std::min(num_scored, score_budget_);
  }
  chunks_.push_back({&sequence, num_tokens, num_tokens == sequence.num_pending(), num_scored});
  budget_ -= num_tokens;
}

void Scheduler::schedule_decodes() {
  // A preemption removes the last of `running_`, which is never one that already has a row.
  for (size_t idx = 0; idx < running_.size(); ++idx) {
    Sequence& sequence = *running_[idx];
    if (sequence.num_pending() != 1 || sequence.is_waiting_for_mask || !grow_for_decode(sequence)) continue;
    schedule_chunk(sequence);
  }
}

void Scheduler::schedule_prefills() {
  for (Sequence* sequence : running_) {
    if (budget_ == 0) return;
    if (sequence->num_pending() == 1) continue;
    schedule_chunk(*sequence);
  }
}

void Scheduler::admit_waiting() {
  auto next = waiting_.begin();
  while (next != waiting_.end() && budget_ > 0 && num_running() < options_.max_num_seqs) {
    Sequence& sequence = **next;
    find_prefix(sequence);
    if (waits_for_sibling(sequence)) {
      // They share one prompt: what holds for this sample holds for the later ones.
      while (next != waiting_.end() && (*next)->request == sequence.request) ++next;
      continue;
    }
    if (!fits(sequence, prefix_)) return;
    sequence.place = waiting_.extract(next++);
    admit(sequence);
    schedule_chunk(sequence);
  }
}

void Scheduler::schedule_proposals() {
  int64_t num_logits = 0;
  for (const Chunk& chunk : chunks_) num_logits += chunk.num_logit_rows();
  for (Chunk& chunk : chunks_) {
    if (!chunk.has_logits || chunk.num_tokens > 1) continue;
    propose(chunk, std::min(budget_, options_.max_num_logits - num_logits));
    budget_ -= chunk.num_proposed;
    num_logits += chunk.num_proposed;
  }
}

// A guess takes at most one block more than the sequence has, and only one that is not a spare one of others.
void Scheduler::propose(Chunk& chunk, int64_t limit) {
  Sequence& sequence = *chunk.sequence;
  const int64_t num_wanted = std::min(limit, sequence.request->max_total_len - sequence.num_tokens() - 1);
  const auto num_proposed = static_cast<int64_t>(sequence.proposer.propose(sequence.tokens, num_wanted).size());
  auto room = [&] {
    return static_cast<int64_t>(sequence.blocks.size()) * options_.block_size - sequence.num_tokens();
  };
  if (num_proposed > room() && cache_.num_available() > num_running()) sequence.blocks.push_back(cache_.allocate());
  chunk.num_proposed = std::min(num_proposed, room());
}

// False: the sequence was itself the youngest and has been preempted.
bool Scheduler::grow_for_decode(Sequence& sequence) {
  const auto num_wanted = static_cast<size_t>(ceil_div(sequence.num_tokens(), options_.block_size));
  while (sequence.blocks.size() < num_wanted) {
    if (cache_.num_available() > 0) {
      sequence.blocks.push_back(cache_.allocate());
    } else {
      Sequence& youngest = *running_.back();
      preempt(youngest);
      if (&youngest == &sequence) return false;
    }
  }
  return true;
}

// Blocks for all its tokens, and a spare one for each running sequence.
bool Scheduler::fits(const Sequence& sequence, std::span<const int32_t> prefix) const {
  const int64_t num_new = ceil_div(sequence.num_tokens(), options_.block_size) - static_cast<int64_t>(prefix.size());
  const auto num_woken = std::ranges::count_if(prefix, [this](int32_t block) { return cache_.is_unused(block); });
  return num_new + num_woken + num_running() <= cache_.num_available();
}

// A running sibling is computing blocks that this one could share, or an older one the scores that come before all
// tokens.
bool Scheduler::waits_for_sibling(const Sequence& sequence) const {
  const Request& request = *sequence.request;
  if (num_unscored(request) > 0) {
    const auto older = std::span(request.samples).first(static_cast<size_t>(sequence.sample_idx));
    return std::ranges::any_of(older, [](const Sequence& s) { return s.state != SequenceState::finished; });
  }
  const int64_t num_full_tokens = request.num_prompt_tokens / options_.block_size * options_.block_size;
  if (num_prefix_tokens() >= std::min(num_full_tokens, request.num_prompt_tokens - 1)) return false;
  return std::ranges::any_of(request.samples, [&](const Sequence& sibling) {
    return sibling.state == SequenceState::running && sibling.num_computed < num_full_tokens;
  });
}

int64_t Scheduler::num_prefix_tokens() const {
  return static_cast<int64_t>(prefix_.size()) * options_.block_size + partial_.num_tokens;
}

// Without the last token, and those whose logits are needed for scores: they are computed in any case.
void Scheduler::find_prefix(const Sequence& sequence) {
  prefix_.clear();
  const Request& request = *sequence.request;
  const int64_t num_usable = num_unscored(request) > 0 ? request.num_scored : sequence.num_tokens() - 1;
  const auto tokens = std::span<const int32_t>(sequence.tokens).first(static_cast<size_t>(num_usable));
  partial_ = cache_.find(request.cache_scope, tokens, prefix_);
}

void Scheduler::admit(Sequence& sequence) {
  Request& request = *sequence.request;
  for (const int32_t block : prefix_) {
    cache_.retain(block);
    sequence.blocks.push_back(block);
  }
  sequence.num_published = static_cast<int64_t>(prefix_.size());
  sequence.num_computed = num_prefix_tokens();
  const auto num_wanted = static_cast<size_t>(ceil_div(sequence.num_tokens(), options_.block_size));
  while (sequence.blocks.size() < num_wanted) sequence.blocks.push_back(cache_.allocate());
  // Copied before anything is written in this step, so it does not matter if the source has just been given away.
  if (partial_.num_tokens > 0) block_copies_.push_back({partial_.block, sequence.blocks[prefix_.size()]});
  if (!sequence.was_admitted) {
    sequence.was_admitted = true;
    --num_unstarted_samples_;
    sequence.num_cached = sequence.num_computed;
    num_looked_up_tokens_ += request.num_prompt_tokens;
    num_cached_tokens_ += sequence.num_cached;
  }
  sequence.state = SequenceState::running;
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &sequence, Older{}), &sequence);
  if (!request.is_started) --num_unstarted_requests_;
  request.is_started = true;
}

void Scheduler::preempt(Sequence& sequence) {
  remove_running(sequence);
  release_blocks(sequence, !sequence.has_bad_rows);
  sequence.num_computed = 0;
  sequence.state = SequenceState::waiting;
  waiting_.insert(std::move(sequence.place));
  ++num_preemptions_;
}

void Scheduler::finish(Sequence& sequence, bool is_sound) {
  Request& request = *sequence.request;
  if (sequence.state == SequenceState::finished) return;
  if (sequence.state == SequenceState::running) {
    remove_running(sequence);
    release_blocks(sequence, is_sound);
  } else {
    waiting_.erase(&sequence);
    if (!sequence.was_admitted) --num_unstarted_samples_;
  }
  sequence.state = SequenceState::finished;
  if (--request.num_open_samples == 0 && !request.is_started) --num_unstarted_requests_;
}

void Scheduler::publish_full_blocks(Sequence& sequence) {
  if (sequence.has_bad_rows) return;  // nothing from the step of the first on
  const auto block_size = static_cast<size_t>(options_.block_size);
  const std::span<const int32_t> tokens(sequence.tokens);
  while ((sequence.num_published + 1) * options_.block_size <= sequence.num_computed) {
    const auto idx = static_cast<size_t>(sequence.num_published);
    int32_t& block = sequence.blocks[idx];
    block = cache_.publish(sequence.request->cache_scope, last_published(sequence),
                           tokens.subspan(idx * block_size, block_size), block);
    ++sequence.num_published;
  }
}

int32_t Scheduler::last_published(const Sequence& sequence) const {
  return sequence.num_published == 0 ? kNoBlock : sequence.blocks[static_cast<size_t>(sequence.num_published - 1)];
}

// From the last one back to the first that somebody else uses or that something else follows.
void Scheduler::forget_own_blocks(const Sequence& sequence) {
  int64_t idx = sequence.num_published;
  while (idx > 0 && cache_.forget(sequence.blocks[static_cast<size_t>(idx - 1)])) --idx;
}

// From the last to the first, so that no block is left without the ones before it.
void Scheduler::release_blocks(Sequence& sequence, bool is_sound) {
  if (!is_sound) forget_own_blocks(sequence);
  const int64_t num_full_tokens = sequence.num_published * options_.block_size;
  if (is_sound && sequence.num_computed > num_full_tokens) {
    const auto tail = std::span<const int32_t>(sequence.tokens)
                          .subspan(static_cast<size_t>(num_full_tokens),
                                   static_cast<size_t>(sequence.num_computed - num_full_tokens));
    const int32_t block = sequence.blocks[static_cast<size_t>(sequence.num_published)];
    cache_.publish_tail(sequence.request->cache_scope, last_published(sequence), tail, block);
  }
  while (!sequence.blocks.empty()) {
    cache_.release(sequence.blocks.back());
    sequence.blocks.pop_back();
  }
  sequence.num_published = 0;
}

bool Scheduler::is_waiting_for_masks() const {
  return std::any_of(running_.begin(), running_.end(), [](const Sequence* s) { return s->is_waiting_for_mask; });
}

void Scheduler::remove_running(Sequence& sequence) { std::erase(running_, &sequence); }

void Scheduler::check_invariants() const {
  std::vector<int32_t> num_users(static_cast<size_t>(cache_.num_blocks()), 0);
  auto require = [](bool holds, const char* what) {
    if (!holds) throw std::logic_error(std::string("scheduler: ") + what);
  };
  for (const Sequence* sequence : running_) {
    const auto& blocks = sequence->blocks;
    for (const int32_t block : blocks) ++num_users.at(static_cast<size_t>(block));
    require(sequence->state == SequenceState::running, "a sequence in the running list is not running");
    require(sequence->num_computed <= static_cast<int64_t>(blocks.size()) * options_.block_size,
            "a sequence has more computed tokens than its blocks hold");
    require(sequence->num_published == sequence->num_computed / options_.block_size || sequence->has_bad_rows,
            "a full block of a running sequence is not published");
    for (int64_t idx = 0; idx < static_cast<int64_t>(blocks.size()); ++idx) {
      const int32_t block = blocks[static_cast<size_t>(idx)];
      require(cache_.is_known(block) == (idx < sequence->num_published), "a block is known that is not full");
      require(!cache_.is_known(block) || cache_.scope_of(block) == sequence->request->cache_scope,
              "a sequence uses a block of another scope");
    }
  }
  for (const Sequence* sequence : waiting_) {
    require(sequence->state == SequenceState::waiting && sequence->blocks.empty(), "a waiting sequence owns blocks");
  }
  cache_.check_invariants(num_users);
  require(std::ranges::is_sorted(running_, Older{}), "the running list is not in order of age");
  require(num_running() <= options_.max_num_seqs, "more sequences run than max_num_seqs");
}

}  // namespace fmo
