// friendli_runtime._core.Engine: the step loop for Python, and `sample_token`, one call of the sampler.
//
// The model is a `_core.Executor`, called without the GIL, or any object with the same `forward`, `copy_block` and
// `num_blocks` (and optionally `block_size`): a model written in Python, which the tests of the engine use.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <random>
#include <stdexcept>
#include <string_view>
#include <type_traits>
#include <unordered_map>

#include "bindings/bindings.h"
#include "engine/block_pool.h"
#include "engine/ngram_proposer.h"
#include "engine/prefix_cache.h"
#include "engine/random.h"
#include "engine/step_loop.h"
#include "executor/executor.h"
#include "http/token_streams.h"

namespace nb = nanobind;

namespace fmo {
namespace {

using TokenIds = std::vector<int32_t>;
using IntArray = nb::ndarray<nb::numpy, int32_t, nb::c_contig, nb::device::cpu>;
using FloatMatrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatRow = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename T>
T attribute(const nb::handle& object, const char* name) {
  return nb::cast<T>(object.attr(name));
}

using ParamsReader = void (*)(SamplingParams& params, nb::handle value);

template <auto field>
void read_into(SamplingParams& params, nb::handle value) {
  params.*field = nb::cast<std::decay_t<decltype(params.*field)>>(value);
}

void read_logit_bias(SamplingParams& params, nb::handle value) {
  for (const auto& [token_id, bias] : nb::cast<nb::dict>(value)) {
    params.logit_bias.emplace_back(nb::cast<int32_t>(token_id), static_cast<float>(nb::cast<double>(bias)));
  }
}

void read_replaced_embeddings(SamplingParams& params, nb::handle value) {
  if (value.is_none()) return;
  params.embedding_positions = attribute<TokenIds>(value, "positions");
  params.embeddings = attribute<std::vector<float>>(value, "vectors");
}

// The fields that are the engine's; their defaults are those of Python.
const std::unordered_map<std::string_view, ParamsReader> kParamsReaders = {
    {"max_tokens", read_into<&SamplingParams::max_tokens>},
    {"max_total_tokens", read_into<&SamplingParams::max_total_tokens>},
    {"min_tokens", read_into<&SamplingParams::min_tokens>},
    {"temperature", read_into<&SamplingParams::temperature>},
    {"top_k", read_into<&SamplingParams::top_k>},
    {"top_p", read_into<&SamplingParams::top_p>},
    {"min_p", read_into<&SamplingParams::min_p>},
    {"xtc_threshold", read_into<&SamplingParams::xtc_threshold>},
    {"xtc_probability", read_into<&SamplingParams::xtc_probability>},
    {"repetition_penalty", read_into<&SamplingParams::repetition_penalty>},
    {"frequency_penalty", read_into<&SamplingParams::frequency_penalty>},
    {"presence_penalty", read_into<&SamplingParams::presence_penalty>},
    {"logit_bias", read_logit_bias},
    {"no_repeat_ngram", read_into<&SamplingParams::no_repeat_ngram>},
    {"bad_words_ids", read_into<&SamplingParams::bad_words>},
    {"forced_output_tokens", read_into<&SamplingParams::forced_tokens>},
    {"eos_token_ids", read_into<&SamplingParams::eos_token_ids>},
    {"stop_token_ids", read_into<&SamplingParams::stop_token_ids>},
    {"stop_token_sequences", read_into<&SamplingParams::stop_sequences>},
    {"ignore_eos", read_into<&SamplingParams::ignore_eos>},
    {"logprobs", read_into<&SamplingParams::num_logprobs>},
    {"prompt_logprobs", read_into<&SamplingParams::num_prompt_logprobs>},
    {"replaced_embeddings", read_replaced_embeddings},
};

// Reads a friendli_runtime.sampling.SamplingParams: the attributes that it has of its own, which are few.
SamplingParams params_from_python(const nb::handle& object) {
  SamplingParams params;
  const auto given = nb::cast<nb::dict>(object.attr("__dict__"));
  for (const auto& [name, value] : given) {
    const auto reader = kParamsReaders.find(nb::cast<std::string_view>(name));
    if (reader != kParamsReaders.end()) reader->second(params, value);
  }
  params.seeds = nb::cast<std::vector<uint64_t>>(object.attr("sample_seeds")());
  return params;
}

// One bit per token of the vocabulary, in little-endian 32-bit words.
std::vector<uint32_t> mask_from_bytes(const nb::bytes& bits) {
  if (bits.size() % sizeof(uint32_t) != 0) {
    throw std::invalid_argument("the mask has " + std::to_string(bits.size()) + " bytes, expected a multiple of 4");
  }
  std::vector<uint32_t> mask(bits.size() / sizeof(uint32_t));
  std::memcpy(mask.data(), bits.data(), bits.size());
  return mask;
}

nb::object copied_array(const int32_t* data, std::initializer_list<size_t> shape) {
  size_t num_items = 1;
  for (const size_t dim : shape) num_items *= dim;
  auto* copy = new int32_t[num_items];
  std::copy_n(data, num_items, copy);
  nb::capsule owner(copy, [](void* pointer) noexcept { delete[] static_cast<int32_t*>(pointer); });
  return nb::cast(IntArray(copy, shape.size(), shape.begin(), owner));
}

// A model in Python: `forward` takes the arrays of `Executor.forward` and returns f32 [num_logits, vocab_size].
class PythonModel {
  template <typename Call>
  static auto with_gil(Call call) {
    const nb::gil_scoped_acquire gil;
    try {
      return call();
    } catch (const std::exception& error) {  // a Python exception must not leave the GIL's scope
      throw std::runtime_error(error.what());
    }
  }

