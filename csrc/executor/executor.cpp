#include "executor/executor.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <limits>
#include <mutex>

#include "base/memory.h"
#include "device/cpu/team_size.h"
#include "device/cpu/thread_pool.h"
#include "executor/binder.h"
#include "executor/ops.h"
#include "executor/packed_linear.h"
#include "executor/weight_memory.h"

namespace fmo {
namespace {

constexpr int64_t kAlignment = 64;  // bytes: of buffers, weights and KV layers
constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxRows = 1 << 24;  // tokens per step

const char* arena_name(size_t arena) {
  constexpr const char* names[] = {"fixed", "num_tokens", "num_logits"};
  return names[arena];
}

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Row-major strides; a row dim can only come first.
std::array<int64_t, kMaxRank> contiguous_strides(const Tensor& x, const std::string& where) {
  std::array<int64_t, kMaxRank> strides{};
  int64_t stride = 1;
  for (int axis = x.rank - 1; axis >= 0; --axis) {
    strides[static_cast<size_t>(axis)] = stride;
    if (x.row_dim(axis) != RowDim::none && axis > 0)
      throw PlanError("a view whose row dim is not the first needs strides", where);
    if (axis > 0) stride = checked_mul(stride, x.dim(axis));
  }
  return strides;
}

struct PlacedMemory {
  char* data = nullptr;
  int64_t num_elements = 0;
};

struct BoundCall {
  BoundOp op;
  CallInfo info;
};

struct RowAxis {
  Tensor* tensor;
  size_t axis;
};

}  // namespace

struct Executor::Impl final : Storage {
  Impl(const PlanSpec& plan_spec, const ExecutorOptions& given);

  Tensor resolve(const ViewSpec& view, const std::string& where, bool keep_16_bit) override;
  const WeightSpec& weight_spec(const std::string& name, const std::string& where) const override;
  const WeightPointers& weight_pointers_of(const std::string& name) const override { return weight_pointers.at(name); }
  bool quantize_activations() const override { return options.quantize_activations; }
  LoraCall* lora_call(const CallSpec& call, int64_t N, int64_t K, RowDim row_dim, DType dtype,
                      const std::string& where) override {
    return lora.add_call(call, N, K, row_dim, dtype, isa, where);
  }
  int64_t max_rows(RowDim row_dim) const override {
    if (row_dim == RowDim::none) return 1;
    return row_dim == RowDim::num_tokens ? options.max_num_tokens : options.max_num_logits;
  }
  int64_t max_context_len() const override { return plan.max_context_len; }
  int64_t num_kv_layers() const override { return static_cast<int64_t>(kv_layers.size()); }
  const KvLayer& kv_layer(int64_t index) const override { return kv_layers[static_cast<size_t>(index)]; }

  void check_options() const;
  void map_weights();
  const char* map_tensor(const std::string& name, const FilePlace& place, int64_t expected_bytes);
  void place_arenas();
  void place_kv();
  void bind_calls();
  void bind_logits();
  PlacedMemory memory_of(const ViewSpec& view, const std::string& where, bool keep_16_bit);
  PlacedMemory buffer_memory(const ViewSpec& view, const std::string& where) const;
  PlacedMemory weight_memory(const ViewSpec& view, const std::string& where, bool keep_16_bit);
  PlacedMemory input_memory(const ViewSpec& view, const std::string& where);
  char* widened(const std::string& name, const WeightSpec& spec, int64_t count);
  void check_batch(const Batch& batch) const;
  void check_sequence(const Batch& batch, int32_t seq) const;
  void start_step(const Batch& batch);
  void run_calls(const Step& step, int thread);

