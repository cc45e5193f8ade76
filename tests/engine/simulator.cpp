// A seeded simulation of the engine: the real step loop, scheduler, block pool, prefix tree, sampler and stop rules on
// random request streams, with a model whose logits are a hash of what it finds in the KV blocks. Time is the number
// of steps; nothing depends on a clock or on threads, so a seed is a complete description of a run.
//
//   simulator FIRST_SEED NUM_SEEDS [--trace]
//
// What happens: bursts of requests with common heads, conversations that go on, several tenants, adapters that are
// loaded anew when nobody uses them, n > 1, vectors in place of tokens, prompts that are scored, constrained samples
// whose masks come late or cannot be made, cancellations before and during the model's run, deadlines, a full queue,
// too few blocks, allocations that fail at submit, a model that throws, scores that are NaN, guesses on texts that
// repeat and on texts that do not. What must hold, every step: the invariants of the scheduler; no sequence reads a
// cell that another tenant, another adapter, a later step or another token filled; every token is the one that its
// sample gets alone, from a reference that uses only the sampler; every sample ends exactly once, and for the right
// reason; what was cancelled ends in that step; the oldest request finishes within 3 times its fair share of steps. At
// the end everything has ended and no block is used.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <set>
#include <string>

#include "engine/random.h"
#include "engine/step_loop.h"
#include "tests/engine/watched_allocations.h"

namespace {

using fmo::FinishReason;
using fmo::mix_bits;

constexpr int64_t kVocabSize = 24;
constexpr int64_t kMaxSteps = 20000;
constexpr int32_t kEos = 3;
constexpr int64_t kEmbeddingWidth = 3;
constexpr int64_t kNumEmbeddings = 3;  // few, so that requests differ in one of many
constexpr int kNumThreads = 3;

// No std::exception: thrown by the model, the engine would take it for a failure of the model and go on.
struct Violation {
  std::string what;
};

void require(bool holds, const std::string& what) {
  if (!holds) throw Violation{what};
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(mix_bits(seed + 1)) {}
  int64_t below(int64_t end) { return static_cast<int64_t>(next() % static_cast<uint64_t>(end)); }
  int64_t between(int64_t first, int64_t last) { return first + below(last - first + 1); }
  bool chance(double probability) { return static_cast<double>(next() >> 11) * 0x1p-53 < probability; }
  template <typename T>
  T pick(std::initializer_list<T> choices) {
    return choices.begin()[below(static_cast<int64_t>(choices.size()))];
  }

 private:
  uint64_t next() { return mix_bits(state_ += 0x9e3779b97f4a7c15ull); }
  uint64_t state_;
};

// ---- what the model computes from a history ----

// Whose keys and values these are. `adapter` numbers the loads of adapters, 0: the base model.
struct Scope {
  int64_t tenant = -1;
  int64_t adapter = 0;
  bool operator==(const Scope&) const = default;
};

uint64_t hash_of_scope(const Scope& scope) {
  return mix_bits(static_cast<uint64_t>(scope.tenant + 1000 * scope.adapter) + 77);
}
// What stands at a position: a token, or the vector that replaces its embedding.
uint64_t with_content(uint64_t hash, int32_t content) {
  return mix_bits(hash + 0x9e3779b97f4a7c15ull * static_cast<uint64_t>(content + 1));
}
int32_t content_of(const float* embedding) { return static_cast<int32_t>(kVocabSize + embedding[kEmbeddingWidth - 1]); }

struct ModelKind {
  uint64_t nan_period = 0;      // one history in so many has a NaN, every fourth of those nothing else; 0: none has
  float repetition_bias = 0.0;  // added to the score of one successor of each token: makes texts that repeat
};

void fill_logits(uint64_t hash, int32_t last_token, const ModelKind& kind, float* logits) {
  for (int64_t token = 0; token < kVocabSize; ++token) {
    logits[token] = static_cast<float>(mix_bits(hash + static_cast<uint64_t>(token)) >> 40) * 0x1p-22f;
  }
  logits[(last_token * 7 + 5) % kVocabSize] += kind.repetition_bias;
  const uint64_t nan_period = kind.nan_period;
  if (nan_period == 0 || hash % nan_period != 0) return;
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  if (hash / nan_period % 4 == 0) {
    std::fill_n(logits, kVocabSize, kNan);
  } else {
    logits[hash / nan_period % kVocabSize] = kNan;
  }
}

uint32_t mask_of(uint64_t hash) {
  const auto bits = static_cast<uint32_t>(mix_bits(hash ^ 0xabcdef) & mix_bits(hash ^ 0x123456));
  return (bits | 1u << (hash % kVocabSize)) & ((1u << kVocabSize) - 1);
}

// ---- requests and the answers they must get ----

struct Sample {
  uint64_t history_hash = 0;
  std::vector<int32_t> output;
  bool is_open = true;
  bool must_be_cancelled = false;  // by the end of this step
  bool must_fail = false;          // the model threw while it was in the batch, or it was told so
  bool waits_for_mask = false;
  int64_t num_cached = -1;                                 // tokens that it did not compute when it first ran
  int64_t bad_step = std::numeric_limits<int64_t>::max();  // in which it first sampled a row with a NaN
};

struct Asked {
  fmo::SamplingParams params;
  std::vector<int32_t> prompt;
  std::vector<int32_t> contents;  // of the prompt
  Scope scope;
  int32_t adapter_slot = -1;
  int64_t max_total_len = 0;
  int64_t deadline_step = -1;
  std::vector<Sample> samples;
  int64_t steps_as_oldest = -1;
  double fair_share_steps = 0.0;
  bool has_scores = false;  // those of the prompt were given out

