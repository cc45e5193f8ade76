#include "engine/sequence.h"

#include <algorithm>

#include "base/error.h"

namespace fmo {

RequestTable::node_type make_request(std::span<const int32_t> prompt, SamplingParams params, int64_t max_total_len,
                                     int64_t block_size, int64_t ngram_size) {
  // Room for a usual answer at once; a longer one grows by doubling.
  constexpr int64_t kReservedOutputTokens = 4096;
  auto request = std::make_unique<Request>();
  request->params = std::move(params);
  request->num_prompt_tokens = static_cast<int64_t>(prompt.size());
  request->max_total_len = max_total_len;
  request->num_open_samples = request->params.num_samples();
  const int64_t num_reserved = std::min(max_total_len, request->num_prompt_tokens + kReservedOutputTokens);
  request->samples.resize(static_cast<size_t>(request->num_open_samples));
  if (request->params.num_prompt_logprobs) request->prompt_scores.reserve(prompt.size() - 1);
  WaitingSet places;
  for (size_t sample_idx = 0; sample_idx < request->samples.size(); ++sample_idx) {
    Sequence& sequence = request->samples[sample_idx];
    sequence.request = request.get();
    sequence.sample_idx = static_cast<int32_t>(sample_idx);
    sequence.tokens.reserve(static_cast<size_t>(num_reserved));
    sequence.tokens.assign(prompt.begin(), prompt.end());
    sequence.blocks.reserve(static_cast<size_t>(ceil_div(num_reserved, block_size)));
    sequence.place = places.extract(places.insert(&sequence).first);
    if (!request->params.is_constrained) {  // the mask of a guessed token cannot be known
      sequence.proposer = NgramProposer(ngram_size, num_reserved);
      continue;
    }
    sequence.mask = request->params.first_mask;
    sequence.mask_position = 0;
  }
  RequestTable table;
  table.emplace(0, std::move(request));
  return table.extract(table.begin());
}

}  // namespace fmo