  PlanSpec plan;
  ExecutorOptions options;
  Isa isa;
  ThreadPool pool;
  TeamSize team;
  std::map<std::string, MappedFile> files;
  std::map<std::string, WeightPointers> weight_pointers;
  int64_t mapped_bytes = 0;
  std::map<std::string, PageBuffer> widened_weights;
  std::array<PageBuffer, 3> arenas;
  PageBuffer kv_memory;
  std::vector<KvLayer> kv_layers;
  std::vector<int32_t> input_ids, position_ids, logit_rows;
  std::vector<std::unique_ptr<Tensor>> tensors;
  std::vector<RowAxis> row_axes;
  Lora lora;
  std::vector<BoundCall> bound_calls;
  PageBuffer shared_workspace, thread_workspaces;
  int64_t thread_workspace_bytes = 0;
  Tensor logits;
  StepFailure failure;
  std::array<std::atomic<int64_t>, 4> tickets{};
  bool profiling = false;
  std::mutex forward_mutex, adapter_mutex;  // adapter_mutex: one adapter is loaded or unloaded at a time
};

Executor::Impl::Impl(const PlanSpec& plan_spec, const ExecutorOptions& given)
    : plan(plan_spec),
      options(given),
      isa(resolve_isa(given.isa)),
      pool(given.num_threads > 0 ? std::min(given.num_threads, kMaxThreads) : usable_threads()),
      team(pool.num_threads()),
      lora(given.max_num_tokens, given.max_num_logits) {
  check_options();
  map_weights();
  place_arenas();
  place_kv();
  bind_calls();
  bind_logits();
}

void Executor::Impl::check_options() const {
  const auto require_range = [](const char* name, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return;
    throw Error(std::string(name) + " is " + std::to_string(value), "executor options",
                "choose a value from " + std::to_string(low) + " to " + std::to_string(high));
  };
  require_range("num_threads", options.num_threads, 0, kMaxThreads);
  require_range("max_num_tokens", options.max_num_tokens, 1, kMaxRows);
  require_range("max_num_logits", options.max_num_logits, 1, kMaxRows);
  require_range("num_blocks", options.num_blocks, 1, std::numeric_limits<int32_t>::max());
  if (options.kv_dtype != DType::f32 && options.kv_dtype != DType::bf16 && options.kv_dtype != DType::i8) {
    throw Error(std::string("kv_dtype is ") + dtype_name(options.kv_dtype), "executor options", "use f32, bf16 or i8");
  }
  if (plan.vocab_size < 1) throw PlanError("vocab_size is " + std::to_string(plan.vocab_size), "plan.json");
  if (plan.output_width < 1) throw PlanError("output_width is " + std::to_string(plan.output_width), "plan.json");
}

const char* Executor::Impl::map_tensor(const std::string& name, const FilePlace& place, int64_t expected_bytes) {
  const std::string where = "weight '" + name + "', " + place.path;
  auto file = files.find(place.path);
  if (file == files.end()) file = files.emplace(place.path, MappedFile(place.path)).first;
  if (place.num_bytes != expected_bytes) {
    throw PlanError("the weight has " + std::to_string(place.num_bytes) + " bytes, its dims and layout need " +
                        std::to_string(expected_bytes),
                    where);
  }
  if (checked_add(place.offset, place.num_bytes) > file->second.size()) {
    throw Error("the weight ends at byte " + std::to_string(place.offset + place.num_bytes) + " of a file of " +
                    std::to_string(file->second.size()),
                where, "the file is truncated: copy or compile the artifact again");
  }
  if (place.offset % kAlignment != 0)
    throw PlanError("the weight starts at byte " + std::to_string(place.offset) + ", which is not a multiple of 64",
                    where);
  mapped_bytes += place.num_bytes;
  return file->second.data() + place.offset;
}

void Executor::Impl::map_weights() {
  for (const auto& [name, spec] : plan.weights) {
    const WeightBytes bytes = weight_bytes(spec, "plan.json, weight '" + name + "'");
    WeightPointers& pointers = weight_pointers[name];
    pointers.data = map_tensor(name, spec.place, bytes.data);
    if (!spec.quant.has_value()) continue;
    pointers.scales = map_tensor(name + ".scales", spec.quant->scales, bytes.scales);
    if (spec.quant->zeros.has_value()) pointers.zeros = map_tensor(name + ".zeros", *spec.quant->zeros, bytes.zeros);
  }
}

void Executor::Impl::place_arenas() {
  for (size_t arena = 0; arena < arenas.size(); ++arena) {
    const int64_t num_bytes = checked_mul(plan.arena_bytes[arena], max_rows(static_cast<RowDim>(arena)));
    arenas[arena] = PageBuffer(num_bytes, std::string("the arena ") + arena_name(arena));
  }
  for (size_t id = 0; id < plan.buffers.size(); ++id) {
    const BufferSpec& buffer = plan.buffers[id];
    const std::string where = "plan.json, buffer " + std::to_string(id);
    const size_t arena = static_cast<size_t>(buffer.arena);
    if (checked_add(buffer.offset, buffer.row_bytes) > plan.arena_bytes[arena]) {
      throw PlanError("the buffer ends at " + std::to_string(buffer.offset + buffer.row_bytes) + " of " +
                          std::to_string(plan.arena_bytes[arena]) + " bytes of the arena " + arena_name(arena),
                      where);
    }
    if (buffer.offset % kAlignment != 0 || buffer.row_bytes % kAlignment != 0)
      throw PlanError("offset or row_bytes is no multiple of 64", where);
  }
  input_ids.resize(static_cast<size_t>(options.max_num_tokens));
  position_ids.resize(static_cast<size_t>(options.max_num_tokens));
  logit_rows.resize(static_cast<size_t>(options.max_num_logits));
}

void Executor::Impl::place_kv() {
  int64_t total = 0;
  std::vector<int64_t> offsets;
  for (const KvLayerSpec& spec : plan.kv_layers) {
    const std::string where = "plan.json, KV layer " + std::to_string(kv_layers.size());
    if (spec.num_kv_heads < 1 || spec.k_head_dim < 1 || spec.v_head_dim < 1)
      throw PlanError("heads and head dims must be positive", where);
    checked_mul(spec.num_kv_heads, checked_mul(checked_add(spec.k_head_dim, spec.v_head_dim + 16), kKvBlock * 4));
    kv_layers.push_back({nullptr, options.kv_dtype, spec.num_kv_heads, spec.k_head_dim, spec.v_head_dim});
    offsets.push_back(total);
    total = checked_add(total, checked_mul(options.num_blocks, kv_layers.back().block_bytes()));
    total = checked_mul(ceil_div(total, kAlignment), kAlignment);
  }
  kv_memory = PageBuffer(total, "the KV cache");
  for (size_t i = 0; i < kv_layers.size(); ++i) kv_layers[i].data = kv_memory.data() + offsets[i];
}

const WeightSpec& Executor::Impl::weight_spec(const std::string& name, const std::string& where) const {
  const auto found = plan.weights.find(name);
  if (found == plan.weights.end()) throw PlanError("there is no weight '" + name + "'", where);
  return found->second;
}

// A 16-bit weight that is read by a kernel which knows f32 only is kept as f32: norms, biases, small tables.
char* Executor::Impl::widened(const std::string& name, const WeightSpec& spec, int64_t count) {
  auto found = widened_weights.find(name);
  if (found == widened_weights.end()) {
    PageBuffer wide(checked_mul(count, 4), "weight '" + name + "' as f32");
    const auto* halves = reinterpret_cast<const uint16_t*>(weight_pointers.at(name).data);
    auto* floats = reinterpret_cast<float*>(wide.data());
    for (int64_t i = 0; i < count; ++i)
      floats[i] = spec.dtype == DType::bf16 ? bf16_to_f32(halves[i]) : f16_to_f32(halves[i]);
    found = widened_weights.emplace(name, std::move(wide)).first;
  }
  return found->second.data();
}

PlacedMemory Executor::Impl::buffer_memory(const ViewSpec& view, const std::string& where) const {
  if (view.buffer < 0 || view.buffer >= static_cast<int64_t>(plan.buffers.size())) {
    throw PlanError(
        "there is no buffer " + std::to_string(view.buffer) + " among " + std::to_string(plan.buffers.size()), where);
  }
  if (view.dtype == DType::bf16 || view.dtype == DType::f16)
    throw PlanError(std::string("a buffer cannot hold ") + dtype_name(view.dtype), where);
  const BufferSpec& buffer = plan.buffers[static_cast<size_t>(view.buffer)];
  const int64_t rows = max_rows(buffer.arena);
  const PageBuffer& arena = arenas[static_cast<size_t>(buffer.arena)];
  return {arena.data() + buffer.offset * rows, buffer.row_bytes * rows / dtype_bytes(view.dtype)};
}

PlacedMemory Executor::Impl::weight_memory(const ViewSpec& view, const std::string& where, bool keep_16_bit) {
  const WeightSpec& spec = weight_spec(view.name, where);
  if (spec.layout != Layout::row_major)
    throw PlanError("the weight '" + view.name + "' is packed, the op takes row_major", where);
  if (view.dtype != spec.dtype) {
    throw PlanError("the view is " + std::string(dtype_name(view.dtype)) + ", the weight '" + view.name + "' is " +
                        dtype_name(spec.dtype),
                    where);
  }
  const int64_t count = spec.place.num_bytes / dtype_bytes(spec.dtype);
  const bool is_16_bit = spec.dtype == DType::bf16 || spec.dtype == DType::f16;
  if (is_16_bit && !keep_16_bit) return {widened(view.name, spec, count), count};
  return {const_cast<char*>(weight_pointers.at(view.name).data), count};
}

PlacedMemory Executor::Impl::input_memory(const ViewSpec& view, const std::string& where) {
  if (view.dtype != DType::i32)
    throw PlanError("the input '" + view.name + "' is i32, not " + dtype_name(view.dtype), where);
  std::vector<int32_t>* source = nullptr;
  if (view.name == "input_ids") source = &input_ids;
  if (view.name == "position_ids") source = &position_ids;
  if (view.name == "logit_rows") source = &logit_rows;
  if (source == nullptr)
    throw PlanError("the input '" + view.name + "' is none of input_ids, position_ids, logit_rows", where);
  return {reinterpret_cast<char*>(source->data()), static_cast<int64_t>(source->size())};
}

PlacedMemory Executor::Impl::memory_of(const ViewSpec& view, const std::string& where, bool keep_16_bit) {
  switch (view.space) {
    case ViewSpec::Space::buffer:
      return buffer_memory(view, where);
    case ViewSpec::Space::weight:
      return weight_memory(view, where, keep_16_bit);
    case ViewSpec::Space::input:
      return input_memory(view, where);
  }
  return {};
}

// The element of a view that lies furthest, at the largest step, must be inside of its memory.
Tensor Executor::Impl::resolve(const ViewSpec& view, const std::string& where, bool keep_16_bit) {
  Tensor x;
  if (view.dims.size() > kMaxRank)
    throw PlanError("a view of " + std::to_string(view.dims.size()) + " dims; at most 8 are supported", where);
  if (is_weight_code(view.dtype))
    throw PlanError(
        std::string("the operand is a quantized weight (") + dtype_name(view.dtype) + "), which this op does not take",
        where);
  x.rank = static_cast<int>(view.dims.size());
  for (size_t axis = 0; axis < view.dims.size(); ++axis) {
    x.row_dims[axis] = view.dims[axis].row_dim;
    x.dims[axis] = view.dims[axis].row_dim == RowDim::none ? view.dims[axis].size : max_rows(view.dims[axis].row_dim);
    if (x.dims[axis] < 0) throw PlanError("a negative dim", where);
  }
  x.strides = contiguous_strides(x, where);
  if (view.strides.has_value()) {
    if (view.strides->size() != view.dims.size())
      throw PlanError("the view has another number of strides than of dims", where);
    std::copy(view.strides->begin(), view.strides->end(), x.strides.begin());
  }
  const PlacedMemory memory = memory_of(view, where, keep_16_bit);
  const bool is_widened = (view.dtype == DType::bf16 || view.dtype == DType::f16) && !keep_16_bit;
  x.dtype = is_widened ? DType::f32 : view.dtype;
  int64_t last = view.offset, count = 1;
  for (int axis = 0; axis < x.rank; ++axis) {
    count = checked_mul(count, x.dim(axis));
    last = checked_add(last, checked_mul(std::max<int64_t>(x.dim(axis) - 1, 0), x.stride(axis)));
  }
  if (view.offset < 0 || (count > 0 && last >= memory.num_elements)) {
    throw PlanError("the view reaches element " + std::to_string(last) + " of " + std::to_string(memory.num_elements),
                    where);
  }
  x.data = memory.data + (count > 0 ? view.offset * dtype_bytes(x.dtype) : 0);
  return x;
}

void Executor::Impl::bind_calls() {
  Workspace workspace;
  for (const CallSpec& call : plan.calls) {
    const BindFunction bind = find_op(call.op);
    if (bind == nullptr)
      throw PlanError("this build has no kernel for '" + call.op + "'",
                      "plan.json, call " + std::to_string(bound_calls.size()));
    Binder binder(call, *this, isa, pool.num_threads(), tensors);
    BoundCall bound{bind(binder), {}};
    binder.require_all_attrs_read();
    bound.info = {call.op, bound.op.kernel, call.source, call.layer, binder.weight_bytes(), 0, 0};
    workspace.shared_bytes = std::max(workspace.shared_bytes, binder.workspace().shared_bytes);
    workspace.thread_bytes = std::max(workspace.thread_bytes, binder.workspace().thread_bytes);
    bound_calls.push_back(std::move(bound));
  }
  thread_workspace_bytes = workspace.thread_bytes;
  shared_workspace = PageBuffer(workspace.shared_bytes, "the workspace");
  thread_workspaces =
      PageBuffer(checked_mul(thread_workspace_bytes, pool.num_threads()), "the workspaces of the threads");
  for (const auto& tensor : tensors) {
    for (size_t axis = 0; axis < kMaxRank; ++axis) {
      if (tensor->row_dims[axis] != RowDim::none) row_axes.push_back({tensor.get(), axis});
    }
  }
}

void Executor::Impl::bind_logits() {
  logits = resolve(plan.logits, "plan.json, logits", false);
  const bool fits = plan.logits.space == ViewSpec::Space::buffer && logits.dtype == DType::f32 && logits.rank == 2 &&
                    logits.row_dim(0) == RowDim::num_logits && logits.row_dim(1) == RowDim::none &&
                    logits.dim(1) == plan.output_width && logits.stride(1) == 1;
  if (!fits)
    throw PlanError("the logits are " + describe(logits) + ", expected a buffer f32 [num_logits, " +
                        std::to_string(plan.output_width) + "]",
                    "plan.json, logits");
}

namespace {

[[noreturn]] void bad_batch(const std::string& what) {
  throw Error(what, "the batch of a step", "this is a bug of the caller: report it");
}

void check_values(const char* name, const int32_t* values, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] < 0 || values[i] >= limit) {
      bad_batch(std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(values[i]) + ", expected 0 to " +
                std::to_string(limit - 1));
    }
  }
}

}  // namespace

