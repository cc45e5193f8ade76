// From one row of logits to one token. Float32, one fixed order of operations, no state between calls: the same row,
// history and seed give the same token whatever else is in the batch.
//
//   forced token, or one      it is the token
//   of the prompt?
//   penalties and masks      repetition (HF: prompt and output; >0 divides, <=0 multiplies), frequency and presence
//   (output), logit_bias,
//                            no_repeat_ngram, bad words, min_tokens (no ending token yet), allowed-token bitmask
//   temperature 0            the largest logit, ties: lowest id
//   else                     softmax(logits / temperature) → top_k → top_p → min_p → XTC → inverse of the cumulative
//   distribution
//
// Filters see candidates from the most to the least likely (ties: lowest id first); without a filter the cumulative sum
// runs by id. top_k keeps exactly k. top_p keeps the smallest head whose share of the kept mass reaches top_p. min_p is
// relative to the most likely token. XTC, with its probability, drops all but the last of the candidates whose share is
// at least the threshold.
//
// Log-probabilities are those of the raw logits, before any penalty. A row with a NaN, a +infinity or no finite value
// is an error; with `ignores_bad_scores`, a NaN or +infinity is a token that is never chosen, and only a row without a
// finite value is an error.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/sampling_params.h"

namespace fmo {

struct SampleInput {
  const float* logits = nullptr;    // [vocab_size]
  std::span<const int32_t> tokens;  // prompt, then output
  int64_t num_prompt_tokens = 0;
  const SamplingParams* params = nullptr;
  uint64_t seed = 0;
  std::span<const uint32_t> allowed_bits;  // bit t%32 of word t/32: token t is allowed; empty: all are
  bool ignores_bad_scores = false;
  // `logits` are of a row of the prompt: no token is chosen, this one is scored.
  std::optional<int32_t> next_prompt_token{};

  const std::optional<int64_t>& num_logprobs() const {
    return next_prompt_token ? params->num_prompt_logprobs : params->num_logprobs;
  }
};

struct SampleResult {
  int32_t token_id = 0;
  float logprob = 0.0f;                                 // set when num_logprobs() is
  std::vector<std::pair<int32_t, float>> top_logprobs;  // most likely first, ties: lowest id
  bool is_bad_row = false;                              // the logits hold a NaN, a +infinity or no finite value
  std::string_view error;                               // empty, or why there is no token (static text)
};

class Sampler {
 public:
  explicit Sampler(int64_t vocab_size);

  // Overwrites `result`. Allocates nothing unless logprobs are asked for.
  void sample(const SampleInput& input, SampleResult& result);

 private:
  struct Candidate {
    float logit;  // divided by the temperature, the maximum is 0
    float weight;
    int32_t token_id;
  };

  void sample_sound_row(const SampleInput& input, float raw_max, SampleResult& result);
  bool has_top_k(const SamplingParams& params) const;
  bool has_processors(const SampleInput& input) const;
  void copy_and_process(const SampleInput& input);
  void apply_repetition_penalty(const SampleInput& input);
  void apply_count_penalties(const SampleInput& input);
  void mask_repeated_ngrams(const SampleInput& input);
  void mask_sequence_ends(std::span<const int32_t> tokens, const std::vector<std::vector<int32_t>>& sequences);
  void mask_endings(const SampleInput& input);
  void mask_disallowed(std::span<const uint32_t> allowed_bits);

  int32_t draw(const SampleInput& input, const float* logits, float max_logit);
  int32_t draw_unfiltered(double uniform) const;
  void collect_candidates(const SamplingParams& params);
  void filter_candidates(const SamplingParams& params, double xtc_uniform);
  const Candidate& sorted_candidate(size_t idx);
  void truncate_candidates(size_t num_kept);
  double sum_of_sorted_candidates();
  void keep_top_k(int64_t top_k);
  void keep_top_p(double top_p);
  void keep_min_p(double min_p);
  void exclude_top_choices(double threshold);
  int32_t draw_candidate(double uniform);
  void add_logprobs(const SampleInput& input, float max_logit, SampleResult& result);

  int64_t vocab_size_;
  std::vector<float> cleaned_;    // [vocab_size] logits whose bad scores are masked
  std::vector<float> processed_;  // [vocab_size] logits after penalties and masks
  std::vector<float> piece_max_;  // scratch of kth_largest_bound
  std::vector<float> scaled_;     // [vocab_size] (logit - max) / temperature
  std::vector<float> weights_;    // [vocab_size] exp(scaled)
  double total_weight_ = 0.0;     // of the tokens still in the draw
  std::vector<int32_t> counts_;   // [vocab_size] all zero between calls
  std::vector<Candidate> candidates_;
  size_t num_sorted_ = 0;  // the head of candidates_ that is in order; all others come after it
};

}  // namespace fmo
