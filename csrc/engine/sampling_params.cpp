#include "engine/sampling_params.h"

#include <span>
#include <stdexcept>

namespace fmo {
namespace {

// False for NaN, unlike `!(value < low || value > high)`.
void require_range(const char* field, double value, double low, double high) {
  if (low <= value && value <= high) return;
  throw std::invalid_argument(std::string(field) + " is " + std::to_string(value) + ", expected a number from " +
                              std::to_string(low) + " to " + std::to_string(high));
}

void require_token_id(const char* field, int64_t token_id, int64_t vocab_size) {
  if (0 <= token_id && token_id < vocab_size) return;
  throw std::invalid_argument(std::string(field) + " holds token id " + std::to_string(token_id) + ", expected 0 to " +
                              std::to_string(vocab_size - 1));
}

void require_token_ids(const char* field, std::span<const int32_t> token_ids, int64_t vocab_size) {
  for (const int32_t token_id : token_ids) require_token_id(field, token_id, vocab_size);
}

void require_sequences(const char* field, const std::vector<std::vector<int32_t>>& sequences, int64_t vocab_size) {
  for (const auto& sequence : sequences) {
    if (sequence.empty()) {
      throw std::invalid_argument(std::string(field) + " holds an empty sequence, expected at least one token");
    }
    require_token_ids(field, sequence, vocab_size);
  }
}

}  // namespace

void check_params(const SamplingParams& params, int64_t vocab_size) {
  constexpr double kMaxTokens = 1e9, kMaxFactor = 1e6;
  require_range("max_tokens", static_cast<double>(params.max_tokens.value_or(1)), 1, kMaxTokens);
  require_range("max_total_tokens", static_cast<double>(params.max_total_tokens.value_or(1)), 1, kMaxTokens);
  require_range("min_tokens", static_cast<double>(params.min_tokens), 0, kMaxTokens);
  require_range("temperature", params.temperature, 0, kMaxFactor);
  require_range("top_k", static_cast<double>(params.top_k), 0, kMaxTokens);
  require_range("top_p", params.top_p, 0, 1);
  require_range("min_p", params.min_p, 0, 1);
  require_range("xtc_threshold", params.xtc_threshold, 0, 1);
  require_range("xtc_probability", params.xtc_probability, 0, 1);
  require_range("repetition_penalty", params.repetition_penalty, 1e-6, kMaxFactor);
  require_range("frequency_penalty", params.frequency_penalty, -kMaxFactor, kMaxFactor);
  require_range("presence_penalty", params.presence_penalty, -kMaxFactor, kMaxFactor);
  require_range("no_repeat_ngram", static_cast<double>(params.no_repeat_ngram), 0, kMaxTokens);
  require_range("n", static_cast<double>(params.num_samples()), 1, kMaxFactor);
  require_range("logprobs", static_cast<double>(params.num_logprobs.value_or(0)), 0, static_cast<double>(vocab_size));
  require_range("prompt_logprobs", static_cast<double>(params.num_prompt_logprobs.value_or(0)), 0,
                static_cast<double>(vocab_size));
  for (const auto& [token_id, bias] : params.logit_bias) {
    require_token_id("logit_bias", token_id, vocab_size);
    require_range("logit_bias", bias, -kMaxFactor, kMaxFactor);
  }
  require_token_ids("forced_output_tokens", params.forced_tokens, vocab_size);
  require_token_ids("eos_token_ids", params.eos_token_ids, vocab_size);
  require_token_ids("stop_token_ids", params.stop_token_ids, vocab_size);
  require_sequences("stop_token_sequences", params.stop_sequences, vocab_size);
  require_sequences("bad_words_ids", params.bad_words, vocab_size);
}

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::none:
      return nullptr;
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::error:
      return "error";
  }
  return nullptr;
}

}  // namespace fmo