 public:
  PythonModel(nb::handle model, int64_t vocab_size) : model_(model), vocab_size_(vocab_size) {}

  LogitsView forward(const Batch& batch) {
    return with_gil([&] { return call_forward(batch); });
  }
  void copy_block(int32_t source_block, int32_t target_block) {
    with_gil([&] { model_.attr("copy_block")(source_block, target_block); });
  }

 private:
  LogitsView call_forward(const Batch& batch) {
    const auto num_tokens = static_cast<size_t>(batch.num_tokens);
    const auto num_seqs = static_cast<size_t>(batch.num_seqs);
    const auto num_logits = static_cast<size_t>(batch.num_logits);
    const auto stride = static_cast<size_t>(batch.block_table_stride);
    const nb::object result = model_.attr("forward")(
        copied_array(batch.input_ids, {num_tokens}), copied_array(batch.position_ids, {num_tokens}),
        copied_array(batch.cu_seqlens, {num_seqs + 1}), copied_array(batch.context_lens, {num_seqs}),
        copied_array(batch.block_tables, {num_seqs, stride}), copied_array(batch.logit_rows, {num_logits}),
        *adapter_slots(batch));
    const auto logits = nb::cast<FloatMatrix>(result);
    if (logits.shape(0) != num_logits || static_cast<int64_t>(logits.shape(1)) != vocab_size_) {
      throw std::runtime_error("forward returned " + std::to_string(logits.shape(0)) + " x " +
                               std::to_string(logits.shape(1)) + " logits, expected " + std::to_string(num_logits) +
                               " x " + std::to_string(vocab_size_));
    }
    logits_.assign(logits.data(), logits.data() + logits.size());
    return {logits_.data(), vocab_size_};
  }

  // One more argument in steps in which somebody has an adapter.
  static nb::list adapter_slots(const Batch& batch) {
    nb::list result;
    if (batch.adapter_slots != nullptr)
      result.append(copied_array(batch.adapter_slots, {static_cast<size_t>(batch.num_seqs)}));
    return result;
  }