  bool is_open() const {
    return std::ranges::any_of(samples, [](const Sample& sample) { return sample.is_open; });
  }
};

struct Expected {
  std::optional<int32_t> token_id;
  FinishReason reason = FinishReason::none;
  float logprob = 0.0f;
  std::vector<std::pair<int32_t, float>> top_logprobs;
  bool is_bad = false;
};

// ---- one seed ----

struct Setting {
  fmo::EngineOptions engine;
  int64_t max_queue_len = 0;
  ModelKind model;
  double throw_rate = 0.0;
  double cancel_rate = 0.0;
  int64_t num_requests = 0;
  int64_t num_tenants = 1;
  int64_t num_adapter_slots = 0;
  int64_t max_mask_delay = 0;
};

Setting random_setting(Random& random) {
  Setting setting;
  auto& scheduler = setting.engine.scheduler;
  scheduler.block_size = random.pick<int64_t>({1, 2, 4, 4, 8});
  scheduler.num_blocks = std::max<int64_t>(2, random.between(16, 64) / scheduler.block_size);
  scheduler.max_num_seqs = random.between(1, 7);
  scheduler.max_num_tokens = scheduler.max_num_seqs + random.between(0, 12);
  scheduler.max_num_logits = scheduler.max_num_seqs + random.between(0, 12);
  scheduler.ngram_size = random.pick<int64_t>({0, 1, 3, 3, 6});
  scheduler.shares_prefixes = random.chance(0.85);
  scheduler.hash_seed = static_cast<uint64_t>(random.below(1 << 30));
  setting.engine.max_context_len = random.between(8, 48);
  setting.engine.vocab_size = kVocabSize;
  setting.engine.ignores_bad_scores = random.chance(0.3);
  setting.max_queue_len = random.between(1, 24);
  setting.model.nan_period = random.pick<uint64_t>({0, 0, 40, 300});
  setting.model.repetition_bias = random.pick({0.0f, 4.0f, 8.0f});
  setting.throw_rate = random.pick({0.0, 0.0, 0.02});
  setting.cancel_rate = random.pick({0.0, 0.02, 0.1});
  setting.num_requests = random.between(3, 24);
  setting.num_tenants = random.pick<int64_t>({1, 2, 4});
  setting.num_adapter_slots = random.pick<int64_t>({0, 0, 1, 3});
  setting.max_mask_delay = random.pick<int64_t>({0, 2, 6});
  return setting;
}

class Simulation {
 public:
  Simulation(uint64_t seed, bool has_trace)
      : random_(seed),
        has_trace_(has_trace),
        setting_(random_setting(random_)),
        cells_(static_cast<size_t>(setting_.engine.scheduler.num_blocks * setting_.engine.scheduler.block_size)),
        sampler_(kVocabSize),
        loop_(setting_.engine, setting_.max_queue_len,
              {[this](const fmo::Batch& batch) { return forward(batch); },
               [this](int32_t source, int32_t target) { copy_block(source, target); }, kNumThreads,
               [this](const fmo::ThreadBody& body) { run_on_threads(body); }, kEmbeddingWidth}) {
    for (int64_t slot = 0; slot < setting_.num_adapter_slots; ++slot) adapters_.push_back(++num_loads_);
    for (std::vector<int32_t>& head : heads_) {
      head.resize(static_cast<size_t>(setting_.engine.max_context_len));
      for (int32_t& token_id : head) token_id = random_token();
    }
  }

  void run() {
    while (num_asked_ < setting_.num_requests || num_open() > 0) {
      require(++step_ < kMaxSteps, "still busy after " + std::to_string(kMaxSteps) + " steps");
      if (num_asked_ < setting_.num_requests && random_.chance(0.35)) submit_burst();
      expire_deadlines();
      if (random_.chance(0.1)) load_another_adapter();
      if (random_.chance(setting_.cancel_rate)) cancel_something();
      if (random_.chance(0.5)) deliver_masks();
      has_thrown_ = false;
      if (loop_.engine().is_stalled() && !has_news_) continue;  // the thread of the loop sleeps
      has_news_ = false;
      loop_.step();
      loop_.engine().scheduler().check_invariants();
      take_events();
      check_ends();
      watch_the_oldest();
    }
    require(!loop_.step(), "there is still something to do when everything has ended");
    const fmo::EngineStats stats = loop_.stats();
    require(stats.num_used_blocks == 0 && stats.num_running == 0 && stats.num_waiting == 0 &&
                stats.num_queued_requests == 0 && stats.num_queued_samples == 0,
            "something is left when everything has ended");
    check_totals(stats);
  }

