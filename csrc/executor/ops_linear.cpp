// nn.linear: splits the panels of the weight over the threads. Few rows: gemv on x as it is. More: all threads pack x
// together, then gemm.
#include <vector>

#include "executor/linear_rows.h"
#include "executor/ops.h"

namespace fmo {
namespace {

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

}  // namespace

int64_t packed_bytes(int64_t max_rows, int64_t K) {
  return checked_mul(std::min(max_rows, kMaxPackedRows), checked_mul(K, 4));
}

void linear_rows(const LinearKernels& kernels, const LinearRows& job, const Step& step, int thread, float* packed) {
  const Range panels = split(job.w.num_panels(), thread, step.num_threads);
  if (job.num_rows <= kernels.max_gemv_rows(job.w.dtype)) {
    if (job.num_rows > 0) kernels.gemv(job.x, job.num_rows, job.w, panels, job.bias, job.y, job.y_stride);
    return;
  }
  const int num_chunks = static_cast<int>(ceil_div(job.num_rows, kMaxPackedRows));
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    const Range rows = split(job.num_rows, chunk, num_chunks);
    kernels.pack(job.x.from(rows.begin), rows.size(), job.w.K,
                 split(num_row_tiles(rows.size()), thread, step.num_threads), packed);
    step.barrier();
    kernels.gemm(packed, rows.size(), job.w, panels, job.bias, job.y + rows.begin * job.y_stride, job.y_stride);
    if (chunk + 1 < num_chunks) step.barrier();
  }
}

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
  binder.need_workspace(packed_bytes(binder.max_rows(*x, 0, x->rank - 1), w.K), 0);

  const LinearKernels& kernels = linear_kernels(binder.isa());
  const std::string kernel = std::string("linear.cpu.") + isa_name(binder.isa()) + "." + dtype_name(w.dtype);
  return {kernel, [=](const Step& step, int thread) {
            const RowGroups groups = row_groups(*x, *y);
            for (int64_t group = 0; group < groups.outer; ++group) {
              const RowSource source{x->as<const float>() + group * groups.x_outer, groups.x_inner, nullptr};
              const LinearRows job{source,        groups.inner, w, bias, y->as<float>() + group * groups.y_outer,
                                   groups.y_inner};
              linear_rows(kernels, job, step, thread, reinterpret_cast<float*>(step.shared_workspace));
              if (group + 1 < groups.outer) step.barrier();
            }
          }};
}

}  // namespace fmo
