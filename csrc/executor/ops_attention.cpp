// attn.paged: all threads append the step's keys and values, then share out tasks (sequence × chunk of queries × KV
// head) by their cost.
#include <algorithm>

#include "executor/ops.h"

namespace fmo {
namespace {

struct Attention {
  const Tensor *q, *k, *v, *y;
  const KvLayer* layer;
  AttentionParams params;
  AttentionKernels kernels;

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

// Keys that `num_queries` queries from `position` on see, roughly, plus a constant for the rows themselves.
int64_t task_cost(const AttentionParams& params, int64_t position, int64_t num_queries) {
  const int64_t last = position + num_queries - 1;
  return num_queries * (last + 1 - params.first_key(last) + kKeyTile);
}

// Calls visit(seq, first query, number of queries, cost) for every chunk of queries of the batch.
template <class Visit>
void for_each_chunk(const Attention& a, const Batch& batch, Visit&& visit) {
  const int64_t chunk = queries_per_task(a.params.num_q_heads / a.layer->num_kv_heads);
  for (int64_t seq = 0; seq < batch.num_seqs; ++seq) {
    const int64_t length = batch.cu_seqlens[seq + 1] - batch.cu_seqlens[seq];
    for (int64_t query = 0; query < length; query += chunk) {
      const int64_t count = std::min(chunk, length - query);
      visit(seq, query, count, task_cost(a.params, batch.context_lens[seq] + query, count));
    }
  }
}

void run_task(const Attention& a, const Batch& batch, int64_t seq, int64_t query, int64_t count, int64_t kv_head,
              float* scratch) {
  const int64_t row = batch.cu_seqlens[seq] + query;
  AttentionTask task;
  task.q = Attention::rows_of(*a.q, row);
  task.out = a.y->as<float>() + row * a.y->stride(0);
  task.out_row_stride = a.y->stride(0);
  task.out_head_stride = a.y->stride(1);
  task.num_queries = count;
  task.first_position = batch.context_lens[seq] + query;
  task.kv_head = kv_head;
  task.block_table = block_table(batch, seq);
  a.kernels.attend(*a.layer, a.params, task, scratch);
}

// A task belongs to the thread in whose share of the total cost its middle lies.
void attend(const Attention& a, const Step& step, int thread) {
  const Batch& batch = *step.batch;
  const int64_t num_kv_heads = a.layer->num_kv_heads;
  int64_t total = 0;
  for_each_chunk(a, batch, [&](int64_t, int64_t, int64_t, int64_t cost) { total += cost * num_kv_heads; });
  const Range mine = split(2 * total, thread, step.num_threads);
  float* scratch = reinterpret_cast<float*>(step.thread_workspace(thread));
  int64_t done = 0;
  for_each_chunk(a, batch, [&](int64_t seq, int64_t query, int64_t count, int64_t cost) {
    for (int64_t kv_head = 0; kv_head < num_kv_heads; ++kv_head, done += cost) {
      const int64_t middle = 2 * done + cost;
      if (middle >= mine.begin && middle < mine.end) run_task(a, batch, seq, query, count, kv_head, scratch);
    }
  });
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
  binder.need_workspace(0,
                        checked_mul(attention_scratch_floats(layer, checked_mul(queries_per_task(group), group)), 4));
  const std::string kernel = std::string("attention.cpu.") + isa_name(binder.isa()) + "." + dtype_name(layer.dtype);
  return {kernel, [a](const Step& step, int thread) {
            append(a, step, thread);
            step.barrier();
            attend(a, step, thread);
          }};
}

}  // namespace fmo
