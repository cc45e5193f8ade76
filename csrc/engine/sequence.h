// One request and its samples. A sample (`Sequence`) is the unit that the scheduler moves:
//
//   waiting ──admitted──▶ running ──stop rule, cancel, error──▶ finished
//      ▲                     │
//      └──preempted: blocks given back, tokens kept, everything computed again──┘
//
// A token is "computed" when its keys and values are in the sequence's blocks. All but the last token of a decoding
// sequence are computed. A prefill, a decode step and the recomputation after a preemption are the same thing: compute
// `tokens[num_computed …]`, then sample.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "engine/ngram_proposer.h"
#include "engine/prefix_cache.h"
#include "engine/sampling_params.h"

namespace fmo {

struct Request;
struct Sequence;

enum class SequenceState : uint8_t { waiting, running, finished };

// Older requests first, then lower samples: the order in which everything is served.
struct Older {
  bool operator()(const Sequence* a, const Sequence* b) const;
};
using WaitingSet = std::set<Sequence*, Older>;

struct TokenScore {
  float logprob;
  std::vector<std::pair<int32_t, float>> top_logprobs;  // most likely first
  bool operator==(const TokenScore&) const = default;
};

struct Sequence {
  Request* request = nullptr;
  int32_t sample_idx = 0;
  SequenceState state = SequenceState::waiting;
  std::vector<int32_t> tokens;  // prompt, then output
  int64_t num_computed = 0;     // tokens whose KV is in `blocks`
  int64_t num_cached = 0;       // prompt tokens that were in the prefix cache when it first started
  bool was_admitted = false;
  std::vector<int32_t> blocks;  // block b holds tokens b·block_size …; this sequence owns one reference to each
  int64_t num_published = 0;    // the first of `blocks`, all full: known to the prefix cache
  WaitingSet::node_type place;  // in the queue, kept while not there: to be preempted allocates nothing

  NgramProposer proposer;  // guesses the next tokens of a decoding sequence

  // Of a constrained request: the mask of output token `mask_position`. A sequence whose mask comes after its logits
  // steps aside until it is there; its last row is then computed again, which gives the same logits.
  std::vector<uint32_t> mask;
  int64_t mask_position = -1;
  bool is_waiting_for_mask = false;
  bool has_bad_rows = false;  // some of its logits were no numbers: what led to them is not kept for others

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_pending() const { return num_tokens() - num_computed; }
};

struct Request {
  int64_t id = 0;
  SamplingParams params;
  int64_t num_prompt_tokens = 0;
  int64_t num_scored = 0;                 // tokens of the prompt, from the second on, whose log-probability is known
  std::vector<TokenScore> prompt_scores;  // of tokens 1 … of the prompt, until they are given out
  int64_t max_total_len = 0;              // prompt + output at which a sample ends
  CacheScope cache_scope;     // with whom its blocks may be shared; requests of different adapters never have the same
  int32_t adapter_slot = -1;  // of the model; -1: the base model
  std::vector<Sequence> samples;
  int64_t num_open_samples = 0;
  bool is_started = false;  // a sample has been admitted once
};

inline int64_t num_output_tokens(const Sequence& sequence) {
  return sequence.num_tokens() - sequence.request->num_prompt_tokens;
}

// Tokens of the prompt whose log-probabilities are asked for and not known yet: those after tokens[num_scored]. The
// first open sample finds them, and the others start after that.
inline int64_t num_unscored(const Request& request) {
  return request.params.num_prompt_logprobs ? request.num_prompt_tokens - 1 - request.num_scored : 0;
}

inline bool Older::operator()(const Sequence* a, const Sequence* b) const {
  const int64_t id_a = a->request->id, id_b = b->request->id;
  return id_a != id_b ? id_a < id_b : a->sample_idx < b->sample_idx;
}

// The open requests by id. A new request travels as a node of this table, so that taking it in allocates nothing.
using RequestTable = std::map<int64_t, std::unique_ptr<Request>>;

// A request without an id yet, with one waiting sequence per seed, all holding the prompt. Allocates what they need for
// their life, up to answers of several thousand tokens.
RequestTable::node_type make_request(std::span<const int32_t> prompt, SamplingParams params, int64_t max_total_len,
                                     int64_t block_size, int64_t ngram_size);

}  // namespace fmo