  std::string where() const { return "step " + std::to_string(step_); }
  fmo::EngineStats stats() const { return loop_.stats(); }

 private:
  struct Cell {
    int32_t content = -1;
    Scope scope;
    int64_t step = -1;
    const Sample* writer = nullptr;
  };
  struct DueMask {
    int64_t step;
    int64_t request_id;
    int32_t sample_idx;
    int64_t position;
    uint32_t bits;
  };

  int32_t random_token() { return static_cast<int32_t>(random_.below(kVocabSize)); }
  int64_t num_open() const {
    return std::ranges::count_if(asked_, [](const auto& entry) { return entry.second.is_open(); });
  }

  template <typename... Args>
  void trace(const char* format, Args... args) {
    if (!has_trace_) return;
    std::printf("%5lld  ", static_cast<long long>(step_));
    std::printf(format, args...);
    std::printf("\n");
  }

  // -- requests

  std::vector<int32_t> random_prompt() {
    const int64_t longest = loop_.max_total_len() - 1;
    std::vector<int32_t> prompt;
    if (!asked_.empty() && random_.chance(0.25)) {  // the next turn of a conversation
      const Asked& before = std::next(asked_.begin(), random_.below(static_cast<int64_t>(asked_.size())))->second;
      prompt = before.prompt;
      prompt.insert(prompt.end(), before.samples[0].output.begin(), before.samples[0].output.end());
    } else {
      const auto& head = heads_[static_cast<size_t>(random_.below(3))];
      prompt.assign(head.begin(), head.begin() + random_.below(static_cast<int64_t>(head.size())));
    }
    for (int64_t count = random_.below(4); count >= 0; --count) prompt.push_back(random_token());
    if (static_cast<int64_t>(prompt.size()) > longest) prompt.resize(static_cast<size_t>(longest));
    return prompt;
  }

  fmo::SamplingParams random_params(int64_t room) {
    fmo::SamplingParams params;
    params.temperature = random_.pick({0.0, 0.5, 1.5});
    params.top_k = random_.pick<int64_t>({0, 0, 5});
    params.top_p = random_.pick({1.0, 0.9});
    params.repetition_penalty = random_.pick({1.0, 1.0, 1.3});
    params.frequency_penalty = random_.pick({0.0, 0.0, 0.5});
    params.no_repeat_ngram = random_.pick<int64_t>({0, 0, 0, 3});
    params.max_tokens = random_.between(1, room);
    if (random_.chance(0.7)) params.eos_token_ids = {kEos};
    if (random_.chance(0.2)) params.stop_sequences = {{1, 2}, {5}};
    if (random_.chance(0.1)) params.forced_tokens.assign(static_cast<size_t>(std::min<int64_t>(3, room)), kEos);
    if (random_.chance(0.1)) params.min_tokens = random_.between(1, room);
    if (random_.chance(0.2)) params.num_logprobs = random_.pick<int64_t>({0, 2, kVocabSize});
    if (random_.chance(0.15)) params.num_prompt_logprobs = random_.pick<int64_t>({0, 2});
    for (int64_t count = random_.pick<int64_t>({1, 1, 1, 2, 4}); count > 0; --count) {
      params.seeds.push_back(static_cast<uint64_t>(random_.below(1 << 30)));
    }
    return params;
  }

  // Vectors in place of some tokens of the prompt.
  void replace_embeddings(Asked& asked) {
    asked.contents = asked.prompt;
    if (!random_.chance(0.2)) return;
    for (size_t position = 0; position < asked.prompt.size(); ++position) {
      if (!random_.chance(0.3)) continue;
      std::vector<float> vector(kEmbeddingWidth, static_cast<float>(random_.below(kNumEmbeddings)));
      asked.contents[position] = content_of(vector.data());
      asked.params.embedding_positions.push_back(static_cast<int32_t>(position));
      asked.params.embeddings.insert(asked.params.embeddings.end(), vector.begin(), vector.end());
    }
  }

  void submit_burst() {
    for (int64_t count = random_.pick<int64_t>({1, 1, 2, 6}); count > 0; --count) submit_one();
  }

