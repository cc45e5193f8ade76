// y = x · wᵀ + bias for panel-packed weights.        contract of linear.cpu.*
//
//   x     f32, row r at x.row(r), K values without gaps
//   w     panel16 of [N, K] (docs/artifact-format.md), f32 or bf16: panel p holds output rows 16p … 16p+15, k-major
//   y     f32 [M, N], row stride y_stride; must not overlap x
//   bias  f32 [N] or null
//
// Every output is one chain of multiply-adds over k ascending, then the bias: the same bits for any number of rows M,
// any tile, any split of the panels over threads. Work is split by panels; two ways to compute a share of them:
//   gemv  M ≤ max_gemv_rows: reads x directly, streams the panels once, from far-apart places at the same time
//   gemm  any M: wants x packed in tiles of up to 6 rows [K][rows of the tile] (pack), shared by all threads
// AVX2 fuses multiply and add, the scalar reference rounds twice: they agree to rounding, not in bits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/dtype.h"
#include "base/error.h"
#include "base/split.h"
#include "device/cpu/isa.h"

namespace fmo {

inline constexpr int64_t kPanelRows = 16;  // output rows per panel
inline constexpr int64_t kTileRows = 6;    // rows of x per register tile: 6 × 16 accumulators fill 12 of 16 registers

struct PanelWeight {
  const void* data = nullptr;
  DType dtype = DType::f32;  // f32 or bf16
  int64_t N = 0, K = 0;
  int64_t num_panels() const { return ceil_div(N, kPanelRows); }
  int64_t panel_bytes() const { return K * kPanelRows * dtype_bytes(dtype); }
  const void* panel(int64_t p) const { return static_cast<const char*>(data) + p * panel_bytes(); }
};

// Rows of x: plain, or picked by `row_ids`.
struct RowSource {
  const float* x = nullptr;
  int64_t stride = 0;
  const int32_t* row_ids = nullptr;
  const float* row(int64_t r) const { return x + (row_ids == nullptr ? r : static_cast<int64_t>(row_ids[r])) * stride; }
  RowSource from(int64_t r) const {
    return row_ids == nullptr ? RowSource{x + r * stride, stride, nullptr} : RowSource{x, stride, row_ids + r};
  }
};

// Rows are dealt evenly over the tiles, so that 7 rows are 4 + 3 and not 6 + 1.
inline int64_t num_row_tiles(int64_t num_rows) { return ceil_div(num_rows, kTileRows); }
inline Range row_tile(int64_t num_rows, int64_t tile) {
  return split(num_rows, static_cast<int>(tile), static_cast<int>(num_row_tiles(num_rows)));
}

struct LinearKernels {
  int64_t (*max_gemv_rows)(DType dtype) = nullptr;
  // packed [num_rows, K] floats, tile t at row_tile(t).begin * K.
  void (*pack)(const RowSource& x, int64_t num_rows, int64_t K, Range tiles, float* packed) = nullptr;
  void (*gemm)(const float* packed, int64_t num_rows, const PanelWeight& w, Range panels, const float* bias, float* y,
               int64_t y_stride) = nullptr;
  void (*gemv)(const RowSource& x, int64_t num_rows, const PanelWeight& w, Range panels, const float* bias, float* y,
               int64_t y_stride) = nullptr;
};

const LinearKernels& linear_kernels(Isa isa);

}  // namespace fmo
