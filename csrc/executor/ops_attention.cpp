// attn.paged: all threads append the step's keys and values, then take tasks (sequence × chunk of queries × KV head)
// or, when these are few, pieces of the context of tasks, until none is left.
#include <algorithm>

#include "executor/ops.h"

namespace fmo {
namespace {

constexpr int64_t kTasksPerThread = 8;  // with fewer, pieces are shared out: threads then end at about the same time

struct Attention {
  const Tensor *q, *k, *v, *y;
  const KvLayer* layer;
  AttentionParams params;
  AttentionKernels kernels;
  int64_t max_state_floats;  // of the pieces, in the shared workspace

  static HeadRows rows_of(const Tensor& x, int64_t first_row) {
    return {x.as<const float>() + first_row * x.stride(0), x.stride(0), x.stride(1)};
  }
};

const int32_t* block_table(const Batch& batch, int64_t seq) {
  return batch.block_tables + seq * batch.block_table_stride;
}

void append(const Attention& a, const Step& step, int thread) {
  const Batch& batch = *step.batch;
  const Range mine = split(batch.num_tokens, thread, step.num_threads);
  for (int64_t seq = 0; seq < batch.num_seqs; ++seq) {
    const int64_t begin = std::max<int64_t>(mine.begin, batch.cu_seqlens[seq]),
                  end = std::min<int64_t>(mine.end, batch.cu_seqlens[seq + 1]);
    if (begin >= end) continue;
    const int64_t position = batch.context_lens[seq] + begin - batch.cu_seqlens[seq];
    a.kernels.append(*a.layer, Attention::rows_of(*a.k, begin), Attention::rows_of(*a.v, begin), end - begin, position,
                     block_table(batch, seq));
  }
}

// Tasks in the order in which threads take them: visit(task, number of its pieces). The longest contexts come last in a
// sequence, so chunks are walked backwards: what is left for the end is short.
template <class Visit>
void for_each_task(const Attention& a, const Batch& batch, Visit&& visit) {
  AttentionTask task;
  task.group = a.params.num_q_heads / a.layer->num_kv_heads;
  task.out_row_stride = a.y->stride(0);
  task.out_head_stride = a.y->stride(1);
  const int64_t chunk = queries_per_task(task.group);
  for (int64_t seq = 0; seq < batch.num_seqs; ++seq) {
    const int64_t length = batch.cu_seqlens[seq + 1] - batch.cu_seqlens[seq];
    task.block_table = block_table(batch, seq);
    for (int64_t query = (length - 1) / chunk * chunk; query >= 0; query -= chunk) {
      const int64_t row = batch.cu_seqlens[seq] + query;
      task.q = Attention::rows_of(*a.q, row);
      task.out = a.y->as<float>() + row * a.y->stride(0);
      task.num_queries = std::min(chunk, length - query);
      task.first_position = batch.context_lens[seq] + query;
      for (task.kv_head = 0; task.kv_head < a.layer->num_kv_heads; ++task.kv_head) visit(task);
    }
  }
}

// Whether the pieces of the tasks are work of their own: when there are few tasks, and the states of all pieces fit.
bool splits_pieces(const Attention& a, const Batch& batch, int num_threads) {
  int64_t num_tasks = 0, num_pieces = 0, state_floats = 0;
  for_each_task(a, batch, [&](const AttentionTask& task) {
    const int64_t pieces = task_pieces(a.params, task).size();
    num_tasks += 1;
    num_pieces += pieces;
    state_floats += pieces * RowStates::floats(*a.layer, task.num_rows());
  });
  return num_threads > 1 && num_tasks < kTasksPerThread * num_threads && num_pieces > num_tasks &&
         state_floats <= a.max_state_floats;
}

void attend_tasks(const Attention& a, const Step& step, float* scratch) {
  int64_t mine = step.take(1), index = 0;
  for_each_task(a, *step.batch, [&](const AttentionTask& task) {
    if (index++ != mine) return;
    attend(a.kernels, *a.layer, a.params, task, scratch);
    mine = step.take(1);
  });
}

// The states of the pieces lie one after the other in the shared workspace, task by task.
void attend_pieces(const Attention& a, const Step& step, float* scratch) {
  int64_t mine = step.take(1), index = 0;
  float* memory = reinterpret_cast<float*>(step.shared_workspace);
  for_each_task(a, *step.batch, [&](const AttentionTask& task) {
    const Range pieces = task_pieces(a.params, task);
    for (int64_t piece = pieces.begin; piece < pieces.end; ++piece) {
      const RowStates states = RowStates::in(memory, *a.layer, task.num_rows());
      memory += RowStates::floats(*a.layer, task.num_rows());
      if (index++ != mine) continue;
      a.kernels.attend_piece(*a.layer, a.params, task, piece, states, scratch);
      mine = step.take(1);
    }
  });
}

// The pieces of each task, in order, as `attend` does it.
void fold_tasks(const Attention& a, const Step& step, int thread, float* scratch) {
  const float* memory = reinterpret_cast<const float*>(step.shared_workspace);
  int64_t index = 0;
  for_each_task(a, *step.batch, [&](const AttentionTask& task) {
    const int64_t num_pieces = task_pieces(a.params, task).size(), num_rows = task.num_rows();
    const int64_t floats = RowStates::floats(*a.layer, num_rows);
    if (index++ % step.num_threads == thread) {
      const RowStates running = RowStates::in(scratch, *a.layer, num_rows);
      start_rows(*a.layer, a.params, task, running);
      for (int64_t i = 0; i < num_pieces; ++i)
        fold_piece(*a.layer, task, RowStates::in(const_cast<float*>(memory) + i * floats, *a.layer, num_rows), running);
      finish_rows(*a.layer, task, running);
    }
    memory += num_pieces * floats;
  });
}

void attend_step(const Attention& a, const Step& step, int thread) {
  float* scratch = reinterpret_cast<float*>(step.thread_workspace(thread));
  if (!splits_pieces(a, *step.batch, step.num_threads)) return attend_tasks(a, step, scratch);
  attend_pieces(a, step, scratch);
  step.barrier();
  fold_tasks(a, step, thread, scratch);
}

AttentionParams attention_params(Binder& binder, int64_t num_q_heads) {
  AttentionParams params;
  params.num_q_heads = num_q_heads;
  params.scale = static_cast<float>(binder.float_attr("scale"));
  params.softcap = static_cast<float>(binder.float_attr("softcap", 0.0));
  params.window = binder.int_attr("window", 0);
  params.chunk = binder.int_attr("chunk", 0);
  params.sinks = binder.vector(3, num_q_heads);
  params.slopes = binder.vector(4, num_q_heads);
  binder.require(binder.bool_attr("has_sinks", params.sinks != nullptr) == (params.sinks != nullptr) &&
                     binder.bool_attr("has_slopes", params.slopes != nullptr) == (params.slopes != nullptr),
                 "has_sinks or has_slopes disagrees with the operands");
  binder.require(params.window >= 0 && params.chunk >= 0 && params.softcap >= 0.0f,
                 "window, chunk and softcap must not be negative");
  return params;
}

}  // namespace

BoundOp bind_attention(Binder& binder) {
  binder.expect_operands(3, 5, 1);
  Attention a{};
  a.q = binder.input(0, DType::f32, 3);
  a.k = binder.input(1, DType::f32, 3);
  a.v = binder.input(2, DType::f32, 3);
  a.y = binder.output(0, DType::f32, 3);
  const int64_t layer_index = binder.int_attr("kv_layer");
  binder.require(layer_index >= 0 && layer_index < binder.storage().num_kv_layers(),
                 "there is no KV layer " + std::to_string(layer_index));
  a.layer = &binder.storage().kv_layer(layer_index);
  for (const Tensor* t : {a.q, a.k, a.v, a.y}) {
    binder.require(
        t->row_dim(0) == RowDim::num_tokens && t->row_dim(1) == RowDim::none && t->row_dim(2) == RowDim::none,
        describe(*t) + " is not [num_tokens, heads, head_dim]");
    binder.require_last_dense(*t, "every operand");
  }
  const KvLayer& layer = *a.layer;
  const int64_t num_q_heads = a.q->dim(1);
  const bool fits = a.k->dim(1) == layer.num_kv_heads && a.v->dim(1) == layer.num_kv_heads && num_q_heads > 0 &&
                    num_q_heads % layer.num_kv_heads == 0 && a.q->dim(2) == layer.k_head_dim &&
                    a.k->dim(2) == layer.k_head_dim && a.v->dim(2) == layer.v_head_dim && a.y->dim(1) == num_q_heads &&
                    a.y->dim(2) == layer.v_head_dim;
  binder.require(fits, "q " + describe(*a.q) + ", k " + describe(*a.k) + ", v " + describe(*a.v) +
                           " do not fit KV layer " + std::to_string(layer_index) + " or the output " + describe(*a.y));
  a.params = attention_params(binder, num_q_heads);
  a.kernels = attention_kernels(binder.isa());
  const int64_t group = num_q_heads / layer.num_kv_heads;
  const int64_t max_pieces = ceil_div(binder.storage().max_context_len(), kPieceKeys);
  a.max_state_floats = checked_mul(checked_mul(max_pieces, layer.num_kv_heads), RowStates::floats(layer, group));
  const int64_t scratch_floats = attention_scratch_floats(layer, checked_mul(queries_per_task(group), group));
  binder.need_workspace(checked_mul(a.max_state_floats, 4), checked_mul(scratch_floats, 4));
  const std::string kernel = std::string("attention.cpu.") + isa_name(binder.isa()) + "." + dtype_name(layer.dtype);
  return {kernel, [a](const Step& step, int thread) {
            append(a, step, thread);
            step.barrier();
            attend_step(a, step, thread);
          }};
}

}  // namespace fmo
