// The tables of kernels for quantized weights by instruction set, and what the versions share.
#pragma once

#include "kernels/qlinear/qlinear.h"

namespace fmo {

QuantKernels quant_kernels_scalar();
QuantKernels quant_kernels_avx2();
void quantize_rows_avx2(const RowSource& x, const QuantRows& rows, Range units);
QuantFloatKernels quant_float_kernels_scalar();
QuantFloatKernels quant_float_kernels_avx2();

// Below 2^-119 the quotient qmax / max would overflow: such a group counts as zeros.
inline constexpr uint32_t kTinyBits = (127u - 119u) << 23;
inline constexpr uint32_t kInfinityBits = 0x7f800000u;

struct GroupScale {
  float scale, inverse;  // value ≈ code · scale, code = round(value · inverse)
};

// `max_bits`: the bits of max|x|, compared as integers, so that a NaN is the largest.
inline GroupScale group_scale(uint32_t max_bits, float qmax) {
  if (max_bits >= kInfinityBits) return {std::bit_cast<float>(0x7fc00000u), 0.0f};
  if (max_bits < kTinyBits) return {0.0f, 0.0f};
  const float top = std::bit_cast<float>(max_bits);
  return {top / qmax, qmax / top};
}

// code − zero where all rows share the zero; of e2m1 (code, doubled value + 12) − 12.
inline int common_zero(DType dtype) {
  switch (dtype) {
    case DType::i4:
      return 8;
    case DType::e2m1:
      return 12;
    case DType::i7:
      return 64;
    case DType::i8:
      return 128;
    default:
      return 0;
  }
}

}  // namespace fmo
