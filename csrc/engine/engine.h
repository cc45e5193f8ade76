// The engine: schedule → forward → sample → stop rules → events, one step at a time. Single-threaded and deterministic:
// it owns no thread, reads no clock, and the tokens of a sample are a function of its prompt, parameters and seed
// alone. `StepLoop` puts it on a thread.
//
//   begin_step()    schedule, build the batch, run the model
//   (cancel…)       may come in between: the sample gets no token of this step and its blocks are free at once
//   finish_step()   sample, apply the stop rules, emit events
//
// A step may compute guesses of what a sequence will say next. Each row is sampled as if it were alone, and the first
// token that differs from its guess ends what the step gives to that sequence: guesses change the time, never a token.
//
// A bad row (NaN) ends its request; a model that throws ends the requests of that batch; the engine goes on in both
// cases. After warm-up a step allocates nothing, unless log-probabilities are asked for, a sample ends with an error or
// an answer outgrows the room that its request came with (kReservedOutputTokens).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "executor/batch.h"

namespace fmo {

struct LogitsView {
  const float* data = nullptr;  // [num_logits of the batch, stride], the first vocab_size of each row are logits
  int64_t stride = 0;
};

using ForwardFn = std::function<LogitsView(const Batch&)>;

using ThreadBody = std::function<void(int thread)>;

// What the engine needs of a model: a step, to copy the content of one KV block to another between steps, and its
// threads, on which rows are sampled. Without `run` the thread of the engine does it all.
struct Model {
  ForwardFn forward;
  std::function<void(int32_t source_block, int32_t target_block)> copy_block;
  int num_threads = 1;
  std::function<void(const ThreadBody&)> run;  // the body on every thread, which must not throw
  int64_t embedding_width = 0;                 // of the vectors of Batch::embeddings; 0: the model takes none
};

struct EngineOptions {
  SchedulerOptions scheduler;
  int64_t max_context_len = 0;  // prompt + output
  int64_t vocab_size = 0;
  // A logit that is NaN counts as a token that cannot be chosen, and a row without any number ends its sample with
  // FinishReason::stop. Else both end it with an error. Never is a token chosen by a NaN.
  bool ignores_bad_scores = false;
};

// The request can never run here. The message says which limit it exceeds.
class RequestTooLargeError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// One token of a sample, its end, or both.
struct TokenEvent {
  int64_t request_id = 0;
  int32_t sample_idx = 0;
  std::optional<int32_t> token_id;  // none: ended without a token
  std::optional<float> logprob;
  std::vector<std::pair<int32_t, float>> top_logprobs;
  FinishReason finish_reason = FinishReason::none;
  std::string error;  // set with FinishReason::error
  int64_t num_cached_tokens = 0;
  std::vector<TokenScore> prompt_scores;  // of tokens 1 … of the prompt, in the first event of the request
};

struct EngineCounters {
  int64_t num_steps = 0;
  int64_t num_prompt_tokens = 0;  // rows computed that were not the newest output token: prompts and recomputations
  int64_t num_generated_tokens = 0;
  int64_t num_finished_samples = 0;  // for any reason
  int64_t num_errors = 0;            // samples that ended with FinishReason::error
  int64_t num_proposed_tokens = 0;   // guesses that were computed, and those of them that came true
  int64_t num_accepted_tokens = 0;
  int64_t num_bad_rows = 0;  // sampled rows with a NaN, a +infinity or no finite score
};

class Engine {
 public:
  Engine(const EngineOptions& options, Model model);

  // Checks prompt and parameters and makes the request. Reads only the options, so any thread may call it.
  // Throws std::invalid_argument or RequestTooLargeError.
  RequestTable::node_type make_checked_request(std::span<const int32_t> prompt, SamplingParams params,
                                               const CacheScope& cache_scope, int32_t adapter_slot = -1) const;
  // Prompt + output of the largest request that fits.
  int64_t max_total_len() const;

