// The tables of linear kernels by instruction set; `linear_kernels` chooses one.
#pragma once

#include "kernels/linear/linear.h"

namespace fmo {

void pack_rows_scalar(const RowSource& x, int64_t num_rows, int64_t K, Range tiles, float* packed);
LinearKernels linear_kernels_scalar();
LinearKernels linear_kernels_avx2();

}  // namespace fmo
