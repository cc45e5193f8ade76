#include "engine/engine.h"

#include <algorithm>
#include <exception>
#include <limits>

#include "base/error.h"
#include "engine/stop_rules.h"

namespace fmo {
namespace {

constexpr int kMaxSamplingThreads = 8;  // each has scratch of the size of the vocabulary
constexpr int64_t kMinSharedJobs = 4;   // fewer rows are not worth waking the threads

void require_positive(const char* name, int64_t value) {
  if (value >= 1) return;
  throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ", expected at least 1");
}

// A constrained sequence is never sampled without the mask of just this position.
bool is_mask_missing(const Sequence& sequence) {
  return sequence.request->params.is_constrained && sequence.mask_position != num_output_tokens(sequence);
}

EngineOptions checked(const EngineOptions& options) {
  require_positive("vocab_size", options.vocab_size);
  require_positive("block_size", options.scheduler.block_size);
  require_positive("num_blocks", options.scheduler.num_blocks);
  if (options.max_context_len < 2) {
    throw std::invalid_argument("max_context_len is " + std::to_string(options.max_context_len) +
                                ", expected at least 2: one token of prompt and one of output");
  }
  return options;
}

}  // namespace

Engine::Engine(const EngineOptions& options, Model model)
    : options_(checked(options)),
      model_(std::move(model)),
      scheduler_(options.scheduler),
      sample_on_thread_([this](int thread) { sample_jobs(thread); }),
      jobs_(static_cast<size_t>(std::max(options.scheduler.max_num_seqs, options.scheduler.max_num_logits))) {
  const int num_samplers = std::clamp(model_.run ? model_.num_threads : 1, 1, kMaxSamplingThreads);
  samplers_.reserve(static_cast<size_t>(num_samplers));
  for (int idx = 0; idx < num_samplers; ++idx) samplers_.emplace_back(options.vocab_size);
  const auto max_num_seqs = static_cast<size_t>(options.scheduler.max_num_seqs);
  const auto max_num_tokens = static_cast<size_t>(options.scheduler.max_num_tokens);
  max_blocks_per_seq_ = ceil_div(max_total_len(), options.scheduler.block_size);
  input_ids_.reserve(max_num_tokens);
  position_ids_.reserve(max_num_tokens);
  embeddings_.reserve(max_num_tokens);
  cu_seqlens_.reserve(max_num_seqs + 1);
  context_lens_.reserve(max_num_seqs);
  adapter_slots_.reserve(max_num_seqs);
  logit_rows_.reserve(std::max(max_num_seqs, static_cast<size_t>(options.scheduler.max_num_logits)));
  block_tables_.resize(max_num_seqs * static_cast<size_t>(max_blocks_per_seq_));
  events_.reserve(2 * max_num_seqs);
  finished_ids_.reserve(2 * max_num_seqs);
}

// The last token is never computed, so it needs no place in the cache.
int64_t Engine::max_total_len() const {
  const int64_t num_cache_tokens = options_.scheduler.num_blocks * options_.scheduler.block_size;
  return std::min(options_.max_context_len, num_cache_tokens + 1);
}

RequestTable::node_type Engine::make_checked_request(std::span<const int32_t> prompt, SamplingParams params,
                                                     const CacheScope& cache_scope, int32_t adapter_slot) const {
  check_params(params, options_.vocab_size);
  if (prompt.empty()) throw std::invalid_argument("the prompt has no token, expected at least one");
  for (const int32_t token_id : prompt) {
    if (token_id < 0 || token_id >= options_.vocab_size) {
      throw std::invalid_argument("the prompt holds token id " + std::to_string(token_id) + ", expected 0 to " +
                                  std::to_string(options_.vocab_size - 1));
    }
  }
  const auto num_words = static_cast<int64_t>(params.first_mask.size());
  if (params.is_constrained && num_words != num_mask_words()) {
    throw std::invalid_argument("the first mask of a constrained request has " + std::to_string(num_words) +
                                " words, expected " + std::to_string(num_mask_words()));
  }
  check_embeddings(params, static_cast<int64_t>(prompt.size()));
  const int64_t total_len = total_len_limit(static_cast<int64_t>(prompt.size()), params);
  const SchedulerOptions& scheduler = options_.scheduler;
  auto request = make_request(prompt, std::move(params), total_len, scheduler.block_size, scheduler.ngram_size);
  request.mapped()->cache_scope = cache_scope;
  request.mapped()->adapter_slot = adapter_slot;
  return request;
}