  void submit_one() {
    Asked asked;
    asked.prompt = random_prompt();
    asked.params = random_params(loop_.max_total_len() - static_cast<int64_t>(asked.prompt.size()));
    asked.scope.tenant = random_.below(setting_.num_tenants);
    asked.adapter_slot = static_cast<int32_t>(random_.below(setting_.num_adapter_slots + 1)) - 1;
    if (asked.adapter_slot >= 0) asked.scope.adapter = adapters_[static_cast<size_t>(asked.adapter_slot)];
    asked.max_total_len = static_cast<int64_t>(asked.prompt.size()) + *asked.params.max_tokens;
    if (random_.chance(0.1)) asked.deadline_step = step_ + random_.below(30);
    replace_embeddings(asked);
    uint64_t hash = hash_of_scope(asked.scope);
    for (const int32_t content : asked.contents) hash = with_content(hash, content);
    asked.params.is_constrained = random_.chance(0.2);
    if (asked.params.is_constrained) asked.params.first_mask = {mask_of(hash)};
    asked.samples.resize(asked.params.seeds.size());
    for (Sample& sample : asked.samples) sample.history_hash = hash;
    ++num_asked_;

    const int64_t num_queued = loop_.stats().num_queued_samples;
    const auto num_samples = static_cast<int64_t>(asked.samples.size());
    const bool is_full = num_queued > 0 && num_queued + num_samples > setting_.max_queue_len;
    const fmo::CacheScope scope{static_cast<uint64_t>(asked.scope.tenant), static_cast<uint64_t>(asked.scope.adapter)};
    fmo::SamplingParams params = asked.params;
    if (random_.chance(0.1)) g_allocations_left = random_.below(25);
    std::optional<int64_t> request_id;
    bool was_refused = false;
    has_news_ = true;
    try {
      request_id = loop_.submit(asked.prompt, std::move(params), scope, asked.adapter_slot);
    } catch (const fmo::QueueFullError&) {
      was_refused = true;
    } catch (const std::bad_alloc&) {
      g_allocations_left = -1;
      trace("submit: out of memory");
      return;
    }
    g_allocations_left = -1;
    require(was_refused == is_full, "the queue was refused or not against its bound");
    if (was_refused) return trace("submit: refused");
    trace("submit: request %lld, prompt %zu, max_tokens %lld, n %zu, tenant %lld, adapter slot %d%s",
          static_cast<long long>(*request_id), asked.prompt.size(), static_cast<long long>(*asked.params.max_tokens),
          asked.samples.size(), static_cast<long long>(asked.scope.tenant), asked.adapter_slot,
          asked.params.is_constrained ? ", constrained" : "");
    asked_.emplace(*request_id, std::move(asked));
  }

  void cancel(int64_t request_id) {
    trace("cancel: request %lld", static_cast<long long>(request_id));
    for (Sample& sample : asked_.at(request_id).samples) sample.must_be_cancelled = sample.is_open && !sample.must_fail;
    has_news_ = true;
    loop_.cancel(request_id);
  }

  void cancel_something() {
    if (asked_.empty()) return;
    auto& [request_id, asked] = *std::next(asked_.begin(), random_.below(static_cast<int64_t>(asked_.size())));
    if (random_.chance(0.5)) return cancel(request_id);
    const auto sample_idx = static_cast<int32_t>(random_.below(static_cast<int64_t>(asked.samples.size())));
    if (random_.chance(0.2)) return fail_sample(request_id, asked, sample_idx);
    trace("cancel: request %lld sample %d", static_cast<long long>(request_id), sample_idx);
    Sample& sample = asked.samples[static_cast<size_t>(sample_idx)];
    sample.must_be_cancelled = sample.is_open && !sample.must_fail;
    has_news_ = true;
    loop_.cancel_sample(request_id, sample_idx);
  }

  // As if its mask could not be made.
  void fail_sample(int64_t request_id, Asked& asked, int32_t sample_idx) {
    Sample& sample = asked.samples[static_cast<size_t>(sample_idx)];
    if (sample.must_be_cancelled) return;
    trace("fail: request %lld sample %d", static_cast<long long>(request_id), sample_idx);
    sample.must_fail = sample.is_open;
    has_news_ = true;
    loop_.fail_sample(request_id, sample_idx, "planned failure");
  }

  void expire_deadlines() {
    for (auto& [request_id, asked] : asked_) {
      if (asked.deadline_step == step_) cancel(request_id);
    }
  }

  // Another adapter takes the slot of one that nobody uses.
  void load_another_adapter() {
    if (adapters_.empty()) return;
    const int64_t slot = random_.below(setting_.num_adapter_slots);
    const bool is_used = std::ranges::any_of(
        asked_, [slot](const auto& entry) { return entry.second.adapter_slot == slot && entry.second.is_open(); });
    if (is_used) return;
    trace("adapter slot %lld is loaded anew", static_cast<long long>(slot));
    adapters_[static_cast<size_t>(slot)] = ++num_loads_;
  }