void Executor::Impl::check_sequence(const Batch& batch, int32_t seq) const {
  const int64_t length = static_cast<int64_t>(batch.cu_seqlens[seq + 1]) - batch.cu_seqlens[seq];
  if (length < 1) bad_batch("cu_seqlens does not rise at sequence " + std::to_string(seq));
  if (batch.context_lens[seq] < 0)
    bad_batch("context_lens[" + std::to_string(seq) + "] is " + std::to_string(batch.context_lens[seq]));
  const int64_t num_blocks = ceil_div(batch.context_lens[seq] + length, kBlockSize);
  if (num_blocks > batch.block_table_stride) {
    bad_batch("sequence " + std::to_string(seq) + " needs " + std::to_string(num_blocks) + " blocks, its table has " +
              std::to_string(batch.block_table_stride));
  }
  check_values("block_tables", batch.block_tables + static_cast<int64_t>(seq) * batch.block_table_stride, num_blocks,
               options.num_blocks);
}

void Executor::Impl::check_batch(const Batch& batch) const {
  const auto require_count = [](const char* name, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) {
      bad_batch(std::string(name) + " is " + std::to_string(value) + ", expected " + std::to_string(low) + " to " +
                std::to_string(high));
    }
  };
  require_count("num_tokens", batch.num_tokens, 1, options.max_num_tokens);
  require_count("num_logits", batch.num_logits, 0, options.max_num_logits);
  require_count("num_seqs", batch.num_seqs, 1, batch.num_tokens);
  require_count("block_table_stride", batch.block_table_stride, 1, std::numeric_limits<int32_t>::max());
  check_values("input_ids", batch.input_ids, batch.num_tokens, plan.vocab_size);
  check_values("position_ids", batch.position_ids, batch.num_tokens, std::numeric_limits<int32_t>::max());
  check_values("logit_rows", batch.logit_rows, batch.num_logits, batch.num_tokens);
  if (batch.cu_seqlens[0] != 0 || batch.cu_seqlens[batch.num_seqs] != batch.num_tokens) {
    bad_batch("cu_seqlens goes from " + std::to_string(batch.cu_seqlens[0]) + " to " +
              std::to_string(batch.cu_seqlens[batch.num_seqs]) + ", expected 0 to " + std::to_string(batch.num_tokens));
  }
  for (int32_t seq = 0; seq < batch.num_seqs; ++seq) check_sequence(batch, seq);
}

