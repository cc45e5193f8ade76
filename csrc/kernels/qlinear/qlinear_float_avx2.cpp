// qlinear with activations as they are, for AVX2 + FMA.
#include "kernels/qlinear/qlinear_tables.h"

namespace fmo {

QuantFloatKernels quant_float_kernels_avx2() { return quant_float_kernels_scalar(); }

}  // namespace fmo