  void deliver_masks() {
    std::erase_if(due_masks_, [this](const DueMask& due) {
      if (due.step > step_) return false;
      has_news_ = true;
      loop_.set_mask(due.request_id, due.sample_idx, due.position, {due.bits});
      asked_.at(due.request_id).samples[static_cast<size_t>(due.sample_idx)].waits_for_mask = false;
      return true;
    });
  }

  // -- the model

  fmo::LogitsView forward(const fmo::Batch& batch) {
    const auto& scheduler = setting_.engine.scheduler;
    require(batch.num_tokens <= scheduler.max_num_tokens && batch.num_seqs <= scheduler.max_num_seqs &&
                batch.num_logits <= scheduler.max_num_logits,
            "a step has more rows, sequences or logits than allowed");
    check_that_the_oldest_runs();
    if (random_.chance(setting_.cancel_rate)) cancel_something();
    has_thrown_ = random_.chance(setting_.throw_rate);
    logits_.assign(static_cast<size_t>(batch.num_logits * kVocabSize), 0.0f);
    int32_t num_logits = 0;
    for (int32_t seq = 0; seq < batch.num_seqs; ++seq) {
      note_cached_tokens(batch, seq);
      if (has_thrown_ && 2 * seq >= batch.num_seqs) continue;  // half of the work is done when it fails
      run_sequence(batch, seq, num_logits);
    }
    if (random_.chance(0.5)) deliver_masks();
    if (has_thrown_) return fail();
    require(num_logits == batch.num_logits, "a row of logits belongs to no sequence");
    return {logits_.data(), kVocabSize};
  }

  fmo::LogitsView fail() {
    trace("the model throws");
    for (const fmo::Chunk& chunk : loop_.engine().chunks()) {
      const fmo::Sequence& sequence = *chunk.sequence;
      asked_.at(sequence.request->id).samples[static_cast<size_t>(sequence.sample_idx)].must_fail = true;
    }
    if (random_.chance(0.5)) throw std::bad_alloc();
    throw std::runtime_error("planned failure");
  }

  // One after the other, beginning with any: the first that runs samples all rows.
  void run_on_threads(const fmo::ThreadBody& body) {
    const auto first = static_cast<int>(random_.below(kNumThreads));
    for (int idx = 0; idx < kNumThreads; ++idx) body((first + idx) % kNumThreads);
  }

  void copy_block(int32_t source, int32_t target) {
    trace("block %d is copied to %d", source, target);
    const int64_t block_size = setting_.engine.scheduler.block_size;
    require(source != target, "a block is copied to itself");
    std::copy_n(cells_.begin() + source * block_size, block_size, cells_.begin() + target * block_size);
  }

  void note_cached_tokens(const fmo::Batch& batch, int32_t seq) {
    const fmo::Sequence& sequence = *loop_.engine().chunks()[static_cast<size_t>(seq)].sequence;
    Sample& sample = asked_.at(sequence.request->id).samples[static_cast<size_t>(sequence.sample_idx)];
    if (sample.num_cached < 0) sample.num_cached = batch.context_lens[seq];
  }

  void run_sequence(const fmo::Batch& batch, int32_t seq, int32_t& num_logits) {
    const fmo::Sequence& sequence = *loop_.engine().chunks()[static_cast<size_t>(seq)].sequence;
    const Asked& asked = asked_.at(sequence.request->id);
    const Sample& sample = asked.samples[static_cast<size_t>(sequence.sample_idx)];
    const int32_t* table = batch.block_tables + seq * batch.block_table_stride;
    const int64_t block_size = setting_.engine.scheduler.block_size;
    auto cell_of = [&](int64_t position) -> Cell& {
      return cells_[static_cast<size_t>(table[position / block_size] * block_size + position % block_size)];
    };
    auto content_at = [&](int64_t position) {
      const auto idx = static_cast<size_t>(position);
      return idx < asked.contents.size() ? asked.contents[idx] : sample.output.at(idx - asked.contents.size());
    };
    const int32_t slot = batch.adapter_slots == nullptr ? -1 : batch.adapter_slots[seq];
    require(slot == asked.adapter_slot, "a sequence runs with another adapter");
    const Scope scope{asked.scope.tenant, slot < 0 ? 0 : adapters_[static_cast<size_t>(slot)]};
    require(scope == asked.scope, "an adapter was loaded anew while a request used it");
    uint64_t hash = hash_of_scope(scope);
    for (int64_t position = 0; position < batch.context_lens[seq]; ++position) {
      const Cell& cell = cell_of(position);
      require(cell.scope == scope, "a sequence reads what another tenant or adapter has computed");
      require(cell.step < step_, "a sequence reads what is being computed");
      require(cell.writer == &sample || cell.step < cell.writer->bad_step,
              "a sequence reads what another one has computed in or after the step of its NaN");
      require(cell.content == content_at(position), "a sequence reads what belongs to another token");
      hash = with_content(hash, cell.content);
    }
    for (int32_t row = batch.cu_seqlens[seq]; row < batch.cu_seqlens[seq + 1]; ++row) {
      const int64_t position = batch.context_lens[seq] + row - batch.cu_seqlens[seq];
      require(batch.position_ids[row] == position, "a row has the wrong position");
      const float* embedding = batch.embeddings == nullptr ? nullptr : batch.embeddings[row];
      const int32_t content = embedding == nullptr ? batch.input_ids[row] : content_of(embedding);
      cell_of(position) = {content, scope, step_, &sample};
      hash = with_content(hash, content);
      if (num_logits == batch.num_logits || batch.logit_rows[num_logits] != row) continue;
      fill_logits(hash, batch.input_ids[row], setting_.model, logits_.data() + kVocabSize * num_logits++);
    }
  }

