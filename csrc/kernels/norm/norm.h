// Root-mean-square norm and layer norm of one row.        contract of norm.cpu.*
//
//   source = x, or sum = x + residual (stored to `sum`) when `residual` is given
//   rms     y = source · 1/sqrt(mean(source²) + eps) · w
//   layer   y = (source − mean) · 1/sqrt(variance + eps) · w + b
//
// All pointers are rows of H f32 values; w and b may be null. `sum` may be x or residual itself, and y the source;
// nothing else may overlap. The sums run in a fixed order that depends on H alone.
#pragma once

#include <cstdint>

#include "device/cpu/isa.h"

namespace fmo {

struct NormRow {
  const float* x = nullptr;
  const float* residual = nullptr;  // null: plain norm
  float* sum = nullptr;             // with residual
  const float* w = nullptr;
  const float* b = nullptr;  // layer norm only
  float* y = nullptr;
  float eps = 0.0f;
  int64_t H = 0;
};

struct NormKernels {
  void (*rms)(const NormRow& row) = nullptr;
  void (*layer)(const NormRow& row) = nullptr;
};

NormKernels norm_kernels_scalar();
NormKernels norm_kernels_avx2();
inline NormKernels norm_kernels(Isa isa) { return isa == Isa::avx2 ? norm_kernels_avx2() : norm_kernels_scalar(); }

}  // namespace fmo