void Executor::Impl::start_step(const Batch& batch) {
  check_batch(batch);
  std::copy_n(batch.input_ids, batch.num_tokens, input_ids.data());
  std::copy_n(batch.position_ids, batch.num_tokens, position_ids.data());
  std::copy_n(batch.logit_rows, batch.num_logits, logit_rows.data());
  for (const RowAxis& row : row_axes) {
    row.tensor->dims[row.axis] =
        row.tensor->row_dims[row.axis] == RowDim::num_tokens ? batch.num_tokens : batch.num_logits;
  }
  failure.happened.store(false);
  for (std::atomic<int64_t>& ticket : tickets) ticket.store(0);
}

void Executor::Impl::run_calls(const Step& step, int thread) {
  const bool timed = profiling && thread == 0;
  int64_t before = timed ? now_ns() : 0;
  Step mine = step;
  for (size_t i = 0; i < bound_calls.size(); ++i) {
    mine.ticket = &tickets[i % tickets.size()];
    mine.call = static_cast<int>(i);
    tickets[(i + 2) % tickets.size()].store(0, std::memory_order_relaxed);  // of call i-2, which all threads have left
    bound_calls[i].op.run(mine, thread);
    pool.barrier();
    if (timed) {
      const int64_t after = now_ns();
      bound_calls[i].info.total_ns += after - before;
      ++bound_calls[i].info.num_runs;
      before = after;
    }
  }
}