  // Ids must rise from call to call: they are the order of arrival.
  void add(int64_t id, RequestTable::node_type request);
  // Unknown and finished ones are ignored: a cancellation may always come too late.
  void cancel(int64_t request_id);
  void cancel_sample(int64_t request_id, int32_t sample_idx);
  // Ends the sample with an error.
  void fail_sample(int64_t request_id, int32_t sample_idx, const std::string& error);
  // The mask of output token `position` of a constrained sample. A mask that is not awaited is ignored.
  void set_mask(int64_t request_id, int32_t sample_idx, int64_t position, std::vector<uint32_t> mask);
  int64_t num_mask_words() const { return (options_.vocab_size + 31) / 32; }

  // False: there was nothing to do, and finish_step must not be called.
  bool begin_step();
  void finish_step();
  void cancel_all();
  // Ends everything with an error. For a failure that is nobody's in particular.
  void fail_all(const std::string& error);

  bool has_work() const { return scheduler_.has_work(); }
  // Everything that runs waited for its mask when the last step began.
  bool is_stalled() const { return is_stalled_; }
  std::vector<TokenEvent>& events() { return events_; }  // of all steps since the caller last cleared it
  const Scheduler& scheduler() const { return scheduler_; }
  std::span<const Chunk> chunks() const { return chunks_; }  // of the step in flight
  const EngineCounters& counters() const { return counters_; }

 private:
  struct SampleJob {
    SampleInput input;
    SampleResult result;
  };

  int64_t total_len_limit(int64_t num_prompt_tokens, const SamplingParams& params) const;
  void copy_blocks();
  void build_batch();
  void append_rows(const Chunk& chunk);
  void append_embeddings(const Chunk& chunk);
  void check_embeddings(const SamplingParams& params, int64_t num_prompt_tokens) const;
  Sequence* find_sample(int64_t request_id, int32_t sample_idx);
  void wait_for_mask(const Chunk& chunk);
  bool is_sampled(const Chunk& chunk) const;
  SampleInput sample_input(const Sequence& sequence, const float* logits) const;
  void add_job(const Sequence& sequence, int64_t logit_row, std::optional<int32_t> next_prompt_token);
  void sample_rows();
  void sample_jobs(int thread);
  void note_row(Sequence& sequence, const SampleResult& result);
  bool take_scores(Sequence& sequence, std::span<SampleJob> jobs);
  void take_samples(const Chunk& chunk, const float* logits, const SampleResult& first);
  void take_sample(Sequence& sequence, const SampleResult& sample);
  void send(Sequence& sequence, TokenEvent event);
  void finish_sample(Sequence& sequence, FinishReason reason, TokenEvent event);
  void end_without_token(Sequence& sequence, FinishReason reason, const std::string& error);
  void end_all(FinishReason reason, const std::string& error);
  void forget_finished();

  EngineOptions options_;
  Model model_;
  Scheduler scheduler_;
  std::vector<Sampler> samplers_;  // one per thread that samples
  ThreadBody sample_on_thread_;
  RequestTable requests_;
  std::vector<int64_t> finished_ids_;  // requests to delete at the end of the step
  bool is_stalled_ = false;

  // The step in flight.
  std::span<const Chunk> chunks_;
  Batch batch_;
  std::vector<int32_t> input_ids_, position_ids_, cu_seqlens_, context_lens_, block_tables_, logit_rows_;
  std::vector<int32_t> adapter_slots_;
  std::vector<const float*> embeddings_;
  int64_t max_blocks_per_seq_ = 0;
  LogitsView logits_;
  std::string forward_error_;
  // Of each chunk the rows that are scored, then the first row that is sampled, in order; only the first num_jobs_.
  std::vector<SampleJob> jobs_;
  int64_t num_jobs_ = 0;
  std::atomic<int64_t> next_job_{0};
  SampleResult further_sample_;

  std::vector<TokenEvent> events_;
  EngineCounters counters_;
};

}  // namespace fmo