void Engine::check_embeddings(const SamplingParams& params, int64_t num_prompt_tokens) const {
  const auto num_positions = static_cast<int64_t>(params.embedding_positions.size());
  if (static_cast<int64_t>(params.embeddings.size()) != num_positions * model_.embedding_width ||
      (num_positions > 0 && model_.embedding_width == 0)) {
    throw std::invalid_argument(std::to_string(params.embeddings.size()) + " numbers replace the embeddings of " +
                                std::to_string(num_positions) + " positions, each of which takes " +
                                std::to_string(model_.embedding_width));
  }
  int64_t previous = -1;
  for (const int32_t position : params.embedding_positions) {
    if (position <= previous || position >= num_prompt_tokens) {
      throw std::invalid_argument("an embedding is given for position " + std::to_string(position) + " after " +
                                  std::to_string(previous) + " of a prompt of " + std::to_string(num_prompt_tokens) +
                                  " tokens");
    }
    previous = position;
  }
}

int64_t Engine::total_len_limit(int64_t num_prompt_tokens, const SamplingParams& params) const {
  // What was asked for must fit; what was left open ends at the limit.
  std::optional<int64_t> wanted;
  auto tighten = [&](int64_t total_len) { wanted = std::min(wanted.value_or(total_len), total_len); };
  if (params.max_tokens) {
    tighten(num_prompt_tokens + *params.max_tokens);
  } else if (!params.forced_tokens.empty()) {
    tighten(num_prompt_tokens + static_cast<int64_t>(params.forced_tokens.size()));
  }
  if (params.max_total_tokens) tighten(*params.max_total_tokens);

  const int64_t needed = std::max(wanted.value_or(0), num_prompt_tokens + 1);
  if (needed > max_total_len()) {
    const bool is_context = needed > options_.max_context_len;
    throw RequestTooLargeError("the request needs " + std::to_string(needed) + " tokens (prompt " +
                               std::to_string(num_prompt_tokens) + " and output), but " +
                               (is_context
                                    ? "the context of the model holds " + std::to_string(options_.max_context_len)
                                    : "the KV cache holds requests of at most " + std::to_string(max_total_len())));
  }
  return wanted ? needed : max_total_len();
}

void Engine::add(int64_t id, RequestTable::node_type request) {
  request.key() = request.mapped()->id = id;
  scheduler_.add(*request.mapped());
  requests_.insert(std::move(request));
}

void Engine::cancel(int64_t request_id) {
  const auto found = requests_.find(request_id);
  if (found == requests_.end()) return;
  for (Sequence& sequence : found->second->samples) end_without_token(sequence, FinishReason::cancelled, {});
}

void Engine::cancel_sample(int64_t request_id, int32_t sample_idx) {
  Sequence* sequence = find_sample(request_id, sample_idx);
  if (sequence != nullptr) end_without_token(*sequence, FinishReason::cancelled, {});
}

void Engine::fail_sample(int64_t request_id, int32_t sample_idx, const std::string& error) {
  Sequence* sequence = find_sample(request_id, sample_idx);
  if (sequence != nullptr) end_without_token(*sequence, FinishReason::error, error);
}

void Engine::set_mask(int64_t request_id, int32_t sample_idx, int64_t position, std::vector<uint32_t> mask) {
  Sequence* sequence = find_sample(request_id, sample_idx);
  if (sequence == nullptr || sequence->state == SequenceState::finished) return;
  sequence->mask = std::move(mask);
  sequence->mask_position = position;
  sequence->is_waiting_for_mask = false;
}

Sequence* Engine::find_sample(int64_t request_id, int32_t sample_idx) {
  const auto found = requests_.find(request_id);
  if (found == requests_.end()) return nullptr;
  auto& samples = found->second->samples;
  const bool exists = sample_idx >= 0 && static_cast<size_t>(sample_idx) < samples.size();
  return exists ? &samples[static_cast<size_t>(sample_idx)] : nullptr;
}

bool Engine::begin_step() {
  forget_finished();
  if (!has_work()) return false;
  chunks_ = scheduler_.schedule();
  copy_blocks();
  is_stalled_ = chunks_.empty() && scheduler_.is_waiting_for_masks();
  if (is_stalled_) return false;
  if (chunks_.empty()) {
    throw std::logic_error("scheduler: requests are open but none can run");
  }
  build_batch();
  forward_error_.clear();
  try {
    logits_ = model_.forward(batch_);
  } catch (const std::exception& error) {
    forward_error_ = std::string("the model failed: ") + error.what();
  }
  return true;
}

