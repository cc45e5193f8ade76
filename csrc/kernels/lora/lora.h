// y[row] += scale · up · (down · x[row]) for some rows, in two halves: a low-rank update.        contract of lora.cpu.*
//
//   shrink   t = x · downᵀ             for one panel of down (16 ranks) and up to kLoraRows rows
//   expand   y += scale · (t · upᵀ)    for panels of up
//
//   x     f32, picked rows           down  panel16 of [rank, K], f32 or bf16
//   t     f32 [num_rows, rank rounded up to 16], row stride t_stride
//   up    panel16 of [N, rank], f32 or bf16: output rows of the update
//   y     f32; row i of t belongs to row row_ids[i] of y; must not overlap t
//
// Every output is one chain of multiply-adds from 0, over k or the rank ascending; then, in expand, the product with
// the scale, which is added to y: the same bits for any number of rows, any tile, any split of panels over threads.
// AVX2 fuses multiply and add in the chains, the scalar reference rounds twice.
#pragma once

#include <cstdint>

#include "kernels/linear/linear.h"

namespace fmo {

// Rows that are added to.
struct RowTarget {
  float* y = nullptr;
  int64_t stride = 0;
  const int32_t* row_ids = nullptr;
  float* row(int64_t i) const { return y + static_cast<int64_t>(row_ids[i]) * stride; }
};

inline constexpr int64_t kLoraRows = 6;  // whose sums fit the registers of shrink beside one panel

struct LoraKernels {
  // `t` points at the first of the panel's 16 ranks.
  void (*shrink)(const RowSource& x, int64_t num_rows, const PanelWeight& down, int64_t panel, float* t,
                 int64_t t_stride) = nullptr;
  void (*expand)(const float* t, int64_t t_stride, int64_t num_rows, const PanelWeight& up, Range panels, float scale,
                 const RowTarget& target) = nullptr;
};

const LoraKernels& lora_kernels(Isa isa);

LoraKernels lora_kernels_scalar();
LoraKernels lora_kernels_avx2();

}  // namespace fmo
