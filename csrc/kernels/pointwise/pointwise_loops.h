// The plain loops of the pointwise functions, compiled once per instruction set: include only from pointwise_*.cpp.
// Everything is in an unnamed namespace so that each translation unit keeps its own code.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>

#include "kernels/pointwise/pointwise.h"

namespace fmo {
namespace {

template <class In, class Out, class F>
inline void map1(const In* x, Out* y, int64_t n, F f) {
  for (int64_t i = 0; i < n; ++i) y[i] = f(x[i]);
}

template <class In, class Out, class F>
inline void map2(const In* a, const In* b, Out* y, int64_t n, F f) {
  for (int64_t i = 0; i < n; ++i) y[i] = f(a[i], b[i]);
}

template <class Function>
struct Named {
  std::string_view name;
  Function function;
};

template <class Function, size_t COUNT>
Function find(const Named<Function> (&table)[COUNT], std::string_view name) {
  for (const auto& row : table) {
    if (row.name == name) return row.function;
  }
  return nullptr;
}

inline int32_t wrap(uint32_t value) { return static_cast<int32_t>(value); }

// Python's floor division and modulo; by zero they give 0, as there is nothing right to give.
inline int32_t floor_div_i32(int32_t a, int32_t b) {
  if (b == 0) return 0;
  if (b == -1) return wrap(0u - static_cast<uint32_t>(a));
  return a / b - ((a % b != 0 && (a < 0) != (b < 0)) ? 1 : 0);
}

inline int32_t remainder_i32(int32_t a, int32_t b) {
  if (b == 0 || b == -1) return 0;
  const int32_t rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

inline float remainder_f32(float a, float b) {
  const float rest = std::fmod(a, b);
  if (rest != 0.0f) return (b < 0.0f) != (rest < 0.0f) ? rest + b : rest;
  return std::copysign(0.0f, b);
}

inline float floor_div_f32(float a, float b) {
  if (b == 0.0f) return a / b;
  float rest = std::fmod(a, b), quotient = (a - rest) / b;
  if (rest != 0.0f && (b < 0.0f) != (rest < 0.0f)) quotient -= 1.0f;
  if (quotient == 0.0f) return std::copysign(0.0f, a / b);
  const float floored = std::floor(quotient);
  return quotient - floored > 0.5f ? floored + 1.0f : floored;
}

#define FMO_UNARY(TYPE, NAME, EXPRESSION) \
  {NAME, [](const TYPE* px, TYPE* py, int64_t n) { map1(px, py, n, [](TYPE x) -> TYPE { return EXPRESSION; }); }}
#define FMO_BINARY(TYPE, OUT, NAME, EXPRESSION)                             \
  {NAME, [](const TYPE* pa, const TYPE* pb, OUT* py, int64_t n) {           \
     map2(pa, pb, py, n, [](TYPE a, TYPE b) -> OUT { return EXPRESSION; }); \
   }}

// Functions that no instruction set does better than a plain loop.
inline UnaryF32 plain_unary_f32(std::string_view name) {
  static constexpr Named<UnaryF32> table[] = {
      FMO_UNARY(float, "neg", -x),
      FMO_UNARY(float, "abs", std::fabs(x)),
      FMO_UNARY(float, "square", x* x),
      FMO_UNARY(float, "relu", x < 0.0f ? 0.0f : x),
      FMO_UNARY(float, "sqrt", std::sqrt(x)),
      FMO_UNARY(float, "rsqrt", 1.0f / std::sqrt(x)),
      FMO_UNARY(float, "floor", std::floor(x)),
      FMO_UNARY(float, "log", std::log(x)),
      FMO_UNARY(float, "log1p", std::log1p(x)),
      FMO_UNARY(float, "sin", std::sin(x)),
      FMO_UNARY(float, "cos", std::cos(x)),
      FMO_UNARY(float, "softplus", (x < 0.0f ? 0.0f : x) + std::log1p(std::exp(-std::fabs(x)))),
  };
  return find(table, name);
}

inline BinaryF32 plain_binary_f32(std::string_view name) {
  static constexpr Named<BinaryF32> table[] = {
      FMO_BINARY(float, float, "add", a + b),
      FMO_BINARY(float, float, "sub", a - b),
      FMO_BINARY(float, float, "mul", a* b),
      FMO_BINARY(float, float, "div", a / b),
      FMO_BINARY(float, float, "minimum", a < b || a != a ? a : b),
      FMO_BINARY(float, float, "maximum", a > b || a != a ? a : b),
      FMO_BINARY(float, float, "pow", std::pow(a, b)),
      FMO_BINARY(float, float, "floor_div", floor_div_f32(a, b)),
      FMO_BINARY(float, float, "remainder", remainder_f32(a, b)),
  };
  return find(table, name);
}

inline CompareF32 plain_compare_f32(std::string_view name) {
  static constexpr Named<CompareF32> table[] = {
      FMO_BINARY(float, int32_t, "eq", a == b ? 1 : 0), FMO_BINARY(float, int32_t, "ne", a != b ? 1 : 0),
      FMO_BINARY(float, int32_t, "lt", a < b ? 1 : 0),  FMO_BINARY(float, int32_t, "le", a <= b ? 1 : 0),
      FMO_BINARY(float, int32_t, "gt", a > b ? 1 : 0),  FMO_BINARY(float, int32_t, "ge", a >= b ? 1 : 0),
  };
  return find(table, name);
}

inline UnaryI32 plain_unary_i32(std::string_view name) {
  static constexpr Named<UnaryI32> table[] = {
      FMO_UNARY(int32_t, "neg", wrap(0u - static_cast<uint32_t>(x))),
      FMO_UNARY(int32_t, "abs", x < 0 ? wrap(0u - static_cast<uint32_t>(x)) : x),
      FMO_UNARY(int32_t, "square", wrap(static_cast<uint32_t>(x) * static_cast<uint32_t>(x))),
      FMO_UNARY(int32_t, "relu", x < 0 ? 0 : x),
      FMO_UNARY(int32_t, "not", x == 0 ? 1 : 0),
  };
  return find(table, name);
}

inline BinaryI32 plain_binary_i32(std::string_view name) {
  static constexpr Named<BinaryI32> table[] = {
      FMO_BINARY(int32_t, int32_t, "add", wrap(static_cast<uint32_t>(a) + static_cast<uint32_t>(b))),
      FMO_BINARY(int32_t, int32_t, "sub", wrap(static_cast<uint32_t>(a) - static_cast<uint32_t>(b))),
      FMO_BINARY(int32_t, int32_t, "mul", wrap(static_cast<uint32_t>(a) * static_cast<uint32_t>(b))),
      FMO_BINARY(int32_t, int32_t, "floor_div", floor_div_i32(a, b)),
      FMO_BINARY(int32_t, int32_t, "remainder", remainder_i32(a, b)),
      FMO_BINARY(int32_t, int32_t, "minimum", a < b ? a : b),
      FMO_BINARY(int32_t, int32_t, "maximum", a > b ? a : b),
      FMO_BINARY(int32_t, int32_t, "eq", a == b ? 1 : 0),
      FMO_BINARY(int32_t, int32_t, "ne", a != b ? 1 : 0),
      FMO_BINARY(int32_t, int32_t, "lt", a < b ? 1 : 0),
      FMO_BINARY(int32_t, int32_t, "le", a <= b ? 1 : 0),
      FMO_BINARY(int32_t, int32_t, "gt", a > b ? 1 : 0),
      FMO_BINARY(int32_t, int32_t, "ge", a >= b ? 1 : 0),
      FMO_BINARY(int32_t, int32_t, "and", a != 0 && b != 0 ? 1 : 0),
      FMO_BINARY(int32_t, int32_t, "or", a != 0 || b != 0 ? 1 : 0),
  };
  return find(table, name);
}

}  // namespace
}  // namespace fmo
