#include "kernels/linear/linear.h"

#include "kernels/linear/linear_tables.h"

namespace fmo {

const LinearKernels& linear_kernels(Isa isa) {
  static const LinearKernels scalar = linear_kernels_scalar(), avx2 = linear_kernels_avx2();
  return isa == Isa::avx2 ? avx2 : scalar;
}

}  // namespace fmo