void Engine::copy_blocks() {
  for (const BlockCopy& copy : scheduler_.block_copies()) {
    if (copy.source != copy.target) model_.copy_block(copy.source, copy.target);
  }
}

void Engine::finish_step() {
  sample_rows();
  int64_t logit_row = 0;
  std::span<SampleJob> jobs(jobs_);
  for (const Chunk& chunk : chunks_) {
    Sequence& sequence = *chunk.sequence;
    // Rows of samples cancelled during the forward still have their logits in the view.
    const bool is_cancelled = sequence.state != SequenceState::running;
    const int64_t first_sampled_row = logit_row + chunk.num_scored;
    logit_row += chunk.num_logit_rows();
    if (is_cancelled) continue;
    if (!forward_error_.empty()) {
      end_without_token(sequence, FinishReason::error, forward_error_);
      continue;
    }
    const bool has_sample = is_sampled(chunk);
    const auto scores = jobs.first(static_cast<size_t>(chunk.num_scored));
    jobs = jobs.subspan(scores.size());
    const SampleResult* first_sample = has_sample ? &jobs[0].result : nullptr;
    jobs = jobs.subspan(has_sample ? 1 : 0);
    if (!take_scores(sequence, scores)) continue;
    if (chunk.has_logits && !has_sample) {
      wait_for_mask(chunk);
      continue;
    }
    if (has_sample) note_row(sequence, *first_sample);
    scheduler_.mark_computed(sequence, chunk.num_tokens);
    if (has_sample) take_samples(chunk, logits_.data + logits_.stride * first_sampled_row, *first_sample);
  }
  chunks_ = {};
  ++counters_.num_steps;
  forget_finished();
}

bool Engine::is_sampled(const Chunk& chunk) const {
  const Sequence& sequence = *chunk.sequence;
  return chunk.has_logits && sequence.state == SequenceState::running && forward_error_.empty() &&
         !is_mask_missing(sequence);
}

// Rows depend on their own sequence only, so they are shared out to the threads of the model; what follows from their
// tokens is done in order.
void Engine::sample_rows() {
  num_jobs_ = 0;
  int64_t logit_row = 0;
  for (const Chunk& chunk : chunks_) {
    const Sequence& sequence = *chunk.sequence;
    const int64_t num_scored =
        sequence.state == SequenceState::running && forward_error_.empty() ? chunk.num_scored : 0;
    for (int64_t idx = 0; idx < num_scored; ++idx) {
      add_job(sequence, logit_row + idx, sequence.tokens[static_cast<size_t>(sequence.request->num_scored + idx + 1)]);
    }
    if (is_sampled(chunk)) add_job(sequence, logit_row + chunk.num_scored, std::nullopt);
    logit_row += chunk.num_logit_rows();
  }
  next_job_ = 0;
  if (samplers_.size() > 1 && num_jobs_ >= kMinSharedJobs) return model_.run(sample_on_thread_);
  sample_jobs(0);
}

void Engine::add_job(const Sequence& sequence, int64_t logit_row, std::optional<int32_t> next_prompt_token) {
  SampleJob& job = jobs_[static_cast<size_t>(num_jobs_++)];
  job.input = sample_input(sequence, logits_.data + logits_.stride * logit_row);
  job.input.next_prompt_token = next_prompt_token;
  // Here, because nothing may be allocated, and so fail, on the threads.
  job.result.top_logprobs.reserve(static_cast<size_t>(job.input.num_logprobs().value_or(0)));
}

void Engine::sample_jobs(int thread) {
  if (static_cast<size_t>(thread) >= samplers_.size()) return;
  for (int64_t idx = next_job_++; idx < num_jobs_; idx = next_job_++) {
    SampleJob& job = jobs_[static_cast<size_t>(idx)];
    samplers_[static_cast<size_t>(thread)].sample(job.input, job.result);
  }
}

// The last row stays pending: it is computed again when the mask is there.
void Engine::wait_for_mask(const Chunk& chunk) {
  if (chunk.num_tokens > 1) scheduler_.mark_computed(*chunk.sequence, chunk.num_tokens - 1);
  chunk.sequence->is_waiting_for_mask = true;
}

void Engine::cancel_all() { end_all(FinishReason::cancelled, {}); }

void Engine::fail_all(const std::string& error) { end_all(FinishReason::error, error); }

