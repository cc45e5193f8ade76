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

Scheduler::Scheduler(const SchedulerOptions& options) : options_(options), pool_(options.num_blocks) {
  require_at_least("block_size", options.block_size, 1);
  require_at_least("max_num_seqs", options.max_num_seqs, 1);
  require_at_least("max_num_tokens (rows of a step; every running sequence needs one)", options.max_num_tokens,
                   options.max_num_seqs);
  running_.reserve(static_cast<size_t>(options.max_num_seqs));
  chunks_.reserve(static_cast<size_t>(options.max_num_seqs));
}

void Scheduler::add(Request& request) {
  for (Sequence& sequence : request.samples) waiting_.insert(&sequence);
  ++num_unstarted_requests_;
}

std::span<const Chunk> Scheduler::schedule() {
  chunks_.clear();
  budget_ = options_.max_num_tokens;
  schedule_decodes();
  schedule_prefills();
  admit_waiting();
  return chunks_;
}

void Scheduler::mark_computed(const Chunk& chunk) { chunk.sequence->num_computed += chunk.num_tokens; }

void Scheduler::schedule_chunk(Sequence& sequence) {
  const int64_t num_tokens = std::min(sequence.num_pending(), budget_);
  chunks_.push_back({&sequence, num_tokens, num_tokens == sequence.num_pending()});
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
    const Prefix prefix = find_prefix(sequence);
    if (prefix.state == PrefixState::in_progress) {
      ++next;
      continue;
    }
    const int64_t num_new_blocks =
        ceil_div(sequence.num_tokens(), options_.block_size) - static_cast<int64_t>(prefix.blocks.size());
    if (!make_room(num_new_blocks + num_running(), *sequence.request)) return;
    next = waiting_.erase(next);
    admit(sequence, prefix);
  }
}

// False: the sequence was itself the youngest and has been preempted.
bool Scheduler::grow_for_decode(Sequence& sequence) {
  const auto num_wanted = static_cast<size_t>(ceil_div(sequence.num_tokens(), options_.block_size));
  while (sequence.blocks.size() < num_wanted) {
    if (pool_.num_free() > 0) {
      sequence.blocks.push_back(pool_.allocate());
    } else if (!drop_youngest_held_prefix(nullptr)) {
      Sequence& youngest = *running_.back();
      preempt(youngest);
      if (&youngest == &sequence) return false;
    }
  }
  return true;
}

// Gives up held prefixes of other requests, which only cost a recomputation, but preempts nobody.
bool Scheduler::make_room(int64_t num_free_wanted, const Request& keep) {
  while (pool_.num_free() < num_free_wanted) {
    if (!drop_youngest_held_prefix(&keep)) return false;
  }
  return true;
}

void Scheduler::admit(Sequence& sequence, const Prefix& prefix) {
  Request& request = *sequence.request;
  for (const int32_t block : prefix.blocks) {
    pool_.retain(block);
    sequence.blocks.push_back(block);
  }
  sequence.num_computed = sequence.num_cached = static_cast<int64_t>(prefix.blocks.size()) * options_.block_size;
  const auto num_wanted = static_cast<size_t>(ceil_div(sequence.num_tokens(), options_.block_size));
  while (sequence.blocks.size() < num_wanted) sequence.blocks.push_back(pool_.allocate());

  sequence.state = SequenceState::running;
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &sequence, Older{}), &sequence);
  if (!request.is_started) --num_unstarted_requests_;
  request.is_started = true;
  if (--request.num_waiting_samples == 0) drop_held_prefix(request);
  schedule_chunk(sequence);
}

void Scheduler::preempt(Sequence& sequence) {
  remove_running(sequence);
  release_blocks(sequence);
  sequence.num_computed = 0;
  sequence.state = SequenceState::waiting;
  waiting_.insert(&sequence);
  ++sequence.request->num_waiting_samples;
  ++num_preemptions_;
}

void Scheduler::finish(Sequence& sequence) {
  Request& request = *sequence.request;
  if (sequence.state == SequenceState::finished) return;
  if (sequence.state == SequenceState::running) {
    remove_running(sequence);
    hold_prefix(sequence);
    release_blocks(sequence);
  } else {
    waiting_.erase(&sequence);
    --request.num_waiting_samples;
  }
  sequence.state = SequenceState::finished;
  if (request.num_waiting_samples == 0) drop_held_prefix(request);
  if (--request.num_open_samples == 0 && !request.is_started) --num_unstarted_requests_;
}