  nb::handle model_;  // kept alive by the PyEngine
  int64_t vocab_size_;
  std::vector<float> logits_;
};

void require_at_most(const char* name, int64_t value, int64_t limit, const char* limit_name) {
  if (value <= limit) return;
  throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ", but the executor is bound for " +
                              limit_name + " = " + std::to_string(limit) + "; bind it for more or lower " + name);
}

Model model_of(nb::handle model, EngineOptions& options) {
  if (!nb::isinstance<Executor>(model)) {
    options.scheduler.num_blocks = attribute<int64_t>(model, "num_blocks");
    if (nb::hasattr(model, "block_size")) options.scheduler.block_size = attribute<int64_t>(model, "block_size");
    options.scheduler.max_num_logits = options.scheduler.max_num_tokens;
    auto python = std::make_shared<PythonModel>(model, options.vocab_size);
    return {[python](const Batch& batch) { return python->forward(batch); },
            [python](int32_t source_block, int32_t target_block) { python->copy_block(source_block, target_block); },
            1,
            {},
            0};
  }
  auto* executor = nb::cast<Executor*>(model);
  options.scheduler.num_blocks = executor->num_blocks();
  options.scheduler.block_size = kBlockSize;
  require_at_most("max_num_tokens", options.scheduler.max_num_tokens, executor->max_num_tokens(), "max_num_tokens");
  require_at_most("max_num_seqs", options.scheduler.max_num_seqs, executor->max_num_logits(), "max_num_logits");
  options.scheduler.max_num_logits = executor->max_num_logits();
  require_at_most("max_context_len", options.max_context_len, executor->max_context_len(), "max_context_len");
  require_at_most("vocab_size", options.vocab_size, executor->output_width(), "output_width");
  return {[executor](const Batch& batch) -> LogitsView {
            executor->forward(batch);
            return {executor->logits(), executor->logits_stride()};
          },
          [executor](int32_t source_block, int32_t target_block) { executor->copy_block(source_block, target_block); },
          executor->num_threads(), [executor](const ThreadBody& body) { executor->run(body); },
          executor->embedding_width()};
}

nb::list pair_list(const std::vector<std::pair<int32_t, float>>& logprobs) {
  nb::list pairs;
  for (const auto& [token_id, logprob] : logprobs) pairs.append(nb::make_tuple(token_id, logprob));
  return pairs;
}

nb::object score_list(const std::vector<TokenScore>& scores) {
  if (scores.empty()) return nb::none();
  nb::list result;
  for (const TokenScore& score : scores) result.append(nb::make_tuple(score.logprob, pair_list(score.top_logprobs)));
  return result;
}

// Nothing is to be said of it but which one it is.
bool is_plain_token(const TokenEvent& event) {
  return event.token_id && event.finish_reason == FinishReason::none && !event.logprob && event.prompt_scores.empty();
}

bool is_taken(http::TokenStreams& streams, const TokenEvent& event) {
  return streams.take(event.request_id, event.sample_idx, is_plain_token(event) ? event.token_id : std::nullopt);
}

nb::tuple event_row(const TokenEvent& event) {
  const char* reason = finish_reason_name(event.finish_reason);
  const nb::object top_logprobs = event.logprob ? nb::object(pair_list(event.top_logprobs)) : nb::none();
  const nb::object reason_object = reason == nullptr ? nb::none() : nb::object(nb::str(reason));
  const nb::object error = event.error.empty() ? nb::none() : nb::object(nb::str(event.error.c_str()));
  return nb::make_tuple(event.sample_idx, event.token_id, event.logprob, top_logprobs, reason_object, error,
                        event.num_cached_tokens, score_list(event.prompt_scores));
}

// Owns the loop and the model; both are taken down without holding the GIL that the step thread may be waiting for.
class PyEngine {
 public:
  PyEngine(nb::object model, EngineOptions options, int64_t max_queue_len) : model_(std::move(model)) {
    Model model_in_use = model_of(model_, options);
    loop_ = std::make_unique<StepLoop>(options, max_queue_len, std::move(model_in_use));
  }
  ~PyEngine() {
    const nb::gil_scoped_release release;
    loop_.reset();
  }
  PyEngine(const PyEngine&) = delete;
  PyEngine& operator=(const PyEngine&) = delete;

  StepLoop& loop() { return *loop_; }
  nb::handle model() const { return model_; }

  // [(request_id, [row, ...]), ...]: one entry per request, rows in order, without what `streams` take.
  nb::list take_events(int timeout_ms, http::TokenStreams* streams) {
    {
      const nb::gil_scoped_release release;
      loop_->take_events(timeout_ms, events_);
    }
    nb::list batches;
    std::unordered_map<int64_t, nb::list> rows_of;
    for (const TokenEvent& event : events_) {
      if (streams != nullptr && is_taken(*streams, event)) continue;
      auto [found, is_new] = rows_of.try_emplace(event.request_id);
      if (is_new) batches.append(nb::make_tuple(event.request_id, found->second));
      found->second.append(event_row(event));
    }
    if (streams != nullptr) streams->send();
    return batches;
  }

