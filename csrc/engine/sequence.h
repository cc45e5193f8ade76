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
#include <memory>
#include <span>
#include <vector>

#include "engine/sampling_params.h"

namespace fmo {

struct Request;

enum class SequenceState : uint8_t { waiting, running, finished };

struct Sequence {
  Request* request = nullptr;
  int32_t sample_idx = 0;
  SequenceState state = SequenceState::waiting;
  std::vector<int32_t> tokens;  // prompt, then output
  int64_t num_computed = 0;     // tokens whose KV is in `blocks`
  int64_t num_cached = 0;       // prompt tokens taken from a sibling at the last admission
  std::vector<int32_t> blocks;  // block b holds tokens b·block_size …; this sequence owns one reference to each

  // Of a constrained request: the mask of output token `mask_position`. A sequence whose mask comes after its logits
  // steps aside until it is there; its last row is then computed again, which gives the same logits.
  std::vector<uint32_t> mask;
  int64_t mask_position = -1;
  bool is_waiting_for_mask = false;

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_pending() const { return num_tokens() - num_computed; }
};

struct Request {
  int64_t id = 0;
  SamplingParams params;
  int64_t num_prompt_tokens = 0;
  int64_t max_total_len = 0;  // prompt + output at which a sample ends
  std::vector<Sequence> samples;
  std::vector<int32_t>
      held_prefix;  // prompt blocks kept for siblings that still wait, when no running sample holds them
  int64_t num_open_samples = 0;
  int64_t num_waiting_samples = 0;
  bool is_started = false;  // a sample has been admitted once
};

inline int64_t num_output_tokens(const Sequence& sequence) {
  return sequence.num_tokens() - sequence.request->num_prompt_tokens;
}

// Older requests first, then lower samples: the order in which everything is served.
inline bool is_older(const Sequence& a, const Sequence& b) {
  return a.request->id != b.request->id ? a.request->id < b.request->id : a.sample_idx < b.sample_idx;
}

// A request with one waiting sequence per seed, all holding the prompt.
std::unique_ptr<Request> make_request(int64_t id, std::span<const int32_t> prompt, SamplingParams params,
                                      int64_t max_total_len);

}  // namespace fmo
