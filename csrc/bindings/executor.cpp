// `_core.Executor`: the executor for Python. Arrays are checked for type, order and length here, their values by the
// executor.
#include "executor/executor.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/plan_reader.h"

namespace nb = nanobind;

namespace fmo {
namespace {

using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IntTable = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

void require_length(const char* name, size_t length, size_t expected) {
  if (length == expected) return;
  throw Error(std::string(name) + " has " + std::to_string(length) + " entries, expected " + std::to_string(expected),
              "Executor.forward", "give arrays that describe one batch");
}

int32_t to_i32(size_t value) {
  if (value > static_cast<size_t>(INT32_MAX))
    throw Error("an array of " + std::to_string(value) + " entries", "Executor.forward", "give fewer tokens");
  return static_cast<int32_t>(value);
}

void construct(Executor* self, nb::dict plan, nb::dict weights, int num_threads, int64_t max_num_tokens,
               int64_t max_num_logits, int64_t num_blocks, const std::string& kv_dtype, const std::string& isa,
               bool quantize_activations) {
  const PlanSpec spec = read_plan(plan, weights);
  ExecutorOptions options;
  options.num_threads = num_threads;
  options.max_num_tokens = max_num_tokens;
  options.max_num_logits = max_num_logits;
  options.num_blocks = num_blocks;
  options.kv_dtype = parse_dtype(kv_dtype, "the argument kv_dtype");
  options.isa = isa;
  options.quantize_activations = quantize_activations;
  const nb::gil_scoped_release no_gil;
  new (self) Executor(spec, options);
}

Floats forward(Executor& executor, const Ints& input_ids, const Ints& position_ids, const Ints& cu_seqlens,
               const Ints& context_lens, const IntTable& block_tables, const Ints& logit_rows,
               const std::optional<Ints>& adapter_slots) {
  Batch batch;
  batch.num_tokens = to_i32(input_ids.shape(0));
  batch.num_seqs = to_i32(context_lens.shape(0));
  batch.num_logits = to_i32(logit_rows.shape(0));
  batch.block_table_stride = to_i32(block_tables.shape(1));
  require_length("position_ids", position_ids.shape(0), input_ids.shape(0));
  require_length("cu_seqlens", cu_seqlens.shape(0), context_lens.shape(0) + 1);
  require_length("block_tables", block_tables.shape(0), context_lens.shape(0));
  batch.input_ids = input_ids.data();
  batch.position_ids = position_ids.data();
  batch.cu_seqlens = cu_seqlens.data();
  batch.context_lens = context_lens.data();
  batch.block_tables = block_tables.data();
  batch.logit_rows = logit_rows.data();
  if (adapter_slots.has_value()) {
    require_length("adapter_slots", adapter_slots->shape(0), context_lens.shape(0));
    batch.adapter_slots = adapter_slots->data();
  }
  const size_t rows = logit_rows.shape(0), columns = static_cast<size_t>(executor.output_width());
  auto copy = std::make_unique<float[]>(rows * columns);
  {
    const nb::gil_scoped_release no_gil;
    executor.forward(batch);
    for (size_t row = 0; row < rows; ++row) {
      std::copy_n(executor.logits() + static_cast<int64_t>(row) * executor.logits_stride(), columns,
                  copy.get() + row * columns);
    }
  }
  float* data = copy.release();
  const nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return Floats(data, {rows, columns}, owner);
}

nb::dict memory(const Executor& executor) {
  const MemoryUse use = executor.memory();
  nb::dict result;
  result["weight_bytes"] = use.weight_bytes;
  result["widened_bytes"] = use.widened_bytes;
  result["arena_bytes"] = use.arena_bytes;
  result["kv_bytes"] = use.kv_bytes;
  result["workspace_bytes"] = use.workspace_bytes;
  result["adapter_bytes"] = use.adapter_bytes;
  return result;
}

nb::list calls(const Executor& executor) {
  nb::list result;
  for (const CallInfo& call : executor.calls()) {
    nb::dict row;
    row["op"] = call.op;
    row["kernel"] = call.kernel;
    row["layer"] = call.layer < 0 ? nb::none() : nb::cast(call.layer);
    row["source"] = call.source;
    row["weight_bytes"] = call.weight_bytes;
    row["num_runs"] = call.num_runs;
    row["total_ns"] = call.total_ns;
    result.append(row);
  }
  return result;
}

// (module, lora_A [rank, in_features], lora_B [out_features, rank], scale)
using ModuleTuple = std::tuple<std::string, Matrix, Matrix, float>;

void load_adapter(Executor& executor, int32_t slot, const std::vector<ModuleTuple>& given) {
  std::vector<LoraModule> modules;
  for (const auto& [name, down, up, scale] : given) {
    LoraModule module{name,
                      static_cast<int64_t>(down.shape(0)),
                      static_cast<int64_t>(down.shape(1)),
                      static_cast<int64_t>(up.shape(0)),
                      down.data(),
                      up.data(),
                      scale};
    require_length("lora_B of the adapter", up.shape(1), down.shape(0));
    modules.push_back(std::move(module));
  }
  const nb::gil_scoped_release no_gil;
  executor.load_adapter(slot, modules);
}

nb::dict adapter_modules(const Executor& executor) {
  nb::dict result;
  for (const auto& [module, in_features, out_features] : executor.adapter_modules())
    result[module.c_str()] = nb::make_tuple(out_features, in_features);
  return result;
}

}  // namespace

void bind_executor(nb::module_& m) {
  nb::class_<Executor>(m, "Executor",
                       "Runs a plan on the CPU.\n\n"
                       "plan: parsed plan.json. weights: name -> (path, offset, number of bytes). Raises RuntimeError "
                       "with what, where and what to do.")
      .def("__init__", &construct, nb::arg("plan"), nb::arg("weights"), nb::arg("num_threads") = 0,
           nb::arg("max_num_tokens") = 512, nb::arg("max_num_logits") = 64, nb::arg("num_blocks") = 256,
           nb::arg("kv_dtype") = "f32", nb::arg("isa") = "auto", nb::arg("quantize_activations") = true)
      .def("forward", &forward, nb::arg("input_ids"), nb::arg("position_ids"), nb::arg("cu_seqlens"),
           nb::arg("context_lens"), nb::arg("block_tables"), nb::arg("logit_rows"),
           nb::arg("adapter_slots") = nb::none(),
           "One step over int32 arrays (csrc/executor/batch.h); returns f32 [num_logits, output_width]. One call at a "
           "time.")
      .def("load_adapter", &load_adapter, nb::arg("slot"), nb::arg("modules"),
           "Puts an adapter into an empty slot, between two steps. modules: (name, lora_A, lora_B, scale). Raises "
           "RuntimeError for a module that the plan has no site for, or of another shape; then nothing has changed.")
      .def("unload_adapter", &Executor::unload_adapter, nb::arg("slot"), nb::call_guard<nb::gil_scoped_release>(),
           "Empties a slot that no later step names.")
      .def("adapter_modules", &adapter_modules,
           "Modules that an adapter can change: name -> (out_features, in_features).")
      .def("copy_block", &Executor::copy_block, nb::arg("source_block"), nb::arg("target_block"))
      .def("memory", &memory, "Bytes by purpose.")
      .def("profile", &Executor::set_profiling, nb::arg("on"),
           "Measures every call from now on; forgets the times so far.")
      .def("calls", &calls,
           "What each call of the plan is bound to: op, kernel, layer, source, weight_bytes, num_runs, total_ns.")
      .def_prop_ro("vocab_size", &Executor::vocab_size)
      .def_prop_ro("output_width", &Executor::output_width)
      .def_prop_ro("embedding_width", &Executor::embedding_width)
      .def_prop_ro("max_context_len", &Executor::max_context_len)
      .def_prop_ro("max_num_tokens", &Executor::max_num_tokens)
      .def_prop_ro("max_num_logits", &Executor::max_num_logits)
      .def_prop_ro("num_blocks", &Executor::num_blocks)
      .def_prop_ro("block_size", [](const Executor&) { return kBlockSize; })
      .def_prop_ro("kv_bytes_per_block", &Executor::kv_bytes_per_block)
      .def_prop_ro("num_threads", &Executor::num_threads)
      .def_prop_ro("isa", &Executor::isa)
      .def_static("kernel_names", &kernel_names, "Every kernel that this build can run on this machine.");
}

}  // namespace fmo
