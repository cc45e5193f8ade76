#include "engine/sequence.h"

#include <algorithm>

namespace fmo {

std::unique_ptr<Request> make_request(int64_t id, std::span<const int32_t> prompt, SamplingParams params,
                                      int64_t max_total_len) {
  // Room for a usual answer at once; a longer one grows by doubling.
  constexpr int64_t kReservedOutputTokens = 4096;
  auto request = std::make_unique<Request>();
  request->id = id;
  request->params = std::move(params);
  request->num_prompt_tokens = static_cast<int64_t>(prompt.size());
  request->max_total_len = max_total_len;
  request->num_open_samples = request->num_waiting_samples = request->params.num_samples();
  const int64_t reserved = std::min(max_total_len, request->num_prompt_tokens + kReservedOutputTokens);
  request->samples.resize(static_cast<size_t>(request->num_open_samples));
  for (size_t sample_idx = 0; sample_idx < request->samples.size(); ++sample_idx) {
    Sequence& sequence = request->samples[sample_idx];
    sequence.request = request.get();
    sequence.sample_idx = static_cast<int32_t>(sample_idx);
    sequence.tokens.reserve(static_cast<size_t>(reserved));
    sequence.tokens.assign(prompt.begin(), prompt.end());
    if (!request->params.is_constrained) continue;
    sequence.mask = request->params.first_mask;
    sequence.mask_position = 0;
  }
  return request;
}

}  // namespace fmo