  nb::dict stats() const {
    const EngineStats stats = loop_->stats();
    nb::dict result;
    result["num_running"] = stats.num_running;
    result["num_waiting"] = stats.num_waiting;
    result["num_queued_requests"] = stats.num_queued_requests;
    result["num_queued_samples"] = stats.num_queued_samples;
    result["num_used_blocks"] = stats.num_used_blocks;
    result["num_blocks"] = stats.num_blocks;
    result["num_unused_blocks"] = stats.num_unused_blocks;
    result["num_evictions"] = stats.num_evictions;
    result["num_looked_up_tokens"] = stats.num_looked_up_tokens;
    result["num_cached_tokens"] = stats.num_cached_tokens;
    result["num_preemptions"] = stats.num_preemptions;
    result["num_steps"] = stats.counters.num_steps;
    result["num_prompt_tokens"] = stats.counters.num_prompt_tokens;
    result["num_generated_tokens"] = stats.counters.num_generated_tokens;
    result["num_finished_samples"] = stats.counters.num_finished_samples;
    result["num_errors"] = stats.counters.num_errors;
    result["num_proposed_tokens"] = stats.counters.num_proposed_tokens;
    result["num_accepted_tokens"] = stats.counters.num_accepted_tokens;
    result["num_bad_rows"] = stats.counters.num_bad_rows;
    result["last_step_s"] = static_cast<double>(stats.last_step_ns) * 1e-9;
    result["busy_s"] = static_cast<double>(stats.busy_ns) * 1e-9;
    result["model_s"] = static_cast<double>(stats.model_ns) * 1e-9;
    result["heartbeat_age_s"] = loop_->heartbeat_age_s();
    return result;
  }

 private:
  nb::object model_;
  std::unique_ptr<StepLoop> loop_;
  std::vector<TokenEvent> events_;  // of the caller of take_events, one at a time
};

nb::tuple sample_token(const FloatRow& logits, const TokenIds& prompt, const TokenIds& output,
                       const nb::handle& params_object, uint64_t seed, const std::vector<uint32_t>& allowed_bits) {
  const auto vocab_size = static_cast<int64_t>(logits.shape(0));
  const SamplingParams params = params_from_python(params_object);
  check_params(params, vocab_size);
  TokenIds tokens = prompt;
  tokens.insert(tokens.end(), output.begin(), output.end());
  for (const int32_t token_id : tokens) {
    if (token_id < 0 || token_id >= vocab_size) {
      throw std::invalid_argument("token id " + std::to_string(token_id) + " is outside the vocabulary");
    }
  }
  SampleInput input{logits.data(), tokens, static_cast<int64_t>(prompt.size()), &params, seed, allowed_bits};
  SampleResult result;
  Sampler(vocab_size).sample(input, result);
  if (!result.error.empty()) throw std::runtime_error(std::string(result.error));
  return nb::make_tuple(result.token_id, params.num_logprobs ? nb::cast(result.logprob) : nb::none(),
                        nb::cast(std::vector<std::pair<int32_t, float>>(result.top_logprobs)));
}

using ScopePair = std::pair<uint64_t, uint64_t>;

CacheScope scope_of(const ScopePair& pair) { return {pair.first, pair.second}; }

void bind_prefix_cache(nb::module_& m) {
  nb::class_<PrefixCache>(m, "PrefixCache", "KV block ids and what their blocks are known to hold.")
      .def(nb::init<int64_t, int64_t, uint64_t>(), nb::arg("num_blocks"), nb::arg("block_size"),
           nb::arg("hash_seed") = 0)
      .def("allocate", &PrefixCache::allocate)
      .def("retain", &PrefixCache::retain, nb::arg("block"))
      .def("release", &PrefixCache::release, nb::arg("block"))
      .def(
          "find",
          [](const PrefixCache& self, const ScopePair& scope, const TokenIds& tokens) {
            std::vector<int32_t> blocks;
            const PartialBlock partial = self.find(scope_of(scope), tokens, blocks);
            return nb::make_tuple(blocks, partial.num_tokens == 0 ? nb::object(nb::none()) : nb::cast(partial.block),
                                  partial.num_tokens);
          },
          nb::arg("scope"), nb::arg("tokens"),
          "(full blocks of the known head, the block of which the first cells hold what follows or None, how many)")
      .def(
          "publish",
          [](PrefixCache& self, const ScopePair& scope, std::optional<int32_t> parent, const TokenIds& tokens,
             int32_t block) { return self.publish(scope_of(scope), parent.value_or(kNoBlock), tokens, block); },
          nb::arg("scope"), nb::arg("parent").none(), nb::arg("tokens"), nb::arg("block"))
      .def(
          "publish_tail",
          [](PrefixCache& self, const ScopePair& scope, std::optional<int32_t> parent, const TokenIds& tokens,
             int32_t block) { self.publish_tail(scope_of(scope), parent.value_or(kNoBlock), tokens, block); },
          nb::arg("scope"), nb::arg("parent").none(), nb::arg("tokens"), nb::arg("block"))
      .def("forget", &PrefixCache::forget, nb::arg("block"))
      .def(
          "check_invariants",
          [](const PrefixCache& self, const std::vector<int32_t>& num_users) { self.check_invariants(num_users); },
          nb::arg("num_users"), "Raises unless all agrees, where num_users[b] sequences use block b.")
      .def_prop_ro("num_available", &PrefixCache::num_available)
      .def_prop_ro("num_unused", &PrefixCache::num_unused)
      .def_prop_ro("num_evictions", &PrefixCache::num_evictions);
}

}  // namespace