void Engine::end_all(FinishReason reason, const std::string& error) {
  chunks_ = {};
  for (const auto& [id, request] : requests_) {
    for (Sequence& sequence : request->samples) end_without_token(sequence, reason, error);
  }
  forget_finished();
}

void Engine::build_batch() {
  input_ids_.clear();
  position_ids_.clear();
  context_lens_.clear();
  adapter_slots_.clear();
  embeddings_.clear();
  logit_rows_.clear();
  cu_seqlens_.assign(1, 0);
  for (const Chunk& chunk : chunks_) append_rows(chunk);
  batch_.num_tokens = static_cast<int32_t>(input_ids_.size());
  batch_.num_seqs = static_cast<int32_t>(chunks_.size());
  batch_.num_logits = static_cast<int32_t>(logit_rows_.size());
  batch_.input_ids = input_ids_.data();
  batch_.position_ids = position_ids_.data();
  batch_.cu_seqlens = cu_seqlens_.data();
  batch_.context_lens = context_lens_.data();
  batch_.block_tables = block_tables_.data();
  batch_.block_table_stride = static_cast<int32_t>(max_blocks_per_seq_);
  batch_.logit_rows = logit_rows_.data();
  const bool has_adapters = std::ranges::any_of(adapter_slots_, [](int32_t slot) { return slot >= 0; });
  batch_.adapter_slots = has_adapters ? adapter_slots_.data() : nullptr;
  if (!embeddings_.empty()) embeddings_.resize(input_ids_.size(), nullptr);
  batch_.embeddings = embeddings_.empty() ? nullptr : embeddings_.data();
}

// Of the rows that come next; nothing is kept for steps in which no row has an embedding of its own.
void Engine::append_embeddings(const Chunk& chunk) {
  const SamplingParams& params = chunk.sequence->request->params;
  const auto& positions = params.embedding_positions;
  const int64_t begin = chunk.sequence->num_computed;
  for (auto at = std::ranges::lower_bound(positions, begin); at != positions.end(); ++at) {
    if (*at >= begin + chunk.num_tokens) return;
    embeddings_.resize(input_ids_.size() + static_cast<size_t>(*at - begin), nullptr);
    embeddings_.push_back(params.embeddings.data() + (at - positions.begin()) * model_.embedding_width);
  }
}

void Engine::append_rows(const Chunk& chunk) {
  const Sequence& sequence = *chunk.sequence;
  int32_t* table = block_tables_.data() + static_cast<int64_t>(context_lens_.size()) * max_blocks_per_seq_;
  std::copy(sequence.blocks.begin(), sequence.blocks.end(), table);
  context_lens_.push_back(static_cast<int32_t>(sequence.num_computed));
  adapter_slots_.push_back(sequence.request->adapter_slot);
  append_embeddings(chunk);
  const auto first = sequence.tokens.begin() + sequence.num_computed;
  input_ids_.insert(input_ids_.end(), first, first + chunk.num_tokens);
  const auto guesses = sequence.proposer.proposed().first(static_cast<size_t>(chunk.num_proposed));
  input_ids_.insert(input_ids_.end(), guesses.begin(), guesses.end());
  for (int64_t row = 0; row < chunk.num_rows(); ++row) {
    position_ids_.push_back(static_cast<int32_t>(sequence.num_computed + row));
  }
  const auto num_rows = static_cast<int32_t>(input_ids_.size());
  cu_seqlens_.push_back(num_rows);
  const auto first_scored =
      num_rows - chunk.num_rows() + std::max<int64_t>(0, sequence.request->num_scored - sequence.num_computed);
  for (int64_t idx = 0; idx < chunk.num_scored; ++idx) {
    logit_rows_.push_back(static_cast<int32_t>(first_scored + idx));
  }
  for (auto idx = static_cast<int32_t>(chunk.num_sampled_rows()); idx > 0; --idx) logit_rows_.push_back(num_rows - idx);
  const bool is_decode = chunk.num_tokens == 1 && num_output_tokens(sequence) > 0 && chunk.has_logits;
  counters_.num_prompt_tokens += is_decode ? 0 : chunk.num_tokens;
}

