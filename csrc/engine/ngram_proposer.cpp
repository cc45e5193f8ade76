#include "engine/ngram_proposer.h"

#include <algorithm>
#include <bit>

#include "engine/random.h"

namespace fmo {
namespace {

constexpr int64_t kMatchLens[2] = {3, 2};
constexpr int32_t kNowhere = -1;

// A row more in a step costs about 0.1 steps where weights come from memory and up to 0.7 where they fit in a cache:
// this share of guesses must come true for guessing to pay.
constexpr float kLeastAcceptedShare = 0.4f;
constexpr float kNewestWeight = 0.25f;  // of the newest step in the average
// Guesses of a step on trial: a wrong one costs next to nothing, and a true one shows that more will pay.
constexpr int64_t kTrialLen = 1;
constexpr int64_t kFirstSilenceLen = 16, kLongestSilenceLen = 512;

// Guesses of a step while all come true. Measured: 6 rows cost 2.2 to 2.4 times one row, 8 rows 3.0 to 3.4 times.
int64_t most(int64_t usual) { return usual + (usual + 1) / 2; }

size_t slot_of(std::span<const int32_t> run, size_t num_slots) {
  uint64_t hash = 0;
  for (const int32_t token_id : run) hash = mix_bits(hash + static_cast<uint64_t>(token_id) + 1);
  return hash & (num_slots - 1);
}

}  // namespace

NgramProposer::NgramProposer(int64_t num_proposed, int64_t num_tokens)
    : usual_num_proposed_(num_proposed),
      max_num_proposed_(std::min(num_proposed, kTrialLen)),
      next_silence_len_(kFirstSilenceLen) {
  if (num_proposed == 0) return;
  proposed_.reserve(static_cast<size_t>(most(num_proposed)));
  for (size_t idx = 0; idx < 2; ++idx) {
    tables_[idx].match_len = kMatchLens[idx];
    tables_[idx].last_ends.assign(std::bit_ceil(static_cast<size_t>(std::max<int64_t>(num_tokens, 1))), kNowhere);
  }
}

std::span<const int32_t> NgramProposer::propose(std::span<const int32_t> tokens, int64_t limit) {
  proposed_.clear();
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  if (max_num_proposed_ == 0 || limit <= 0 || num_tokens < resume_len_) return {};
  index(tokens.first(tokens.size() - 1));
  int64_t end = find(tables_[0], tokens);
  if (end == kNowhere) end = find(tables_[1], tokens);
  if (end == kNowhere) return {};
  for (int64_t count = std::min(limit, max_num_proposed_); count > 0; --count, ++end) {
    // Past the last token the guesses themselves are what follows: the text repeats with a short period.
    proposed_.push_back(end < num_tokens ? tokens[static_cast<size_t>(end)]
                                         : proposed_[static_cast<size_t>(end - num_tokens)]);
  }
  return proposed_;
}

void NgramProposer::note_outcome(int64_t num_accepted, int64_t num_proposed, int64_t num_tokens) {
  if (num_accepted < num_proposed) {
    max_num_proposed_ = std::min(max_num_proposed_, usual_num_proposed_);  // a trial goes on
  } else if (num_proposed == max_num_proposed_) {
    max_num_proposed_ = std::clamp(max_num_proposed_ + 1, usual_num_proposed_, most(usual_num_proposed_));
  }
  const float share = static_cast<float>(num_accepted) / static_cast<float>(num_proposed);
  accepted_share_ += kNewestWeight * (share - accepted_share_);
  if (accepted_share_ >= 1.5f * kLeastAcceptedShare) next_silence_len_ = kFirstSilenceLen;
  if (accepted_share_ >= kLeastAcceptedShare) return;
  accepted_share_ = kLeastAcceptedShare;  // after the silence, one more try decides
  max_num_proposed_ = kTrialLen;
  resume_len_ = num_tokens + next_silence_len_;
  next_silence_len_ = std::min(2 * next_silence_len_, kLongestSilenceLen);
}

void NgramProposer::index(std::span<const int32_t> tokens) {
  for (; num_indexed_ < static_cast<int64_t>(tokens.size()); ++num_indexed_) {
    const auto head = tokens.first(static_cast<size_t>(num_indexed_) + 1);
    for (Table& table : tables_) {
      const auto match_len = static_cast<size_t>(table.match_len);
      if (head.size() < match_len) continue;
      table.last_ends[slot_of(head.last(match_len), table.last_ends.size())] = static_cast<int32_t>(head.size());
    }
  }
}

// Where what followed the last run equal to the end of `tokens` begins, or kNowhere.
int64_t NgramProposer::find(const Table& table, std::span<const int32_t> tokens) const {
  const auto match_len = static_cast<size_t>(table.match_len);
  if (tokens.size() < match_len) return kNowhere;
  const auto tail = tokens.last(match_len);
  const int32_t end = table.last_ends[slot_of(tail, table.last_ends.size())];
  if (end == kNowhere) return kNowhere;
  const auto run = tokens.subspan(static_cast<size_t>(end) - match_len, match_len);
  return std::ranges::equal(run, tail) ? end : kNowhere;
}

}  // namespace fmo
