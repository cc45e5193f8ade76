// Counts what the step path allocates: requests come, share heads, are preempted, cancelled and end, and after a
// warm-up no step may call `operator new`. Submitting may: it happens on the threads of the callers. Prints the numbers
// of steps, preemptions and cached tokens that were watched; ends with 1 and the step when something was allocated.
#include <array>
#include <cstdio>

#include "engine/random.h"
#include "engine/step_loop.h"
#include "tests/engine/watched_allocations.h"

namespace {

constexpr int64_t kVocabSize = 64, kMaxNumLogits = 64;
constexpr int64_t kNumWarmUpSteps = 400, kNumSteps = 2000;

// Scores are a hash of the row's token and position, which is enough to keep the sampler busy; the model's own memory
// is given at start.
fmo::LogitsView forward(const fmo::Batch& batch) {
  static std::array<float, kMaxNumLogits * kVocabSize> logits;
  for (int32_t row = 0; row < batch.num_logits; ++row) {
    const auto token_id = static_cast<uint64_t>(batch.input_ids[batch.logit_rows[row]] % 4);
    for (uint64_t token = 0; token < kVocabSize; ++token) {
      logits[static_cast<size_t>(row) * kVocabSize + token] =
          static_cast<float>(fmo::mix_bits(token_id * kVocabSize + token) >> 40) * 0x1p-21f;
    }
  }
  return {logits.data(), kVocabSize};
}

fmo::SamplingParams params_of(int64_t idx) {
  fmo::SamplingParams params;
  params.max_tokens = 10 + idx % 50;
  params.temperature = idx % 3 == 0 ? 0.0 : 1.0;
  params.top_p = idx % 2 == 0 ? 0.9 : 1.0;
  params.top_k = idx % 5 == 0 ? 8 : 0;
  params.repetition_penalty = idx % 4 == 0 ? 1.1 : 1.0;
  params.frequency_penalty = idx % 7 == 0 ? 0.5 : 0.0;
  params.no_repeat_ngram = idx % 6 == 0 ? 4 : 0;
  params.eos_token_ids = {7};
  params.stop_sequences = {{1, 2, 3}};
  for (int64_t sample = 0; sample <= idx % 3; ++sample) params.seeds.push_back(static_cast<uint64_t>(idx + sample));
  return params;
}

std::vector<int32_t> prompt_of(int64_t idx) {
  std::vector<int32_t> prompt;
  for (int64_t token = 0; token < 20 + idx % 30; ++token) {
    prompt.push_back(static_cast<int32_t>((token < 24 ? token * (idx % 4 + 1) : token + idx) % kVocabSize));
  }
  return prompt;
}

bool run() {
  fmo::EngineOptions options;
  options.scheduler = {.num_blocks = 60,
                       .block_size = 4,
                       .max_num_seqs = 8,
                       .max_num_tokens = 32,
                       .max_num_logits = kMaxNumLogits,
                       .ngram_size = 3};
  options.max_context_len = 128;
  options.vocab_size = kVocabSize;
  fmo::StepLoop loop(options, 64, {forward, [](int32_t, int32_t) {}, 1, {}});
  std::vector<fmo::TokenEvent> events;
  int64_t num_submitted = 0;
  for (int64_t step = 0; step < kNumWarmUpSteps + kNumSteps; ++step) {
    if (loop.stats().num_queued_requests < 6) {
      loop.submit(prompt_of(num_submitted), params_of(num_submitted));
      ++num_submitted;
    }
    if (step % 13 == 0) loop.cancel(num_submitted - 2);
    g_num_allocations = 0;
    loop.step();
    loop.take_events(0, events);
    if (g_num_allocations == 0 || step < kNumWarmUpSteps) continue;
    std::printf("step %lld allocated %lld times\n", static_cast<long long>(step),
                static_cast<long long>(g_num_allocations));
    return false;
  }
  const fmo::EngineStats stats = loop.stats();
  std::printf("steps %lld\npreemptions %lld\ncached %lld\nfinished %lld\n", static_cast<long long>(kNumSteps),
              static_cast<long long>(stats.num_preemptions), static_cast<long long>(stats.num_cached_tokens),
              static_cast<long long>(stats.counters.num_finished_samples));
  return true;
}

}  // namespace

int main() { return run() ? 0 : 1; }
