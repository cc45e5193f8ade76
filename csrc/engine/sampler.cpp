#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/random.h"
#include "engine/row_math.h"
#include "engine/stop_rules.h"

namespace fmo {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

enum Draw : uint64_t { kDrawToken = 0, kDrawXtc = 1 };

int64_t num_outputs(const SampleInput& input) {
  return static_cast<int64_t>(input.tokens.size()) - input.num_prompt_tokens;
}

// More likely first, ties: lowest id first.
struct MoreLikely {
  template <typename C>
  bool operator()(const C& a, const C& b) const {
    return a.logit != b.logit ? a.logit > b.logit : a.token_id < b.token_id;
  }
};

}  // namespace

Sampler::Sampler(int64_t vocab_size)
    : vocab_size_(vocab_size),
      cleaned_(static_cast<size_t>(vocab_size)),
      processed_(static_cast<size_t>(vocab_size)),
      scaled_(static_cast<size_t>(vocab_size)),
      weights_(static_cast<size_t>(vocab_size)),
      counts_(static_cast<size_t>(vocab_size), 0) {
  candidates_.reserve(static_cast<size_t>(vocab_size));
}

void Sampler::sample(const SampleInput& input, SampleResult& result) {
  result.error = {};
  result.top_logprobs.clear();
  const std::span<const float> raw(input.logits, static_cast<size_t>(vocab_size_));
  const RowMax raw_max = row_max(raw);
  result.is_bad_row = raw_max.has_nan || !std::isfinite(raw_max.value);
  if (!result.is_bad_row) return sample_sound_row(input, raw_max.value, result);
  result.error =
      raw_max.has_nan ? "the model computed a NaN for this token" : "the model computed no finite score for this token";
  if (!input.ignores_bad_scores) return;
  std::ranges::transform(raw, cleaned_.begin(), [](float logit) { return std::isfinite(logit) ? logit : kMasked; });
  const float cleaned_max = row_max(cleaned_).value;
  if (!std::isfinite(cleaned_max)) return;
  result.error = {};
  SampleInput cleaned = input;
  cleaned.logits = cleaned_.data();
  sample_sound_row(cleaned, cleaned_max, result);
}

void Sampler::sample_sound_row(const SampleInput& input, float raw_max, SampleResult& result) {
  const std::span<const float> raw(input.logits, static_cast<size_t>(vocab_size_));
  const SamplingParams& params = *input.params;
  const auto output_idx = static_cast<size_t>(num_outputs(input));
  if (input.next_prompt_token) {
    result.token_id = *input.next_prompt_token;
  } else if (output_idx < params.forced_tokens.size()) {
    result.token_id = params.forced_tokens[output_idx];
  } else {
    const bool is_processed = has_processors(input);
    if (is_processed) copy_and_process(input);
    const std::span<const float> logits = is_processed ? std::span<const float>(processed_) : raw;
    const float max_logit = is_processed ? row_max(logits).value : raw_max;
    if (!std::isfinite(max_logit)) {
      result.error = max_logit == kMasked
                         ? "every token is excluded by bad words, n-gram, minimum length or output format"
                         : "a penalty or logit_bias made a score infinite";
      return;
    }
    result.token_id = params.temperature > 0.0 ? draw(input, logits.data(), max_logit)
                                               : static_cast<int32_t>(first_index_of(logits, max_logit));
  }
  if (input.num_logprobs()) add_logprobs(input, raw_max, result);
}

bool Sampler::has_processors(const SampleInput& input) const {
  const SamplingParams& params = *input.params;
  return params.repetition_penalty != 1.0 || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0 ||
         !params.logit_bias.empty() || params.no_repeat_ngram > 1 || !params.bad_words.empty() ||
         num_outputs(input) < params.min_tokens || !input.allowed_bits.empty();
}