void bind_engine(nb::module_& m) {
  nb::exception<QueueFullError>(m, "QueueFullError", PyExc_RuntimeError);
  nb::exception<EngineStoppedError>(m, "EngineStoppedError", PyExc_RuntimeError);
  nb::exception<RequestTooLargeError>(m, "RequestTooLargeError", PyExc_ValueError);

  nb::class_<PyEngine>(m, "Engine",
                       "Schedules requests on a model and samples their tokens; see csrc/engine/step_loop.h.")
      .def(
          "__init__",
          [](PyEngine* self, nb::object model, int64_t max_num_seqs, int64_t max_num_tokens, int64_t max_queue_len,
             int64_t max_context_len, int64_t vocab_size, bool has_prefix_cache, bool ignores_nan, int64_t ngram_size) {
            EngineOptions options;
            options.scheduler.ngram_size = ngram_size;
            options.scheduler.shares_prefixes = has_prefix_cache;
            options.scheduler.hash_seed = std::random_device()();
            options.scheduler.max_num_seqs = max_num_seqs;
            options.scheduler.max_num_tokens = max_num_tokens;
            options.max_context_len = max_context_len;
            options.vocab_size = vocab_size;
            options.ignores_bad_scores = ignores_nan;
            new (self) PyEngine(std::move(model), options, max_queue_len);
          },
          nb::arg("model"), nb::kw_only(), nb::arg("max_num_seqs"), nb::arg("max_num_tokens"), nb::arg("max_queue_len"),
          nb::arg("max_context_len"), nb::arg("vocab_size"), nb::arg("has_prefix_cache") = true,
          nb::arg("ignores_nan") = false, nb::arg("ngram_size") = 0)
      .def(
          "submit",
          [](PyEngine& self, const TokenIds& prompt, const nb::handle& params_object, const nb::object& first_mask,
             std::pair<uint64_t, uint64_t> cache_scope, int32_t adapter_slot) {
            SamplingParams params = params_from_python(params_object);
            params.is_constrained = !first_mask.is_none();
            if (params.is_constrained) params.first_mask = mask_from_bytes(nb::cast<nb::bytes>(first_mask));
            const nb::gil_scoped_release release;
            return self.loop().submit(prompt, std::move(params), {cache_scope.first, cache_scope.second}, adapter_slot);
          },
          nb::arg("prompt_ids"), nb::arg("params"), nb::arg("first_mask") = nb::none(),
          nb::arg("cache_scope") = std::pair<uint64_t, uint64_t>{0, 0}, nb::arg("adapter_slot") = -1,
          "Queues a request and returns its id. With `first_mask` it is constrained: no token is sampled without a "
          "mask. `cache_scope`: 128 bits; only equal ones share cached prompts. `adapter_slot`: "
          "of the model's adapter, -1 for none; its requests have a cache_scope of their own.")
      .def(
          "set_mask",
          [](PyEngine& self, int64_t id, int32_t sample, int64_t position, const nb::bytes& bits) {
            std::vector<uint32_t> mask = mask_from_bytes(bits);
            const nb::gil_scoped_release release;
            self.loop().set_mask(id, sample, position, std::move(mask));
          },
          nb::arg("request_id"), nb::arg("sample_idx"), nb::arg("position"), nb::arg("mask"),
          "The tokens that may be output token `position` of a constrained sample: bit t%32 of 32-bit word t/32.")
      .def(
          "fail_sample",
          [](PyEngine& self, int64_t id, int32_t sample, std::string error) {
            self.loop().fail_sample(id, sample, std::move(error));
          },
          nb::arg("request_id"), nb::arg("sample_idx"), nb::arg("error"), nb::call_guard<nb::gil_scoped_release>())
      .def(
          "cancel", [](PyEngine& self, int64_t id) { self.loop().cancel(id); }, nb::arg("request_id"),
          nb::call_guard<nb::gil_scoped_release>())
      .def(
          "cancel_sample", [](PyEngine& self, int64_t id, int32_t sample) { self.loop().cancel_sample(id, sample); },
          nb::arg("request_id"), nb::arg("sample_idx"), nb::call_guard<nb::gil_scoped_release>())
      .def(
          "start", [](PyEngine& self) { self.loop().start(); }, "Starts the step thread.",
          nb::call_guard<nb::gil_scoped_release>())
      .def(
          "close", [](PyEngine& self) { self.loop().close(); }, "Takes no more requests.",
          nb::call_guard<nb::gil_scoped_release>())
      .def(
          "stop", [](PyEngine& self) { self.loop().stop(); }, "Cancels what is open and ends the step thread.",
          nb::call_guard<nb::gil_scoped_release>())
      .def(
          "wake", [](PyEngine& self) { self.loop().wake(); }, "Lets a waiting take_events return.",
          nb::call_guard<nb::gil_scoped_release>())
      .def(
          "step", [](PyEngine& self) { return self.loop().step(); },
          "One step on the calling thread, for a loop that was not started. False: there was nothing to do.",
          nb::call_guard<nb::gil_scoped_release>())
      .def("take_events", &PyEngine::take_events, nb::arg("timeout_ms"), nb::arg("streams") = nb::none(),
           "All events since the last call as [(request_id, [(sample_idx, token_id, logprob, top_logprobs, "
           "finish_reason, error, "
           "num_cached_tokens, [(logprob, top_logprobs), ...] of the prompt or None), ...]), ...] but for the tokens "
           "that "
           "`streams` have taken; waits for the first.")
      .def(
          "check_invariants", [](PyEngine& self) { self.loop().engine().scheduler().check_invariants(); },
          "Raises if a block is not owned as often as it is counted. Only for a loop that was not started.")
      .def("stats", &PyEngine::stats)
      .def_prop_ro("num_queued_requests", [](PyEngine& self) { return self.loop().num_queued_requests(); })
      .def_prop_ro("num_queued_samples", [](PyEngine& self) { return self.loop().num_queued_samples(); })
      .def_prop_ro(
          "event_fd", [](PyEngine& self) { return self.loop().event_fd(); }, "Readable while events wait.")
      .def_prop_ro(
          "max_total_len", [](PyEngine& self) { return self.loop().max_total_len(); },
          "Prompt + output of the largest request that fits.")
      .def_prop_ro("model", [](PyEngine& self) { return nb::borrow(self.model()); });

  nb::class_<BlockPool>(m, "BlockPool", "KV block ids with reference counts.")
      .def(nb::init<int64_t>(), nb::arg("num_blocks"))
      .def("allocate", &BlockPool::allocate)
      .def("retain", &BlockPool::retain, nb::arg("block"))
      .def("release", &BlockPool::release, nb::arg("block"))
      .def("ref_count", &BlockPool::ref_count, nb::arg("block"))
      .def_prop_ro("num_free", &BlockPool::num_free)
      .def_prop_ro("num_used", &BlockPool::num_used);

  bind_prefix_cache(m);

  nb::class_<NgramProposer>(m, "NgramProposer", "Guesses the next tokens of a sequence from the tokens before.")
      .def(nb::init<int64_t, int64_t>(), nb::arg("num_proposed"), nb::arg("num_tokens"))
      .def(
          "propose",
          [](NgramProposer& self, const TokenIds& tokens, int64_t limit) {
            const auto proposed = self.propose(tokens, limit);
            return TokenIds(proposed.begin(), proposed.end());
          },
          nb::arg("tokens"), nb::arg("limit"))
      .def("note_outcome", &NgramProposer::note_outcome, nb::arg("num_accepted"), nb::arg("num_proposed"),
           nb::arg("num_tokens"));

  m.def("sample_token", &sample_token, nb::arg("logits"), nb::arg("prompt"), nb::arg("output"), nb::arg("params"),
        nb::arg("seed"), nb::arg("allowed_bits") = std::vector<uint32_t>{},
        "(token_id, logprob, top_logprobs) of one row of logits.");
  m.def("random_uniform", &random_uniform, nb::arg("seed"), nb::arg("position"), nb::arg("draw"),
        "The sampler's random number of (seed, output position, draw), in [0, 1).");
}

}  // namespace fmo
