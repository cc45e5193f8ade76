// The chain of linear in plain loops: the order of the contract, for any weight that gives its panels column by column.
//
//   load(p, k, out)   writes the 16 weights of panel p in column k as f32
//
// Compilers vectorise the 16 independent outputs of a panel.
#pragma once

#include "kernels/linear/linear.h"

namespace fmo::scalar {

// The 16 weights of panel p in column k as f32.
inline void load_weights(const PanelWeight& w, int64_t p, int64_t k, float out[kPanelRows]) {
  if (w.dtype == DType::f32) {
    std::copy_n(static_cast<const float*>(w.panel(p)) + k * kPanelRows, kPanelRows, out);
    return;
  }
  const bf16_t* pairs = static_cast<const bf16_t*>(w.panel(p)) + k * kPanelRows;
  for (int lane = 0; lane < 8; ++lane) {
    out[lane] = bf16_to_f32(pairs[2 * lane]);
    out[lane + 8] = bf16_to_f32(pairs[2 * lane + 1]);
  }
}

inline void store_outputs(const float sum[kPanelRows], int64_t first, int64_t N, const float* bias, float* y) {
  for (int64_t i = 0; i < std::min(kPanelRows, N - first); ++i)
    y[first + i] = bias == nullptr ? sum[i] : sum[i] + bias[first + i];
}

template <typename Weight, typename Load>
void gemv(const RowSource& x, int64_t num_rows, const Weight& w, const Load& load, Range panels, const float* bias,
          float* y, int64_t y_stride) {
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    for (int64_t r = 0; r < num_rows; ++r) {
      const float* row = x.row(r);
      float sum[kPanelRows] = {}, weights[kPanelRows];
      for (int64_t k = 0; k < w.K; ++k) {
        load(p, k, weights);
        for (int i = 0; i < kPanelRows; ++i) sum[i] += row[k] * weights[i];
      }
      store_outputs(sum, p * kPanelRows, w.N, bias, y + r * y_stride);
    }
  }
}

template <typename Weight, typename Load>
void gemm(const float* packed, int64_t num_rows, const Weight& w, const Load& load, Range panels, const float* bias,
          float* y, int64_t y_stride) {
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    for (int64_t t = 0; t < num_row_tiles(num_rows); ++t) {
      const Range rows = row_tile(num_rows, t);
      const float* tile = packed + rows.begin * w.K;
      float sum[kTileRows][kPanelRows] = {}, weights[kPanelRows];
      for (int64_t k = 0; k < w.K; ++k) {
        load(p, k, weights);
        for (int64_t r = 0; r < rows.size(); ++r) {
          for (int i = 0; i < kPanelRows; ++i) sum[r][i] += tile[k * rows.size() + r] * weights[i];
        }
      }
      for (int64_t r = 0; r < rows.size(); ++r)
        store_outputs(sum[r], p * kPanelRows, w.N, bias, y + (rows.begin + r) * y_stride);
    }
  }
}

}  // namespace fmo::scalar