void Sampler::copy_and_process(const SampleInput& input) {
  const SamplingParams& params = *input.params;
  std::copy_n(input.logits, vocab_size_, processed_.begin());
  if (params.repetition_penalty != 1.0) apply_repetition_penalty(input);
  if (params.frequency_penalty != 0.0 || params.presence_penalty != 0.0) apply_count_penalties(input);
  for (const auto& [token_id, bias] : params.logit_bias) processed_[static_cast<size_t>(token_id)] += bias;
  if (params.no_repeat_ngram > 1) mask_repeated_ngrams(input);
  mask_sequence_ends(input.tokens, params.bad_words);
  if (num_outputs(input) < params.min_tokens) mask_endings(input);
  if (!input.allowed_bits.empty()) mask_disallowed(input.allowed_bits);
}

void Sampler::apply_repetition_penalty(const SampleInput& input) {
  const auto penalty = static_cast<float>(input.params->repetition_penalty);
  for (const int32_t token_id : input.tokens) {
    if (counts_[static_cast<size_t>(token_id)]++ > 0) continue;
    float& logit = processed_[static_cast<size_t>(token_id)];
    logit = logit < 0.0f ? logit * penalty : logit / penalty;
  }
  for (const int32_t token_id : input.tokens) counts_[static_cast<size_t>(token_id)] = 0;
}

void Sampler::apply_count_penalties(const SampleInput& input) {
  const auto frequency = static_cast<float>(input.params->frequency_penalty);
  const auto presence = static_cast<float>(input.params->presence_penalty);
  const auto output = input.tokens.subspan(static_cast<size_t>(input.num_prompt_tokens));
  for (const int32_t token_id : output) ++counts_[static_cast<size_t>(token_id)];
  for (const int32_t token_id : output) {
    int32_t& count = counts_[static_cast<size_t>(token_id)];
    if (count == 0) continue;  // done at its first occurrence
    processed_[static_cast<size_t>(token_id)] -= frequency * static_cast<float>(count) + presence;
    count = 0;
  }
}

// Masks every token that would complete an n-gram which prompt and output already contain.
void Sampler::mask_repeated_ngrams(const SampleInput& input) {
  const std::span<const int32_t> tokens = input.tokens;
  const auto prefix_len = static_cast<size_t>(input.params->no_repeat_ngram - 1);
  if (tokens.size() <= prefix_len) return;
  const auto tail = tokens.last(prefix_len);
  for (size_t start = 0; start + prefix_len < tokens.size(); ++start) {
    if (std::equal(tail.begin(), tail.end(), tokens.begin() + static_cast<std::ptrdiff_t>(start))) {
      processed_[static_cast<size_t>(tokens[start + prefix_len])] = kMasked;
    }
  }
}

// Masks the last token of every sequence whose other tokens end `tokens`.
void Sampler::mask_sequence_ends(std::span<const int32_t> tokens, const std::vector<std::vector<int32_t>>& sequences) {
  for (const auto& sequence : sequences) {
    const auto prefix = std::span<const int32_t>(sequence).first(sequence.size() - 1);
    if (ends_with(tokens, prefix)) processed_[static_cast<size_t>(sequence.back())] = kMasked;
  }
}

// Masks what would end the sample: it has not reached min_tokens.
void Sampler::mask_endings(const SampleInput& input) {
  const SamplingParams& params = *input.params;
  if (!params.ignore_eos) {
    for (const int32_t token_id : params.eos_token_ids) processed_[static_cast<size_t>(token_id)] = kMasked;
  }
  for (const int32_t token_id : params.stop_token_ids) processed_[static_cast<size_t>(token_id)] = kMasked;
  const auto output = input.tokens.subspan(static_cast<size_t>(input.num_prompt_tokens));
  mask_sequence_ends(output, params.stop_sequences);
}

void Sampler::mask_disallowed(std::span<const uint32_t> allowed_bits) {
  for (size_t token_id = 0; token_id < processed_.size(); ++token_id) {
    const size_t word = token_id / 32;
    const bool is_allowed = word < allowed_bits.size() && (allowed_bits[word] >> (token_id % 32) & 1u) != 0;
    if (!is_allowed) processed_[token_id] = kMasked;
  }
}

