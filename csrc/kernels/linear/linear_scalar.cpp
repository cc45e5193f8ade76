// Reference of linear: float32 and bfloat16 panels through the plain loops of panel_scalar.h.
#include "kernels/linear/linear_tables.h"
#include "kernels/linear/panel_scalar.h"

namespace fmo {
namespace {

void gemv(const RowSource& x, int64_t num_rows, const PanelWeight& w, Range panels, const float* bias, float* y,
          int64_t y_stride) {
  const auto load = [&](int64_t p, int64_t k, float* out) { scalar::load_weights(w, p, k, out); };
  scalar::gemv(x, num_rows, w, load, panels, bias, y, y_stride);
}

void gemm(const float* packed, int64_t num_rows, const PanelWeight& w, Range panels, const float* bias, float* y,
          int64_t y_stride) {
  const auto load = [&](int64_t p, int64_t k, float* out) { scalar::load_weights(w, p, k, out); };
  scalar::gemm(packed, num_rows, w, load, panels, bias, y, y_stride);
}

}  // namespace

void pack_rows_scalar(const RowSource& x, int64_t num_rows, int64_t K, Range tiles, float* packed) {
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const Range rows = row_tile(num_rows, t);
    float* tile = packed + rows.begin * K;
    for (int64_t r = 0; r < rows.size(); ++r) {
      const float* row = x.row(rows.begin + r);
      for (int64_t k = 0; k < K; ++k) tile[k * rows.size() + r] = row[k];
    }
  }
}

LinearKernels linear_kernels_scalar() {
  return {.max_gemv_rows = [](DType) -> int64_t { return 4; }, .pack = pack_rows_scalar, .gemm = gemm, .gemv = gemv};
}

}  // namespace fmo
