// nn.linear: the panels of the weight are dealt to the threads in shares; whoever is free takes the next, so that a
// core that others disturb does not hold up the step. Which thread computes an output changes nothing about its bits.
// Few rows: gemv on x as it is. More: all threads pack x together, then gemm.
#include <algorithm>

#include "executor/ops.h"
#include "kernels/linear/linear.h"

namespace fmo {
namespace {

constexpr int64_t kMaxPackedRows = 1024;  // bounds the workspace of packed rows; more rows are done in chunks
constexpr int64_t kSharesPerThread = 8;
constexpr int64_t kMinSharePanels = 8;  // two for each of the four streams of gemv

struct LinearRows {
  RowSource x;
  int64_t num_rows = 0;
  PanelWeight w;
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

// Calls compute(panels) for shares of all panels until none is left.
template <class Compute>
void for_each_share(int64_t num_panels, const Step& step, Compute&& compute) {
  if (step.num_threads == 1) return compute(Range{0, num_panels});
  const int64_t wanted = num_panels / (kSharesPerThread * step.num_threads);
  const int64_t size = round_up(std::max(wanted, kMinSharePanels), 4);
  for (int64_t begin = step.take(size); begin < num_panels; begin = step.take(size)) {
    compute(Range{begin, std::min(begin + size, num_panels)});
  }
}

void compute_rows(const LinearKernels& kernels, const LinearRows& job, Range rows, Range panels, const float* packed) {
  if (packed == nullptr) {
    kernels.gemv(job.x, job.num_rows, job.w, panels, job.bias, job.y, job.y_stride);
  } else {
    kernels.gemm(packed, rows.size(), job.w, panels, job.bias, job.y + rows.begin * job.y_stride, job.y_stride);
  }
}

// The usual case: all rows at once.
void run_at_once(const LinearKernels& kernels, const LinearRows& job, const Step& step, int thread, float* packed) {
  const Range all{0, job.num_rows};
  const bool is_few = job.num_rows <= kernels.max_gemv_rows(job.w.dtype);
  if (!is_few) {
    const Range tiles = split(num_row_tiles(job.num_rows), thread, step.num_threads);
    kernels.pack(job.x, job.num_rows, job.w.K, tiles, packed);
    step.barrier();
  }
  for_each_share(job.w.num_panels(), step,
                 [&](Range panels) { compute_rows(kernels, job, all, panels, is_few ? nullptr : packed); });
}

// Very many rows, or rows that are not evenly spaced: piece by piece, panels split evenly.
void run_in_chunks(const LinearKernels& kernels, const LinearRows& job, const Step& step, int thread, float* packed) {
  const int num_chunks = static_cast<int>(ceil_div(job.num_rows, kMaxPackedRows));
  const Range panels = split(job.w.num_panels(), thread, step.num_threads);
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    const Range rows = split(job.num_rows, chunk, num_chunks);
    const Range tiles = split(num_row_tiles(rows.size()), thread, step.num_threads);
    kernels.pack(job.x.from(rows.begin), rows.size(), job.w.K, tiles, packed);
    step.barrier();
    compute_rows(kernels, job, rows, panels, packed);
    step.barrier();
  }
}

}  // namespace

BoundOp bind_linear(Binder& binder) {
  binder.expect_operands(2, 3, 1);
  const Tensor* x = binder.input(0);
  const PanelWeight w = binder.panels(1, 2);
  const float* bias = binder.vector(2, w.N);
  const Tensor* y = binder.output(0);
  binder.require(x->rank == 2 || x->rank == 3, "x is " + describe(*x) + ", expected 2 or 3 dims");
  binder.require_last_dense(*x, "x");
  binder.require_last_dense(*y, "y");
  bool fits = y->rank == x->rank && x->row_dim(x->rank - 1) == RowDim::none && x->dim(x->rank - 1) == w.K &&
              y->dim(y->rank - 1) == w.N;
  for (int axis = 0; fits && axis + 1 < x->rank; ++axis) fits = x->same_dim(axis, *y, axis);
  fits = fits && (x->rank == 2 || x->row_dim(1) == RowDim::none) && w.K > 0;
  binder.require(fits, describe(*x) + " times a weight [" + std::to_string(w.N) + ", " + std::to_string(w.K) +
                           "] does not give " + describe(*y));
  const int64_t max_packed_rows = std::min(binder.max_rows(*x, 0, x->rank - 1), kMaxPackedRows);
  binder.need_workspace(checked_mul(max_packed_rows, checked_mul(w.K, 4)), 0);

  const LinearKernels& kernels = linear_kernels(binder.isa());
  const std::string kernel = std::string("linear.cpu.") + isa_name(binder.isa()) + "." + dtype_name(w.dtype);
  return {kernel, [=](const Step& step, int thread) {
            const RowGroups groups = row_groups(*x, *y);
            if (groups.outer == 0 || groups.inner == 0) return;
            float* packed = reinterpret_cast<float*>(step.shared_workspace);
            for (int64_t group = 0; group < groups.outer; ++group) {
              const RowSource source{x->as<const float>() + group * groups.x_outer, groups.x_inner, nullptr};
              float* target = y->as<float>() + group * groups.y_outer;
              const LinearRows job{source, groups.inner, w, bias, target, groups.y_inner};
              const bool at_once = groups.outer == 1 && groups.inner <= kMaxPackedRows;
              (at_once ? run_at_once : run_in_chunks)(kernels, job, step, thread, packed);
            }
          }};
}

}  // namespace fmo