// False: one of the rows was bad, which has ended the sample.
bool Engine::take_scores(Sequence& sequence, std::span<SampleJob> jobs) {
  Request& request = *sequence.request;
  for (SampleJob& job : jobs) {
    SampleResult& result = job.result;
    note_row(sequence, result);
    if (!result.error.empty() && !options_.ignores_bad_scores) {
      end_without_token(sequence, FinishReason::error,
                        std::string(result.error) + " (prompt token " + std::to_string(request.num_scored + 1) + ")");
      return false;
    }
    if (!result.error.empty()) result.logprob = -std::numeric_limits<float>::infinity();
    request.prompt_scores.push_back({result.logprob, result.top_logprobs});
    ++request.num_scored;
  }
  return true;
}

void Engine::note_row(Sequence& sequence, const SampleResult& result) {
  counters_.num_bad_rows += result.is_bad_row;
  sequence.has_bad_rows |= result.is_bad_row;
}

// The first row gives a token in any case; each further one only if its guess was the token before.
void Engine::take_samples(const Chunk& chunk, const float* logits, const SampleResult& first) {
  Sequence& sequence = *chunk.sequence;
  take_sample(sequence, first);
  if (chunk.num_proposed == 0) return;
  int64_t num_accepted = 0;
  while (num_accepted < chunk.num_proposed && sequence.state == SequenceState::running &&
         sequence.tokens.back() == sequence.proposer.proposed()[static_cast<size_t>(num_accepted)]) {
    samplers_[0].sample(sample_input(sequence, logits + ++num_accepted * logits_.stride), further_sample_);
    note_row(sequence, further_sample_);
    scheduler_.mark_computed(sequence, 1);
    take_sample(sequence, further_sample_);
  }
  sequence.proposer.note_outcome(num_accepted, chunk.num_proposed, sequence.num_tokens());
  counters_.num_proposed_tokens += chunk.num_proposed;
  counters_.num_accepted_tokens += num_accepted;
}

SampleInput Engine::sample_input(const Sequence& sequence, const float* logits) const {
  const Request& request = *sequence.request;
  SampleInput input;
  input.logits = logits;
  input.tokens = sequence.tokens;
  input.num_prompt_tokens = request.num_prompt_tokens;
  input.params = &request.params;
  input.seed = request.params.seeds[static_cast<size_t>(sequence.sample_idx)];
  if (request.params.is_constrained) input.allowed_bits = sequence.mask;
  input.ignores_bad_scores = options_.ignores_bad_scores;
  return input;
}

void Engine::take_sample(Sequence& sequence, const SampleResult& sample) {
  const Request& request = *sequence.request;
  if (!sample.error.empty()) {
    if (sample.is_bad_row && options_.ignores_bad_scores) return end_without_token(sequence, FinishReason::stop, {});
    end_without_token(
        sequence, FinishReason::error,
        std::string(sample.error) + " (output token " + std::to_string(num_output_tokens(sequence)) + ")");
    return;
  }
  sequence.tokens.push_back(sample.token_id);
  ++counters_.num_generated_tokens;
  TokenEvent event;
  event.token_id = sample.token_id;
  if (request.params.num_logprobs) {
    event.logprob = sample.logprob;
    event.top_logprobs = sample.top_logprobs;
  }
  const FinishReason reason = stop_reason(sequence);
  if (reason != FinishReason::none) return finish_sample(sequence, reason, std::move(event));
  send(sequence, std::move(event));
}

void Engine::send(Sequence& sequence, TokenEvent event) {
  Request& request = *sequence.request;
  event.request_id = request.id;
  event.sample_idx = sequence.sample_idx;
  event.num_cached_tokens = sequence.num_cached;
  if (num_unscored(request) == 0) event.prompt_scores = std::move(request.prompt_scores);
  events_.push_back(std::move(event));
}

void Engine::finish_sample(Sequence& sequence, FinishReason reason, TokenEvent event) {
  Request& request = *sequence.request;
  scheduler_.finish(sequence, reason != FinishReason::error && !sequence.has_bad_rows);
  event.finish_reason = reason;
  send(sequence, std::move(event));
  ++counters_.num_finished_samples;
  if (reason == FinishReason::error) ++counters_.num_errors;
  if (request.num_open_samples == 0) finished_ids_.push_back(request.id);
}

void Engine::end_without_token(Sequence& sequence, FinishReason reason, const std::string& error) {
  if (sequence.state == SequenceState::finished) return;
  TokenEvent event;
  event.error = error;
  finish_sample(sequence, reason, std::move(event));
}

// Deferred, because the chunks of a step in flight point into the requests.
void Engine::forget_finished() {
  for (const int64_t id : finished_ids_) requests_.erase(id);
  finished_ids_.clear();
}

}  // namespace fmo
