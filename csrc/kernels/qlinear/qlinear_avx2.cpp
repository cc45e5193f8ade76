// qlinear with integers, for AVX2.
#include "kernels/qlinear/qlinear_tables.h"

namespace fmo {

QuantKernels quant_kernels_avx2() { return quant_kernels_scalar(); }

}  // namespace fmo
