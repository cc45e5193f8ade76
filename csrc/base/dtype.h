// Element types, and the conversions between f32 and the narrower storage types.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "base/error.h"

namespace fmo {

// From i4 on: codes of quantized weights (docs/quantized-weights.md), and e8m0 for their scales. i8 also holds KV.
enum class DType : uint8_t { f32, i32, boolean, bf16, f16, i4, u4, e2m1, i7, i8, e4m3, e8m0 };

inline bool is_weight_code(DType dtype) { return dtype >= DType::i4; }
// What Σ |code − zero| of 16 codes of i7 cannot exceed anyhow (docs/quantized-weights.md, lane_sum).
inline constexpr int64_t kAnyLaneSum = 16 * 64;

inline constexpr bool is_nibble(DType dtype) {
  return dtype == DType::i4 || dtype == DType::u4 || dtype == DType::e2m1;
}

// Of one element; 0 for nibbles, of which two share a byte.
inline constexpr int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::boolean:
    case DType::i7:
    case DType::i8:
    case DType::e4m3:
    case DType::e8m0:
      return 1;
    case DType::i4:
    case DType::u4:
    case DType::e2m1:
      return 0;
  }
  return 0;
}

inline const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::i32:
      return "i32";
    case DType::boolean:
      return "bool";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::i4:
      return "i4";
    case DType::u4:
      return "u4";
    case DType::e2m1:
      return "e2m1";
    case DType::i7:
      return "i7";
    case DType::i8:
      return "i8";
    case DType::e4m3:
      return "e4m3";
    case DType::e8m0:
      return "e8m0";
  }
  return "?";
}

inline DType parse_dtype(std::string_view name, const std::string& where) {
  std::string known;
  for (int i = 0; i <= static_cast<int>(DType::e8m0); ++i) {
    const DType dtype = static_cast<DType>(i);
    if (name == dtype_name(dtype)) return dtype;
    known += (i == 0 ? "" : ", ") + std::string(dtype_name(dtype));
  }
  throw PlanError("dtype '" + std::string(name) + "' is none of " + known, where);
}

using bf16_t = uint16_t;
using f16_t = uint16_t;

inline float bf16_to_f32(bf16_t value) { return std::bit_cast<float>(static_cast<uint32_t>(value) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
inline bf16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16_t>((bits >> 16) | 0x40u);
  return static_cast<bf16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float f16_to_f32(f16_t value) {
  const uint32_t sign = static_cast<uint32_t>(value & 0x8000u) << 16;
  const uint32_t exponent = (value >> 10) & 0x1fu;
  const uint32_t mantissa = value & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa × 2^-24, exact in f32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t wide_exponent = exponent == 0x1fu ? 0xffu : exponent + 112u;
  return std::bit_cast<float>(sign | (wide_exponent << 23) | (mantissa << 13));
}

// float8_e4m3fn: 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinities, 0x7f and 0xff are NaN.
inline float e4m3_to_f32(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24, exponent = (code >> 3) & 0xfu, mantissa = code & 7u;
  if ((code & 0x7fu) == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent == 0)
    return std::bit_cast<float>(std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-9f) | sign);
  return std::bit_cast<float>(sign | ((exponent + 120u) << 23) | (mantissa << 20));
}

// A power of two: 2^(code − 127); 255 is NaN.
inline float e8m0_to_f32(uint8_t code) {
  if (code == 0) return 0x1p-127f;
  return std::bit_cast<float>(code == 255 ? 0x7fc00000u : static_cast<uint32_t>(code) << 23);
}

}  // namespace fmo
