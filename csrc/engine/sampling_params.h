// What one request asks of the sampler and of the stop rules. Plain data; `check_params` is the last line of defence
// before it is used (the user-facing check with field names and bounds is runtime/sampling.py).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace fmo {

struct SamplingParams {
  std::optional<int64_t> max_tokens;        // output tokens; none: until the context is full
  std::optional<int64_t> max_total_tokens;  // prompt + output
  int64_t min_tokens = 0;

  double temperature = 1.0;  // 0: greedy
  int64_t top_k = 0;         // 0: off
  double top_p = 1.0;
  double min_p = 0.0;
  double xtc_threshold = 0.0;
  double xtc_probability = 0.0;

  double repetition_penalty = 1.0;
  double frequency_penalty = 0.0;
  double presence_penalty = 0.0;
  std::vector<std::pair<int32_t, float>> logit_bias;  // (token id, added to its logit)
  int64_t no_repeat_ngram = 0;                        // 0 or 1: off
  std::vector<std::vector<int32_t>> bad_words;        // never empty ones
  std::vector<int32_t> forced_tokens;                 // the first output tokens

  std::vector<int32_t> eos_token_ids;
  std::vector<int32_t> stop_token_ids;
  std::vector<std::vector<int32_t>> stop_sequences;  // never empty ones
  bool ignore_eos = false;                           // disables eos_token_ids only

  // Output follows a grammar: every token needs its mask (bit t%32 of word t/32: token t is allowed), and without it
  // none is sampled. The mask of the first token comes with the request, those of the others through
  // `Engine::set_mask`.
  bool is_constrained = false;
  std::vector<uint32_t> first_mask;

  // Vectors that stand in place of the embeddings of prompt tokens: one of Model::embedding_width numbers per position,
  // which rise. What is computed from them is never shared with another request.
  std::vector<int32_t> embedding_positions;
  std::vector<float> embeddings;  // [positions, embedding_width]

  std::vector<uint64_t> seeds;                 // one per sample
  std::optional<int64_t> num_logprobs;         // none: no logprobs; N: the chosen token's and the N most likely tokens'
  std::optional<int64_t> num_prompt_logprobs;  // the same for the tokens of the prompt, from the second on

  int64_t num_samples() const { return static_cast<int64_t>(seeds.size()); }
};

// Throws std::invalid_argument naming the field when a value could make the engine misbehave: NaN, a token id outside
// the vocabulary, an empty sequence, no sample.
void check_params(const SamplingParams& params, int64_t vocab_size);

enum class FinishReason : uint8_t { none, stop, length, cancelled, error };

// "stop", "length", "cancelled", "error"; nullptr for none.
const char* finish_reason_name(FinishReason reason);

}  // namespace fmo