  // -- what must come out

  // The scores of a prompt's tokens from the second on; fewer: the one after them has none, which ends the request.
  std::vector<fmo::TokenScore> expected_scores(const Asked& asked) {
    std::vector<fmo::TokenScore> scores;
    uint64_t hash = hash_of_scope(asked.scope);
    for (size_t idx = 1; asked.params.num_prompt_logprobs && idx < asked.prompt.size(); ++idx) {
      hash = with_content(hash, asked.contents[idx - 1]);
      std::vector<float> logits(kVocabSize);
      fill_logits(hash, asked.prompt[idx - 1], setting_.model, logits.data());
      fmo::SamplingParams params;
      params.forced_tokens = {asked.prompt[idx]};
      params.num_logprobs = asked.params.num_prompt_logprobs;
      fmo::SampleInput input;
      input.logits = logits.data();
      input.params = &params;
      input.ignores_bad_scores = setting_.engine.ignores_bad_scores;
      fmo::SampleResult result;
      sampler_.sample(input, result);
      if (result.error.empty()) {
        scores.push_back({result.logprob, result.top_logprobs});
      } else if (input.ignores_bad_scores) {
        scores.push_back({-std::numeric_limits<float>::infinity(), {}});
      } else {
        break;
      }
    }
    return scores;
  }

  bool is_scored(const Asked& asked) const { return asked.params.num_prompt_logprobs && asked.prompt.size() > 1; }

  void take_scores(const fmo::TokenEvent& event, Asked& asked) {
    if (event.prompt_scores.empty()) return;
    require(!asked.has_scores, "the scores of a prompt come twice");
    require(event.prompt_scores == expected_scores(asked), "a prompt got other scores than alone");
    asked.has_scores = true;
  }

  // The next output of a sample that runs alone.
  Expected expected_next(const Asked& asked, const Sample& sample, int64_t sample_idx) {
    if (is_scored(asked) && sample.output.empty() && expected_scores(asked).size() + 1 < asked.prompt.size()) {
      return {std::nullopt, FinishReason::error};
    }
    std::vector<float> logits(kVocabSize);
    std::vector<int32_t> tokens = asked.prompt;
    tokens.insert(tokens.end(), sample.output.begin(), sample.output.end());
    fill_logits(sample.history_hash, tokens.back(), setting_.model, logits.data());
    const std::vector<uint32_t> mask{mask_of(sample.history_hash)};
    fmo::SampleInput input;
    input.logits = logits.data();
    input.tokens = tokens;
    input.num_prompt_tokens = static_cast<int64_t>(asked.prompt.size());
    input.params = &asked.params;
    input.seed = asked.params.seeds[static_cast<size_t>(sample_idx)];
    if (asked.params.is_constrained) input.allowed_bits = mask;
    const auto num_nan = std::ranges::count_if(logits, [](float logit) { return std::isnan(logit); });
    const bool ignores = setting_.engine.ignores_bad_scores;
    const bool is_bad = num_nan > 0;
    if (is_bad && !ignores) return {std::nullopt, FinishReason::error, 0.0f, {}, is_bad};
    if (num_nan == kVocabSize) return {std::nullopt, FinishReason::stop, 0.0f, {}, is_bad};
    std::ranges::replace_if(
        logits, [](float logit) { return std::isnan(logit); }, -std::numeric_limits<float>::infinity());
    fmo::SampleResult result;
    sampler_.sample(input, result);
    if (!result.error.empty()) return {std::nullopt, FinishReason::error, 0.0f, {}, is_bad};
    tokens.push_back(result.token_id);
    return {result.token_id, expected_end(asked, tokens), result.logprob, result.top_logprobs, is_bad};
  }

  FinishReason expected_end(const Asked& asked, const std::vector<int32_t>& tokens) const {
    const fmo::SamplingParams& params = asked.params;
    const size_t num_outputs = tokens.size() - asked.prompt.size();
    if (num_outputs >= params.forced_tokens.size()) {
      if (!params.eos_token_ids.empty() && tokens.back() == kEos) return FinishReason::stop;
      for (const auto& tail : params.stop_sequences) {
        if (num_outputs >= tail.size() && std::equal(tail.rbegin(), tail.rend(), tokens.rbegin())) {
          return FinishReason::stop;
        }
      }
    }
    return static_cast<int64_t>(tokens.size()) == asked.max_total_len ? FinishReason::length : FinishReason::none;
  }