Executor::Executor(const PlanSpec& plan, const ExecutorOptions& options)
    : impl_(std::make_unique<Impl>(plan, options)) {}
Executor::~Executor() = default;

void Executor::forward(const Batch& batch) {
  Impl& impl = *impl_;
  const std::lock_guard one_at_a_time(impl.forward_mutex);
  impl.start_step(batch);
  const Step step{&batch,
                  impl.lora.start_step(batch),
                  &impl.pool,
                  impl.team.size(),
                  impl.shared_workspace.data(),
                  impl.thread_workspaces.data(),
                  impl.thread_workspace_bytes,
                  &impl.failure};
  const int64_t start_ns = now_ns();
  impl.pool.run([&](int thread) { impl.run_calls(step, thread); }, step.num_threads);
  impl.team.observe(now_ns() - start_ns, impl.pool.lost_ns());
  if (impl.failure.happened.load()) {
    const CallInfo& info = impl.bound_calls[static_cast<size_t>(impl.failure.call.load())].info;
    throw Error("an index is " + std::to_string(impl.failure.value.load()) + ", expected 0 to " +
                    std::to_string(impl.failure.limit.load() - 1),
                info.op + (info.source.empty() ? "" : " of " + info.source),
                "check that positions are below the model's maximum context length");
  }
}

