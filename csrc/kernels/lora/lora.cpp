#include "kernels/lora/lora.h"

namespace fmo {

const LoraKernels& lora_kernels(Isa isa) {
  static const LoraKernels scalar = lora_kernels_scalar(), avx2 = lora_kernels_avx2();
  return isa == Isa::avx2 ? avx2 : scalar;
}

}  // namespace fmo
