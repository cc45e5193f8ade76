#include "kernels/qlinear/qlinear.h"

#include "kernels/qlinear/qlinear_tables.h"

namespace fmo {

const char* act_name(Act act) {
  switch (act) {
    case Act::f32:
      return "f32";
    case Act::i8:
      return "i8";
    case Act::i7:
      return "i7";
    case Act::e4m3:
      return "e4m3";
  }
  return "?";
}

void dequantize_row(const QuantWeight& w, int64_t n, float* y) {
  for (int64_t g = 0; g < w.num_groups(); ++g) {
    const float scale = weight_scale(w, n, g);
    for (int64_t k = g * w.group; k < (g + 1) * w.group; ++k) y[k] = weight_number(w, n, k) * scale;
  }
}

const QuantKernels& quant_kernels(Isa isa) {
  static const QuantKernels scalar = quant_kernels_scalar(), avx2 = quant_kernels_avx2();
  return isa == Isa::avx2 ? avx2 : scalar;
}

const QuantFloatKernels& quant_float_kernels(Isa isa) {
  static const QuantFloatKernels scalar = quant_float_kernels_scalar(), avx2 = quant_float_kernels_avx2();
  return isa == Isa::avx2 ? avx2 : scalar;
}

}  // namespace fmo
