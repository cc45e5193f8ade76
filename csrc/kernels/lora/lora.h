// y[row] += t · upᵀ for some rows: the second half of a low-rank update.        contract of lora.cpu.*
//
//   x ──▶ t = x · downᵀ  [rows of the adapter, rank]     kernels/linear's gemv, with picked rows and N = rank
//         y += t · upᵀ                                   here
//
//   t   f32 [num_rows, rank], row stride t_stride
//   up  panel16 f32 of [N, rank]: output rows of the update, the adapter's scale multiplied in
//   y   f32; row i of t belongs to row row_ids[i] of y; must not overlap t
//
// Every output is one chain of multiply-adds over the rank ascending, from 0, which is then added to y: the same bits
// for any number of rows, any tile, any split of the panels over threads. AVX2 fuses multiply and add, the scalar
// reference rounds twice.
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

struct LoraKernels {
  void (*expand)(const float* t, int64_t t_stride, int64_t num_rows, const PanelWeight& up, Range panels,
                 const RowTarget& target) = nullptr;
};

const LoraKernels& lora_kernels(Isa isa);

LoraKernels lora_kernels_scalar();
LoraKernels lora_kernels_avx2();

}  // namespace fmo
