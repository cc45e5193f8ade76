// nn.linear: the panels or blocks of the weight are dealt to the threads in shares; whoever is free takes the next, so
// that a core that others disturb does not hold up the step. Which thread computes an output changes nothing about its
// bits. Where the kernel wants x in its own form, all threads write that together, once per call.
#include <algorithm>

#include "executor/lora.h"
#include "executor/ops.h"
#include "executor/packed_linear.h"

namespace fmo {
namespace {

constexpr int64_t kMaxPackedRows = 1024;  // bounds the workspace of packed rows; more rows are done in chunks
constexpr int64_t kSharesPerThread = 8;

struct LinearRows {
  RowSource x;
  int64_t num_rows = 0;
  const float* bias = nullptr;
  float* y = nullptr;
  int64_t y_stride = 0;
};

// x and y as up to two row axes: `outer` groups of `inner` evenly spaced rows. One group when both tensors allow it.
struct RowGroups {
  int64_t outer = 1, inner = 1;
  int64_t x_outer = 0, x_inner = 0, y_outer = 0, y_inner = 0;
};

RowGroups row_groups(const Tensor& x, const Tensor& y) {
  if (x.rank == 2) return {1, x.dim(0), 0, x.stride(0), 0, y.stride(0)};
  if (x.dim(1) == 1) return {1, x.dim(0), 0, x.stride(0), 0, y.stride(0)};
  const bool even = x.stride(0) == x.dim(1) * x.stride(1) && y.stride(0) == y.dim(1) * y.stride(1);
  if (even) return {1, x.dim(0) * x.dim(1), 0, x.stride(1), 0, y.stride(1)};
  return {x.dim(1), x.dim(0), x.stride(1), x.stride(0), y.stride(1), y.stride(0)};
}

// Calls compute(units) for shares of all units until none is left.
template <class Compute>
void for_each_share(int64_t num_units, int64_t min_share, const Step& step, Compute&& compute) {
  if (step.num_threads == 1) return compute(Range{0, num_units});
  const int64_t wanted = num_units / (kSharesPerThread * step.num_threads);
  const int64_t size = round_up(std::max(wanted, min_share), 4);
  for (int64_t begin = step.take(size); begin < num_units; begin = step.take(size)) {
    compute(Range{begin, std::min(begin + size, num_units)});
  }
}

// The usual case: all rows at once.
void run_at_once(const PackedLinear& layer, const LinearRows& job, const Step& step, int thread, char* rows) {
  if (layer.wants_rows(job.num_rows)) {
    layer.prepare(job.x, job.num_rows, rows, thread, step.num_threads);
    step.barrier();
  }
  for_each_share(layer.num_units(), layer.min_share(), step,
                 [&](Range units) { layer.compute(job.x, job.num_rows, rows, units, job.bias, job.y, job.y_stride); });
}

// Very many rows, or rows that are not evenly spaced: piece by piece, units split evenly.
void run_in_chunks(const PackedLinear& layer, const LinearRows& job, const Step& step, int thread, char* rows) {
  const int num_chunks = static_cast<int>(ceil_div(job.num_rows, kMaxPackedRows));
  const Range units = split(layer.num_units(), thread, step.num_threads);
  for (int i = 0; i < num_chunks; ++i) {
    const Range chunk = split(job.num_rows, i, num_chunks);
    const RowSource x = job.x.from(chunk.begin);
    layer.prepare(x, chunk.size(), rows, thread, step.num_threads);
    step.barrier();
    layer.compute(x, chunk.size(), rows, units, job.bias, job.y + chunk.begin * job.y_stride, job.y_stride);
    step.barrier();
  }
}

// The product of the base weight, for all rows.
void run_base(const PackedLinear& layer, const Tensor& x, const Tensor& y, const float* bias, const Step& step,
              int thread) {
  const RowGroups groups = row_groups(x, y);
  for (int64_t group = 0; group < groups.outer; ++group) {
    const RowSource source{x.as<const float>() + group * groups.x_outer, groups.x_inner, nullptr};
    float* target = y.as<float>() + group * groups.y_outer;
    const LinearRows job{source, groups.inner, bias, target, groups.y_inner};
    const bool at_once = groups.outer == 1 && groups.inner <= kMaxPackedRows;
    (at_once ? run_at_once : run_in_chunks)(layer, job, step, thread, step.shared_workspace);
  }
}

// The base product, and what adapters add to some rows of it. A row of rank 3 is `dim(1)` vectors, one after the other.
void run_with_adapters(const PackedLinear& layer, const LoraCall& lora, const Tensor& x, const Tensor& y,
                       const float* bias, const Step& step, int thread) {
  const int64_t num_vectors = x.rank == 2 ? 1 : x.dim(1);
  for (int64_t i = 0; i < num_vectors; ++i) {
    const int64_t x_offset = x.rank == 2 ? 0 : i * x.stride(1), y_offset = x.rank == 2 ? 0 : i * y.stride(1);
    if (i > 0) step.barrier();
    lora.shrink(*step.lora, x.as<const float>() + x_offset, x.stride(0), thread, step.num_threads);
    if (i == 0) run_base(layer, x, y, bias, step, thread);
    step.barrier();
    lora.expand(*step.lora, y.as<float>() + y_offset, y.stride(0), thread, step.num_threads);
  }
}

}  // namespace

BoundOp bind_linear(Binder& binder) {
  binder.expect_operands(2, 3, 1);
  const Tensor* x = binder.input(0);
  const PackedLinear layer = PackedLinear::bind(binder, 1, 2);
  const int64_t N = layer.N(), K = layer.K();
  const float* bias = binder.vector(2, N);
  const Tensor* y = binder.output(0);
  binder.require(x->rank == 2 || x->rank == 3, "x is " + describe(*x) + ", expected 2 or 3 dims");
  binder.require_last_dense(*x, "x");
  binder.require_last_dense(*y, "y");
  bool fits = y->rank == x->rank && x->row_dim(x->rank - 1) == RowDim::none && x->dim(x->rank - 1) == K &&
              y->row_dim(y->rank - 1) == RowDim::none && y->dim(y->rank - 1) == N;
  for (int axis = 0; fits && axis + 1 < x->rank; ++axis) fits = x->same_dim(axis, *y, axis);
  fits = fits && (x->rank == 2 || x->row_dim(1) == RowDim::none) && K > 0;
  binder.require(fits, describe(*x) + " times a weight [" + std::to_string(N) + ", " + std::to_string(K) +
                           "] does not give " + describe(*y));
  const int64_t max_rows = std::min(binder.max_rows(*x, 0, x->rank - 1), kMaxPackedRows);
  binder.need_workspace(layer.rows_bytes(max_rows), 0);
  const LoraCall* lora = binder.lora_call(N, K, x->row_dim(0), layer.is_f32() ? DType::f32 : DType::bf16);
  return {"linear.cpu." + layer.kernel_suffix(), [=](const Step& step, int thread) {
            if (x->count(0, x->rank - 1) == 0) return;
            if (lora != nullptr && step.lora != nullptr && lora->is_in(*step.lora))
              return run_with_adapters(layer, *lora, *x, *y, bias, step, thread);
            run_base(layer, *x, *y, bias, step, thread);
          }};
}

}  // namespace fmo