int32_t Sampler::draw(const SampleInput& input, const float* logits, float max_logit) {
  const SamplingParams& params = *input.params;
  // A temperature below the smallest normal float is greedy; 0/0 would be a NaN.
  const float temperature = std::max(static_cast<float>(params.temperature), std::numeric_limits<float>::min());
  const std::span<const float> row(logits, static_cast<size_t>(vocab_size_));
  total_weight_ = softmax_weights(row, max_logit, temperature, scaled_, weights_);

  const auto position = static_cast<uint64_t>(num_outputs(input));
  const double uniform = random_uniform(input.seed, position, kDrawToken);
  if (!has_top_k(params) && params.top_p >= 1.0 && params.min_p <= 0.0 && params.xtc_probability <= 0.0) {
    return draw_unfiltered(uniform);
  }
  collect_candidates(params);
  filter_candidates(params, random_uniform(input.seed, position, kDrawXtc));
  return draw_candidate(uniform);
}

int32_t Sampler::draw_unfiltered(double uniform) const {
  // Blocks first, then inside one block: the same sums in the same order every time, without a chain through the whole
  // row.
  constexpr size_t kBlock = 256;
  double target = uniform * total_weight_;
  int32_t last_possible = 0;
  for (size_t start = 0; start < weights_.size(); start += kBlock) {
    const size_t end = std::min(start + kBlock, weights_.size());
    double block_weight = 0.0;
    for (size_t idx = start; idx < end; ++idx) block_weight += static_cast<double>(weights_[idx]);
    if (target >= block_weight) {
      if (block_weight > 0.0) last_possible = static_cast<int32_t>(end - 1);
      target -= block_weight;
      continue;
    }
    for (size_t idx = start; idx < end; ++idx) {
      if (weights_[idx] <= 0.0f) continue;
      last_possible = static_cast<int32_t>(idx);
      target -= static_cast<double>(weights_[idx]);
      if (target < 0.0) return last_possible;
    }
  }
  // Rounding left a rest beyond the last token: take the last one that has a weight.
  while (last_possible > 0 && weights_[static_cast<size_t>(last_possible)] <= 0.0f) --last_possible;
  return last_possible;
}

// Every token that the filters could keep, in no order. All filters keep a head of the order of likelihood, so what
// falls short of one of them may be left out, as long as the total weight that top_p refers to stays right.
void Sampler::collect_candidates(const SamplingParams& params) {
  float min_scaled = -std::numeric_limits<float>::infinity();
  double min_weight = 0.0;
  if (has_top_k(params)) {
    min_scaled = kth_largest_bound(scaled_, params.top_k, piece_max_);
  } else {
    // Tokens below this weight together weigh at most half of what top_p may drop, so none of them is in its head.
    const double negligible = 0.5 * (1.0 - params.top_p) * total_weight_ / static_cast<double>(vocab_size_);
    min_weight = std::max(negligible, 0.5 * params.min_p);  // half: safe against rounding
  }
  const auto least = static_cast<float>(min_weight);
  candidates_.clear();
  num_sorted_ = 0;
  for (size_t idx = 0; idx < weights_.size(); ++idx) {
    if (weights_[idx] <= 0.0f || weights_[idx] < least || scaled_[idx] < min_scaled) continue;
    candidates_.push_back({scaled_[idx], weights_[idx], static_cast<int32_t>(idx)});
  }
}

void Sampler::filter_candidates(const SamplingParams& params, double xtc_uniform) {
  if (has_top_k(params)) keep_top_k(params.top_k);
  if (params.top_p < 1.0) keep_top_p(params.top_p);
  if (params.min_p > 0.0) keep_min_p(params.min_p);
  if (xtc_uniform < params.xtc_probability) exclude_top_choices(params.xtc_threshold);
}

bool Sampler::has_top_k(const SamplingParams& params) const { return params.top_k > 0 && params.top_k < vocab_size_; }