const float* Executor::logits() const { return impl_->logits.as<const float>(); }
int64_t Executor::logits_stride() const { return impl_->logits.stride(0); }

void Executor::copy_block(int32_t source_block, int32_t target_block) {
  for (int32_t block : {source_block, target_block}) {
    if (block < 0 || block >= impl_->options.num_blocks) bad_batch("there is no KV block " + std::to_string(block));
  }
  for (const KvLayer& layer : impl_->kv_layers) {
    const int64_t bytes = layer.block_bytes();
    std::memmove(layer.data + target_block * bytes, layer.data + source_block * bytes, static_cast<size_t>(bytes));
  }
}

void Executor::run(const std::function<void(int thread)>& body) { impl_->pool.run(body, impl_->team.size()); }

void Executor::load_adapter(int32_t slot, std::span<const LoraModule> modules) {
  const std::lock_guard one_at_a_time(impl_->adapter_mutex);
  Lora::Packed packed = impl_->lora.pack(modules);
  const std::lock_guard between_steps(impl_->forward_mutex);
  impl_->lora.install(slot, std::move(packed));
}

void Executor::unload_adapter(int32_t slot) {
  const std::lock_guard one_at_a_time(impl_->adapter_mutex);
  const std::lock_guard between_steps(impl_->forward_mutex);
  impl_->lora.remove(slot);
}