  void take_events() {
    loop_.take_events(0, events_);
    for (const fmo::TokenEvent& event : events_) take(event);
  }

  void take(const fmo::TokenEvent& event) {
    Asked& asked = asked_.at(event.request_id);
    Sample& sample = asked.samples.at(static_cast<size_t>(event.sample_idx));
    const std::string name =
        "request " + std::to_string(event.request_id) + " sample " + std::to_string(event.sample_idx);
    require(sample.is_open, name + " gave something after its end");
    take_scores(event, asked);
    require(!event.token_id || asked.has_scores == is_scored(asked),
            name + " went on without the scores of its prompt");
    const char* reason = fmo::finish_reason_name(event.finish_reason);
    trace("%s: token %d, %s", name.c_str(), event.token_id.value_or(-1), reason == nullptr ? "goes on" : reason);
    if (event.finish_reason == FinishReason::cancelled) {
      require(sample.must_be_cancelled && !event.token_id, name + " was cancelled by nobody");
    } else if (event.finish_reason == FinishReason::error && sample.must_fail) {
      require(!event.token_id && !event.error.empty(), name + " failed without saying why");
    } else {
      require(!sample.must_fail, name + " went on although the model failed");
      const Expected expected = expected_next(asked, sample, event.sample_idx);
      if (expected.is_bad) sample.bad_step = std::min(sample.bad_step, step_);
      require(event.token_id == expected.token_id, name + " got another token than alone");
      require(event.finish_reason == expected.reason, name + " ended for another reason than alone, or did not");
      const bool has_logprob = event.token_id && asked.params.num_logprobs;
      require(event.logprob.has_value() == has_logprob &&
                  event.logprob.value_or(0.0f) == (has_logprob ? expected.logprob : 0.0f) &&
                  event.top_logprobs == expected.top_logprobs,
              name + " got other log-probabilities than alone");
    }
    require(!event.token_id || event.num_cached_tokens == sample.num_cached,
            name + " tells a wrong number of cached tokens");
    if (event.token_id) {
      sample.output.push_back(*event.token_id);
      sample.history_hash = with_content(sample.history_hash, *event.token_id);
    }
    sample.is_open = event.finish_reason == FinishReason::none;
    if (!sample.is_open || !asked.params.is_constrained) return;
    sample.waits_for_mask = true;
    due_masks_.push_back({step_ + random_.between(0, setting_.max_mask_delay), event.request_id, event.sample_idx,
                          static_cast<int64_t>(sample.output.size()), mask_of(sample.history_hash)});
  }

  void check_ends() {
    for (auto& [request_id, asked] : asked_) {
      for (Sample& sample : asked.samples) {
        require(!sample.is_open || !sample.must_be_cancelled, "a cancelled sample did not end in the step");
        require(!sample.is_open || !sample.must_fail, "a sample of a failed step did not end");
        sample.must_be_cancelled = sample.must_fail = false;
      }
    }
  }

  void check_totals(const fmo::EngineStats& stats) const {
    int64_t num_samples = 0, num_tokens = 0, num_looked_up = 0, num_cached = 0;
    for (const auto& [request_id, asked] : asked_) {
      for (const Sample& sample : asked.samples) {
        ++num_samples;
        num_tokens += static_cast<int64_t>(sample.output.size());
        if (sample.num_cached < 0) continue;  // it ended before it ran
        num_looked_up += static_cast<int64_t>(asked.prompt.size());
        num_cached += sample.num_cached;
      }
    }
    require(stats.counters.num_finished_samples == num_samples && stats.counters.num_generated_tokens == num_tokens,
            "samples or tokens are counted wrongly");
    require(stats.num_looked_up_tokens == num_looked_up && stats.num_cached_tokens == num_cached,
            "cached tokens are counted wrongly");
  }

  // -- fairness

  // A sequence has a right to 1 of max_num_seqs of the rows and logits of each step, and to one token a step when it
  // decodes.
  double fair_share(const Asked& asked) const {
    const auto& scheduler = setting_.engine.scheduler;
    double num_steps = 0.0;
    for (const Sample& sample : asked.samples) {
      if (!sample.is_open) continue;
      const auto num_rows = static_cast<double>(asked.prompt.size() + sample.output.size());
      const auto num_left = static_cast<double>(*asked.params.max_tokens) - static_cast<double>(sample.output.size());
      num_steps += std::ceil(num_rows * static_cast<double>(scheduler.max_num_seqs) /
                             static_cast<double>(scheduler.max_num_tokens)) +
                   num_left;
    }
    if (is_scored(asked)) {
      num_steps += std::ceil(static_cast<double>(asked.prompt.size()) * static_cast<double>(scheduler.max_num_seqs) /
                             static_cast<double>(scheduler.max_num_logits));
    }
    return num_steps;
  }