// Full blocks of the prompt that do not hold its last token.
int64_t Scheduler::num_shareable_blocks(const Request& request) const {
  return request.params.num_samples() > 1 ? (request.num_prompt_tokens - 1) / options_.block_size : 0;
}

Scheduler::Prefix Scheduler::find_prefix(const Sequence& sequence) const {
  const Request& request = *sequence.request;
  const auto num_blocks = static_cast<size_t>(num_shareable_blocks(request));
  if (num_blocks == 0) return {};
  PrefixState state = PrefixState::none;
  for (const Sequence& sibling : request.samples) {
    if (sibling.state != SequenceState::running) continue;
    if (sibling.num_computed >= static_cast<int64_t>(num_blocks) * options_.block_size) {
      return {PrefixState::ready, std::span(sibling.blocks).first(num_blocks)};
    }
    state = PrefixState::in_progress;
  }
  if (!request.held_prefix.empty()) return {PrefixState::ready, request.held_prefix};
  return {state, {}};
}

// Keeps the prompt's blocks of an ending sample alive while siblings wait for a place.
void Scheduler::hold_prefix(const Sequence& sequence) {
  Request& request = *sequence.request;
  const int64_t num_blocks = num_shareable_blocks(request);
  const bool is_computed = sequence.num_computed >= num_blocks * options_.block_size;
  if (num_blocks == 0 || !is_computed || request.num_waiting_samples == 0 || !request.held_prefix.empty()) return;
  request.held_prefix.assign(sequence.blocks.begin(), sequence.blocks.begin() + num_blocks);
  for (const int32_t block : request.held_prefix) pool_.retain(block);
  prefix_holders_.push_back(&request);
}

void Scheduler::drop_held_prefix(Request& request) {
  if (request.held_prefix.empty()) return;
  for (const int32_t block : request.held_prefix) pool_.release(block);
  request.held_prefix.clear();
  std::erase(prefix_holders_, &request);
}

bool Scheduler::drop_youngest_held_prefix(const Request* keep) {
  Request* youngest = nullptr;
  for (Request* request : prefix_holders_) {
    if (request != keep && (youngest == nullptr || request->id > youngest->id)) youngest = request;
  }
  if (youngest == nullptr) return false;
  drop_held_prefix(*youngest);
  return true;
}

void Scheduler::release_blocks(Sequence& sequence) {
  for (const int32_t block : sequence.blocks) pool_.release(block);
  sequence.blocks.clear();
}

bool Scheduler::is_waiting_for_masks() const {
  return std::any_of(running_.begin(), running_.end(), [](const Sequence* s) { return s->is_waiting_for_mask; });
}

void Scheduler::remove_running(Sequence& sequence) { std::erase(running_, &sequence); }

void Scheduler::check_invariants() const {
  std::vector<int32_t> num_owners(static_cast<size_t>(pool_.num_blocks()), 0);
  auto count = [&](std::span<const int32_t> blocks) {
    for (const int32_t block : blocks) ++num_owners.at(static_cast<size_t>(block));
  };
  auto require = [](bool holds, const char* what) {
    if (!holds) throw std::logic_error(std::string("scheduler: ") + what);
  };
  for (const Sequence* sequence : running_) {
    count(sequence->blocks);
    require(sequence->state == SequenceState::running, "a sequence in the running list is not running");
    require(sequence->num_computed <= static_cast<int64_t>(sequence->blocks.size()) * options_.block_size,
            "a sequence has more computed tokens than its blocks hold");
  }
  for (const Sequence* sequence : waiting_) {
    require(sequence->state == SequenceState::waiting && sequence->blocks.empty(), "a waiting sequence owns blocks");
  }
  for (const Request* request : prefix_holders_) {
    count(request->held_prefix);
    require(request->num_waiting_samples > 0, "a prefix is held for nobody");
  }
  int64_t num_used = 0;
  for (int32_t block = 0; block < pool_.num_blocks(); ++block) {
    const int32_t num = num_owners[static_cast<size_t>(block)];
    require(num == pool_.ref_count(block), "a block is not owned as often as it is counted");
    num_used += num > 0;
  }
  require(num_used == pool_.num_used(), "the free list does not match the reference counts");
  require(std::is_sorted(running_.begin(), running_.end(), Older{}), "the running list is not in order of age");
  require(num_running() <= options_.max_num_seqs, "more sequences run than max_num_seqs");
}

}  // namespace fmo