// Sorts as far as it is asked for, in growing pieces: usually a short head decides.
const Sampler::Candidate& Sampler::sorted_candidate(size_t idx) {
  while (num_sorted_ <= idx) {
    const size_t end = std::min(candidates_.size(), std::max<size_t>(64, 4 * num_sorted_));
    const auto first = candidates_.begin() + static_cast<std::ptrdiff_t>(num_sorted_);
    const auto last = candidates_.begin() + static_cast<std::ptrdiff_t>(end);
    if (end < candidates_.size()) std::nth_element(first, last, candidates_.end(), MoreLikely{});
    std::sort(first, last, MoreLikely{});
    num_sorted_ = end;
  }
  return candidates_[idx];
}

void Sampler::truncate_candidates(size_t num_kept) {
  candidates_.resize(num_kept);
  num_sorted_ = std::min(num_sorted_, num_kept);
}

double Sampler::sum_of_sorted_candidates() {
  double total = 0.0;
  for (size_t idx = 0; idx < candidates_.size(); ++idx) total += static_cast<double>(sorted_candidate(idx).weight);
  return total;
}

void Sampler::keep_top_k(int64_t top_k) {
  const size_t num_kept = std::min(static_cast<size_t>(top_k), candidates_.size());
  sorted_candidate(num_kept - 1);
  truncate_candidates(num_kept);
  total_weight_ = sum_of_sorted_candidates();
}

void Sampler::keep_top_p(double top_p) {
  double cumulative = 0.0;
  size_t num_kept = 0;
  while (num_kept < candidates_.size() && (num_kept == 0 || cumulative < top_p * total_weight_)) {
    cumulative += static_cast<double>(sorted_candidate(num_kept++).weight);
  }
  truncate_candidates(num_kept);
  total_weight_ = cumulative;
}

void Sampler::keep_min_p(double min_p) {
  const double least = min_p * static_cast<double>(sorted_candidate(0).weight);
  size_t num_kept = 1;
  while (num_kept < candidates_.size() && static_cast<double>(sorted_candidate(num_kept).weight) >= least) ++num_kept;
  truncate_candidates(num_kept);
  total_weight_ = sum_of_sorted_candidates();
}

void Sampler::exclude_top_choices(double threshold) {
  const double least = threshold * total_weight_;
  size_t num_above = 0;
  double weight_above = 0.0;  // without the last of them, which stays
  while (num_above < candidates_.size() && static_cast<double>(sorted_candidate(num_above).weight) >= least) {
    if (num_above > 0) weight_above += static_cast<double>(candidates_[num_above - 1].weight);
    ++num_above;
  }
  if (num_above < 2) return;
  candidates_.erase(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(num_above - 1));
  num_sorted_ -= num_above - 1;
  total_weight_ -= weight_above;
}

int32_t Sampler::draw_candidate(double uniform) {
  double target = uniform * total_weight_;
  for (size_t idx = 0; idx < candidates_.size(); ++idx) {
    target -= static_cast<double>(sorted_candidate(idx).weight);
    if (target < 0.0) return candidates_[idx].token_id;
  }
  return candidates_.back().token_id;  // rounding left a rest; everything is sorted by now
}

void Sampler::add_logprobs(const SampleInput& input, float max_logit, SampleResult& result) {
  const std::span<const float> row(input.logits, static_cast<size_t>(vocab_size_));
  const double log_total = std::log(sum_exp(row, max_logit));
  auto logprob = [&](int32_t token_id) {
    const double shifted = static_cast<double>(row[static_cast<size_t>(token_id)]) - static_cast<double>(max_logit);
    return static_cast<float>(shifted - log_total);
  };
  result.logprob = logprob(result.token_id);

  const int64_t num_wanted = *input.num_logprobs();
  if (num_wanted == 0) return;
  const float least = kth_largest_bound(row, num_wanted, piece_max_);
  candidates_.clear();
  num_sorted_ = 0;
  for (size_t idx = 0; idx < row.size(); ++idx) {
    if (row[idx] >= least) candidates_.push_back({row[idx], 0.0f, static_cast<int32_t>(idx)});
  }
  for (size_t rank = 0; rank < static_cast<size_t>(num_wanted); ++rank) {
    const int32_t token_id = sorted_candidate(rank).token_id;
    result.top_logprobs.emplace_back(token_id, logprob(token_id));
  }
}

}  // namespace fmo