  // Whatever came after it gives way.
  void check_that_the_oldest_runs() {
    for (const auto& [id, asked] : asked_) {
      for (size_t idx = 0; idx < asked.samples.size(); ++idx) {
        const Sample& sample = asked.samples[idx];
        if (!sample.is_open || sample.must_be_cancelled || sample.must_fail) continue;
        const bool has_rows = std::ranges::any_of(loop_.engine().chunks(), [&](const fmo::Chunk& chunk) {
          return chunk.sequence->request->id == id && static_cast<size_t>(chunk.sequence->sample_idx) == idx;
        });
        require(has_rows || sample.waits_for_mask, "sample " + std::to_string(idx) + " of request " +
                                                       std::to_string(id) + " is the oldest and has no rows");
        return;
      }
    }
  }

  void watch_the_oldest() {
    const auto oldest = std::ranges::find_if(asked_, [](const auto& entry) { return entry.second.is_open(); });
    if (oldest == asked_.end()) return;
    Asked& asked = oldest->second;
    if (asked.steps_as_oldest < 0) asked.fair_share_steps = fair_share(asked);
    const bool waits =
        std::ranges::any_of(asked.samples, [](const Sample& s) { return s.is_open && s.waits_for_mask; });
    if (!waits) ++asked.steps_as_oldest;
    if (asked.steps_as_oldest < 0) asked.steps_as_oldest = 0;
    require(static_cast<double>(asked.steps_as_oldest) <= 3.0 * asked.fair_share_steps,
            "request " + std::to_string(oldest->first) +
                " is the oldest and has not finished after 3 times its fair share, " +
                std::to_string(asked.fair_share_steps) + " steps");
  }

  Random random_;
  const bool has_trace_;
  const Setting setting_;
  std::vector<Cell> cells_;
  std::vector<int32_t> heads_[3];
  std::vector<int64_t> adapters_;  // by slot: the number of its load
  int64_t num_loads_ = 0;
  std::map<int64_t, Asked> asked_;
  std::vector<DueMask> due_masks_;
  int64_t num_asked_ = 0;
  int64_t step_ = 0;
  bool has_thrown_ = false;
  bool has_news_ = false;  // something was sent to the loop since its last step
  std::vector<float> logits_;
  std::vector<fmo::TokenEvent> events_;
  fmo::Sampler sampler_;
  fmo::StepLoop loop_;
};

struct Totals {
  int64_t num_steps = 0, num_tokens = 0, num_cached = 0, num_preemptions = 0, num_evictions = 0, num_errors = 0;
  int64_t num_proposed = 0, num_accepted = 0;

  void add(const fmo::EngineStats& stats) {
    num_steps += stats.counters.num_steps;
    num_tokens += stats.counters.num_generated_tokens;
    num_cached += stats.num_cached_tokens;
    num_preemptions += stats.num_preemptions;
    num_evictions += stats.num_evictions;
    num_errors += stats.counters.num_errors;
    num_proposed += stats.counters.num_proposed_tokens;
    num_accepted += stats.counters.num_accepted_tokens;
  }
};

bool run_seed(uint64_t seed, bool has_trace, Totals& totals) {
  Simulation simulation(seed, has_trace);
  std::string what;
  try {
    simulation.run();
    totals.add(simulation.stats());
    return true;
  } catch (const Violation& violation) {
    what = violation.what;
  } catch (const std::exception& error) {
    what = error.what();
  }
  std::printf("seed %llu, %s: %s\nreplay: python tests/engine/simulate.py %llu 1 --trace\n",
              static_cast<unsigned long long>(seed), simulation.where().c_str(), what.c_str(),
              static_cast<unsigned long long>(seed));
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: simulator FIRST_SEED NUM_SEEDS [--trace]\n");
    return 2;
  }
  const uint64_t first_seed = std::strtoull(argv[1], nullptr, 10), num_seeds = std::strtoull(argv[2], nullptr, 10);
  const bool has_trace = argc > 3 && std::string(argv[3]) == "--trace";
  Totals totals;
  for (uint64_t seed = first_seed; seed < first_seed + num_seeds; ++seed) {
    if (!run_seed(seed, has_trace, totals)) return 1;
  }
  std::printf(
      "steps %lld\ntokens %lld\ncached %lld\npreemptions %lld\nevictions %lld\nerrors %lld\nproposed %lld\naccepted "
      "%lld\n",
      static_cast<long long>(totals.num_steps), static_cast<long long>(totals.num_tokens),
      static_cast<long long>(totals.num_cached), static_cast<long long>(totals.num_preemptions),
      static_cast<long long>(totals.num_evictions), static_cast<long long>(totals.num_errors),
      static_cast<long long>(totals.num_proposed), static_cast<long long>(totals.num_accepted));
  return 0;
}
