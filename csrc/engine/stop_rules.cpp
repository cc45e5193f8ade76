#include "engine/stop_rules.h"

#include <algorithm>

namespace fmo {
namespace {

bool contains(const std::vector<int32_t>& token_ids, int32_t token_id) {
  return std::find(token_ids.begin(), token_ids.end(), token_id) != token_ids.end();
}

bool is_stopped_by_tokens(const Sequence& sequence) {
  const SamplingParams& params = sequence.request->params;
  const int32_t last = sequence.tokens.back();
  if (!params.ignore_eos && contains(params.eos_token_ids, last)) return true;
  if (contains(params.stop_token_ids, last)) return true;
  const auto num_prompt = static_cast<size_t>(sequence.request->num_prompt_tokens);
  const auto output = std::span(sequence.tokens).subspan(num_prompt);
  return std::any_of(params.stop_sequences.begin(), params.stop_sequences.end(),
                     [&](const auto& tail) { return ends_with(output, tail); });
}

}  // namespace

FinishReason stop_reason(const Sequence& sequence) {
  const int64_t num_forced = static_cast<int64_t>(sequence.request->params.forced_tokens.size());
  const bool is_forced_on = num_output_tokens(sequence) < num_forced;  // more forced tokens follow
  if (!is_forced_on && is_stopped_by_tokens(sequence)) return FinishReason::stop;
  if (sequence.num_tokens() >= sequence.request->max_total_len) return FinishReason::length;
  return FinishReason::none;
}

}  // namespace fmo
