// Pointwise functions over contiguous arrays.        contract of pointwise.cpu.*
//
//   unary   y[i] = f(x[i])            binary  y[i] = f(a[i], b[i])            n values; y may be an input itself, no
//   other overlap
//
// The functions are those of `ew.*` in docs/ir.md. Float functions take and give f32; the integer ones (for i32, and
// bool as 0/1) wrap around. Comparisons and logic give 0/1 as int32. The result of an element does not depend on its
// place in the array. sin, cos, log, log1p, pow, softplus are libm's (≤ 2 ulp, any argument); exp, tanh, erf and their
// kin are vectorised for AVX2.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "device/cpu/isa.h"

namespace fmo {

using UnaryF32 = void (*)(const float* x, float* y, int64_t n);
using BinaryF32 = void (*)(const float* a, const float* b, float* y, int64_t n);
using CompareF32 = void (*)(const float* a, const float* b, int32_t* y, int64_t n);
using UnaryI32 = void (*)(const int32_t* x, int32_t* y, int64_t n);
using BinaryI32 = void (*)(const int32_t* a, const int32_t* b, int32_t* y, int64_t n);

struct PointwiseKernels {
  // Each gives null for a name that is no such function.
  UnaryF32 (*unary_f32)(std::string_view name) = nullptr;
  BinaryF32 (*binary_f32)(std::string_view name) = nullptr;
  CompareF32 (*compare_f32)(std::string_view name) = nullptr;
  UnaryI32 (*unary_i32)(std::string_view name) = nullptr;
  BinaryI32 (*binary_i32)(std::string_view name) = nullptr;  // comparisons and logic too
};

PointwiseKernels pointwise_kernels_scalar();
PointwiseKernels pointwise_kernels_avx2();
inline PointwiseKernels pointwise_kernels(Isa isa) {
  return isa == Isa::avx2 ? pointwise_kernels_avx2() : pointwise_kernels_scalar();
}

// How many operands a function takes (1, 2, or 3 for `where`); 0 for an unknown name.
int pointwise_arity(std::string_view name);
// Whether the result is a truth value (comparisons, and, or, not).
bool gives_bool(std::string_view name);

}  // namespace fmo
