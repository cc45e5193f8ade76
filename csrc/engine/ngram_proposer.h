// Guesses what a sequence will say next from what it has said before ("prompt lookup"): the last tokens are looked up
// in the sequence itself, and what followed them there is proposed. The engine verifies all guesses in one step, so a
// wrong one costs time and never changes a token.
//
//   … the quick brown fox … the quick ──▶ proposes: brown fox …        the last 3 tokens are looked for, then the last
//   2
//
// What pays is learned from what became of the guesses, not from a clock: the first one is a single token, on trial;
// while all come true, more are made, up to half as many again; when too few come true, the proposer falls silent for
// a while, longer each time, and starts with a trial again.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace fmo {

class NgramProposer {
 public:
  NgramProposer() = default;  // never proposes
  // `num_proposed` tokens at a time, up to half as many again while all come true. The tables are sized for
  // `num_tokens`; more lower the chance of a find.
  NgramProposer(int64_t num_proposed, int64_t num_tokens);

  // Up to `limit` tokens that may follow `tokens`; valid until the next call. `tokens` only grows from call to call.
  std::span<const int32_t> propose(std::span<const int32_t> tokens, int64_t limit);
  std::span<const int32_t> proposed() const { return proposed_; }
  // Of the first `num_proposed` of the last guesses, `num_accepted` came true; the sequence has `num_tokens` tokens
  // now.
  void note_outcome(int64_t num_accepted, int64_t num_proposed, int64_t num_tokens);

 private:
  struct Table {
    int64_t match_len = 0;
    std::vector<int32_t> last_ends;  // by the hash of match_len tokens: where the last such run ended; a power of two
  };

  void index(std::span<const int32_t> tokens);
  int64_t find(const Table& table, std::span<const int32_t> tokens) const;

  int64_t usual_num_proposed_ = 0;
  int64_t max_num_proposed_ = 0;  // of the next step
  Table tables_[2];               // the longer match first
  int64_t num_indexed_ = 0;       // tokens whose run is in the tables
  std::vector<int32_t> proposed_;
  float accepted_share_ = 0.6f;   // of the guesses, a moving average over steps
  int64_t resume_len_ = 0;        // silent until the sequence has so many tokens
  int64_t next_silence_len_ = 0;  // tokens
};

}  // namespace fmo
