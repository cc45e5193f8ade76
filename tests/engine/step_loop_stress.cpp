// The step loop under many threads, for a build with a sanitizer: producers submit and cancel, one consumer takes the
// events. The model keeps token ids in its blocks and makes the logits of a row from a hash of the history found there,
// so that a mixed-up block changes tokens. Ends with 0 when every sample ended exactly once, equal requests gave equal
// tokens and no block is left in use.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <map>
#include <thread>

#include "engine/random.h"
#include "engine/step_loop.h"

namespace {

constexpr int64_t kVocabSize = 32, kNumBlocks = 24;
constexpr int kNumProducers = 4, kNumRequests = 150;  // per producer

class HashModel {
 public:
  void copy_block(int32_t source, int32_t target) { std::copy_n(cells_[source], fmo::kBlockSize, cells_[target]); }

  fmo::LogitsView forward(const fmo::Batch& batch) {
    logits_.assign(static_cast<size_t>(batch.num_logits * kVocabSize), 0.0f);
    int32_t num_logits = 0;
    for (int32_t seq = 0; seq < batch.num_seqs; ++seq) {
      const int32_t* table = batch.block_tables + seq * batch.block_table_stride;
      const int32_t first = batch.cu_seqlens[seq];
      for (int32_t row = first; row < batch.cu_seqlens[seq + 1]; ++row) {
        const int32_t position = batch.context_lens[seq] + row - first;
        cell(table, position) = batch.input_ids[row];
        if (num_logits == batch.num_logits || batch.logit_rows[num_logits] != row) continue;
        fill(table, position, logits_.data() + kVocabSize * num_logits++);
      }
    }
    return {logits_.data(), kVocabSize};
  }

 private:
  // Scores are a hash of the history. The successor of the last token is likely, so that guesses often come true.
  void fill(const int32_t* table, int32_t last, float* logits) {
    uint64_t hash = 0;
    for (int32_t idx = 0; idx <= last; ++idx) hash = fmo::mix_bits(hash + static_cast<uint64_t>(cell(table, idx)) + 1);
    for (int64_t token = 0; token < kVocabSize; ++token) {
      hash = fmo::mix_bits(hash + 1);
      logits[token] = static_cast<float>(hash >> 40) * 0x1p-22f;
    }
    logits[(cell(table, last) * 7 + 5) % kVocabSize] += 4.0f;
  }

  int32_t& cell(const int32_t* table, int32_t idx) {
    return cells_[table[idx / fmo::kBlockSize]][idx % fmo::kBlockSize];
  }

  int32_t cells_[kNumBlocks][fmo::kBlockSize] = {};
  std::vector<float> logits_;
};

struct Outcome {
  std::vector<int32_t> tokens;
  fmo::FinishReason reason = fmo::FinishReason::none;
};

fmo::SamplingParams params_of(int kind) {
  fmo::SamplingParams params;
  params.max_tokens = 5 + kind * 3;
  params.temperature = kind % 3 == 0 ? 0.0 : 1.0;
  params.repetition_penalty = kind % 2 == 0 ? 1.0 : 1.2;
  params.top_p = kind % 4 == 0 ? 0.9 : 1.0;
  params.num_logprobs = kind % 5;
  for (int sample = 0; sample <= kind % 3; ++sample) params.seeds.push_back(static_cast<uint64_t>(100 * kind + sample));
  return params;
}

bool fail(const char* what) {
  std::fprintf(stderr, "failed: %s\n", what);
  return false;
}

bool check(const std::map<std::pair<int64_t, int32_t>, Outcome>& outcomes, const std::map<int64_t, int>& kinds) {
  std::map<std::pair<int, int32_t>, std::vector<int32_t>> tokens_of_kind;
  for (const auto& [key, outcome] : outcomes) {
    if (outcome.reason == fmo::FinishReason::none) return fail("a sample did not end");
    if (outcome.reason == fmo::FinishReason::error) return fail("a sample ended with an error");
    if (outcome.reason == fmo::FinishReason::cancelled) continue;
    const auto [found, is_new] = tokens_of_kind.try_emplace({kinds.at(key.first), key.second}, outcome.tokens);
    if (!is_new && found->second != outcome.tokens) return fail("equal requests gave different tokens");
  }
  return tokens_of_kind.size() > 10 || fail("too little ran to the end");
}

bool run() {
  fmo::EngineOptions options;
  options.scheduler = {.num_blocks = kNumBlocks,
                       .block_size = fmo::kBlockSize,
                       .max_num_seqs = 8,
                       .max_num_tokens = 24,
                       .max_num_logits = 24,
                       .ngram_size = 3};
  options.max_context_len = 128;
  options.vocab_size = kVocabSize;
  HashModel model;
  fmo::StepLoop loop(options, 64,
                     {[&](const fmo::Batch& batch) { return model.forward(batch); },
                      [&](int32_t source, int32_t target) { model.copy_block(source, target); }, 2,
                      [](const fmo::ThreadBody& body) {
                        std::thread other(body, 1);
                        body(0);
                        other.join();
                      }});
  std::map<int64_t, int> kinds;
  std::mutex kinds_mutex;
  std::atomic<int> num_producing{kNumProducers};
  std::atomic<int64_t> num_samples{0};
  auto produce = [&](int producer) {
    for (int idx = 0; idx < kNumRequests; ++idx) {
      const int kind = (idx * 7 + producer) % 12;
      const std::vector<int32_t> prompt(static_cast<size_t>(1 + kind * 5), kind);
      try {
        const std::lock_guard lock(kinds_mutex);
        const int64_t id = loop.submit(prompt, params_of(kind));
        kinds[id] = kind;
        num_samples += 1 + kind % 3;
        if (idx % 5 == 0) loop.cancel(id);
        if (idx % 7 == 0) loop.cancel_sample(id - 1, 0);
      } catch (const fmo::QueueFullError&) {
        std::this_thread::yield();
        --idx;
      }
      loop.stats();
    }
    --num_producing;
  };
  std::vector<std::thread> producers;
  for (int producer = 0; producer < kNumProducers; ++producer) producers.emplace_back(produce, producer);
  loop.start();
  std::map<std::pair<int64_t, int32_t>, Outcome> outcomes;
  std::vector<fmo::TokenEvent> events;
  int64_t num_ended = 0;
  bool is_good = true;
  while (num_producing > 0 || num_ended < num_samples) {
    loop.take_events(10, events);
    for (fmo::TokenEvent& event : events) {
      Outcome& outcome = outcomes[{event.request_id, event.sample_idx}];
      if (outcome.reason != fmo::FinishReason::none) is_good = fail("a sample gave something after its end");
      if (event.token_id) outcome.tokens.push_back(*event.token_id);
      outcome.reason = event.finish_reason;
      num_ended += event.finish_reason != fmo::FinishReason::none;
    }
  }
  for (std::thread& producer : producers) producer.join();
  loop.stop();
  loop.engine().scheduler().check_invariants();
  if (loop.stats().num_used_blocks != 0) is_good = fail("blocks are left in use");
  if (loop.stats().counters.num_accepted_tokens == 0) is_good = fail("no guess came true");
  if (loop.stats().num_cached_tokens == 0) is_good = fail("no prefix was shared");
  if (loop.stats().num_preemptions == 0) is_good = fail("nothing was preempted");
  return check(outcomes, kinds) && is_good;
}

}  // namespace

int main() { return run() ? 0 : 1; }