std::vector<Lora::ModuleShape> Executor::adapter_modules() const { return impl_->lora.modules(); }

int64_t Executor::vocab_size() const { return impl_->plan.vocab_size; }
int64_t Executor::output_width() const { return impl_->plan.output_width; }

int64_t Executor::embedding_width() const {
  int64_t width = 0, num_readers = 0;
  for (const CallSpec& call : impl_->plan.calls) {
    num_readers += std::ranges::any_of(call.inputs, [](const std::optional<ViewSpec>& view) {
      return view && view->space == ViewSpec::Space::input && view->name == "input_ids";
    });
    if (reads_token_ids(call)) width = call.outputs[0].dims.back().size;
  }
  return num_readers == 1 ? width : 0;
}

int64_t Executor::max_context_len() const { return impl_->plan.max_context_len; }
int64_t Executor::max_num_tokens() const { return impl_->options.max_num_tokens; }
int64_t Executor::max_num_logits() const { return impl_->options.max_num_logits; }
int64_t Executor::num_blocks() const { return impl_->options.num_blocks; }
int Executor::num_threads() const { return impl_->pool.num_threads(); }
const char* Executor::isa() const { return isa_name(impl_->isa); }

int64_t Executor::kv_bytes_per_block() const {
  int64_t sum = 0;
  for (const KvLayer& layer : impl_->kv_layers) sum += layer.block_bytes();
  return sum;
}

MemoryUse Executor::memory() const {
  MemoryUse use;
  use.weight_bytes = impl_->mapped_bytes;
  for (const auto& [name, wide] : impl_->widened_weights) use.widened_bytes += wide.size();
  for (const PageBuffer& arena : impl_->arenas) use.arena_bytes += arena.size();
  use.kv_bytes = impl_->kv_memory.size();
  use.adapter_bytes = impl_->lora.num_bytes();
  use.workspace_bytes = impl_->shared_workspace.size() + impl_->thread_workspaces.size();
  return use;
}

void Executor::set_profiling(bool on) {
  impl_->profiling = on;
  for (BoundCall& call : impl_->bound_calls) call.info.num_runs = call.info.total_ns = 0;
}

std::vector<CallInfo> Executor::calls() const {
  std::vector<CallInfo> infos;
  for (const BoundCall& call : impl_->bound_calls) infos.push_back(call.info);
  return infos;
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  std::vector<Isa> isas = {Isa::scalar};
  if (detect_isa() == Isa::avx2) isas.push_back(Isa::avx2);
  for (Isa isa : isas) {
    const std::string suffix = std::string(".cpu.") + isa_name(isa);
    for (const std::string& kind : PackedLinear::kernel_suffixes(isa)) {
      for (const char* op : {"linear.cpu.", "experts.cpu."}) names.push_back(op + kind);
    }
    for (DType dtype : {DType::f32, DType::bf16, DType::i8})
      names.push_back("attention" + suffix + "." + dtype_name(dtype));
    for (const char* op :
         {"rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm", "act_mul", "softmax", "pointwise"})
      names.push_back(op + suffix);
  }
  for (const char* dtype : {"f32", "bf16", "f16"}) names.push_back(std::string("embedding.cpu.") + dtype);
  names.emplace_back("rope.cpu");
  for (Isa isa : isas) names.push_back(std::string("lora.cpu.") + isa_name(isa));
  for (const std::string& op : op_names()) {
    if (op.starts_with("tensor.") || op.starts_with("reduce.")) names.push_back(op.substr(op.find('.') + 1) + ".cpu");
  }
  return names;
}

}  // namespace fmo
