// y = x · wᵀ + bias for quantized weights.        contract of qlinear.cpu.*; docs/quantized-weights.md fixes every bit
//
//   x     f32, row r at x.row(r), K values without gaps
//   w     block8 of [N, K]: 8 output rows per block; codes, scales and (u4) zeros
//   y     f32 [M, N], row stride y_stride; must not overlap x
//   bias  f32 [N] or null
//
// Integers (act i8, i7): `quantize` rounds x once into tiles of rows, all threads share them; `multiply` computes
// blocks of outputs from them, any number of rows. Floats (act f32, e4m3): `float_gemv` for few rows on x as it is,
// `float_gemm` on x packed by LinearKernels::pack; e4m3 rounds the rows first (`round_e4m3`). Their unit of work is a
// panel of two blocks (the last panel may have one block only). Work is split by outputs, sums never.
// The scalar reference rounds multiply and add separately; all else is equal bit for bit.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "base/dtype.h"
#include "base/split.h"
#include "device/cpu/isa.h"
#include "kernels/linear/linear.h"

namespace fmo {

inline constexpr int64_t kBlockRows = 8;  // output rows per block: a 32-bit lane is one row

enum class Act : uint8_t { f32, i8, i7, e4m3 };
inline bool is_integer(Act act) { return act == Act::i8 || act == Act::i7; }
const char* act_name(Act act);

struct QuantWeight {
  const uint8_t* codes = nullptr;  // [N/8][K/4][8][4], 4 bit: [N/8][K/8][8][4] of nibble pairs
  const char* scales = nullptr;    // [N/8][K/group][8] of scale_dtype
  const uint8_t* zeros = nullptr;  // [N/8][K/group][8], u4 only
  DType dtype = DType::i4;         // i4, u4, i7, i8, e4m3, e2m1
  DType scale_dtype = DType::f16;  // f16, f32, e8m0
  int64_t group = 0;               // columns per scale; K: per channel
  int64_t lane_sum = kAnyLaneSum;  // i7: Σ |code − zero| of the 16 codes of a lane in 32 columns does not exceed it
  int64_t N = 0, K = 0;

  bool is_4_bit() const { return dtype == DType::i4 || dtype == DType::u4 || dtype == DType::e2m1; }
  bool is_per_channel() const { return group == K; }
  int64_t num_blocks() const { return ceil_div(N, kBlockRows); }
  int64_t num_groups() const { return K / group; }
  int64_t num_panels() const { return ceil_div(N, kPanelRows); }
  int64_t block_bytes() const { return is_4_bit() ? K * kBlockRows / 2 : K * kBlockRows; }
  int64_t scale_bytes() const { return scale_dtype == DType::f32 ? 4 : scale_dtype == DType::f16 ? 2 : 1; }
  const uint8_t* block(int64_t b) const { return codes + b * block_bytes(); }
  const char* block_scales(int64_t b) const { return scales + b * num_groups() * kBlockRows * scale_bytes(); }
  const uint8_t* block_zeros(int64_t b) const {
    return zeros == nullptr ? nullptr : zeros + b * num_groups() * kBlockRows;
  }
  // One of several equal matrices that follow each other (experts).
  QuantWeight expert(int64_t index) const {
    QuantWeight one = *this;
    one.codes = block(index * num_blocks());
    one.scales = block_scales(index * num_blocks());
    one.zeros = block_zeros(index * num_blocks());
    return one;
  }
};

// --- one weight at a time: the meaning of the formats, for references

inline constexpr float kE2m1Values[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
inline constexpr int kE2m1Doubled[8] = {0, 1, 2, 3, 4, 6, 8, 12};

inline uint8_t weight_code(const QuantWeight& w, int64_t n, int64_t k) {
  const uint8_t* block = w.block(n / kBlockRows);
  const int64_t lane = n % kBlockRows;
  if (!w.is_4_bit()) return block[k / 4 * 32 + lane * 4 + k % 4];
  const uint8_t pair = block[k / 8 * 32 + lane * 4 + k % 4];
  return k % 8 < 4 ? pair & 15 : pair >> 4;
}

inline float weight_scale(const QuantWeight& w, int64_t n, int64_t group_idx) {
  const char* scales = w.block_scales(n / kBlockRows);
  const int64_t index = group_idx * kBlockRows + n % kBlockRows;
  if (w.scale_dtype == DType::f32) return reinterpret_cast<const float*>(scales)[index];
  if (w.scale_dtype == DType::f16) return f16_to_f32(reinterpret_cast<const f16_t*>(scales)[index]);
  return e8m0_to_f32(reinterpret_cast<const uint8_t*>(scales)[index]);
}

// code − zero as an integer; of e2m1 twice the value, so that it is one. Not for e4m3.
inline int weight_integer(const QuantWeight& w, int64_t n, int64_t k) {
  const int code = weight_code(w, n, k);
  switch (w.dtype) {
    case DType::i4:
      return code - 8;
    case DType::u4:
      return code - w.block_zeros(n / kBlockRows)[k / w.group * kBlockRows + n % kBlockRows];
    case DType::e2m1:
      return code < 8 ? kE2m1Doubled[code] : -kE2m1Doubled[code - 8];
    case DType::i7:
      return code - 64;
    default:
      return code - 128;
  }
}

// code − zero; times weight_scale it is the weight.
inline float weight_number(const QuantWeight& w, int64_t n, int64_t k) {
  if (w.dtype == DType::e4m3) return e4m3_to_f32(weight_code(w, n, k));
  const float number = static_cast<float>(weight_integer(w, n, k));
  return w.dtype == DType::e2m1 ? 0.5f * number : number;
}

// Row n of the matrix as numbers: y [K].
void dequantize_row(const QuantWeight& w, int64_t n, float* y);

// --- rows of x as integers

// How x is rounded and cut for one weight and one number of rows.
struct RowFormat {
  float qmax = 127.0f;      // 127 or 63
  int64_t group = 0;        // columns per scale of x: act_group
  int64_t sum_columns = 0;  // columns per sum; divides group
  int sum_factor = 0;       // sums are multiplied by it: −zero of the weight, −1 where each row has its own zero
  int64_t tile_rows = 1;    // rows per tile, at most
};

// Tile t holds rows row_tile(t): codes [K/4][rows][4], scales [K/group][rows], sums [K/sum_columns][rows]; tile after
// tile. A sum is a pair of 16-bit integers: of the columns with k%4 in {0, 1} and of those with k%4 in {2, 3}.
struct QuantRows {
  RowFormat format;
  int64_t num_rows = 0, K = 0;
  int8_t* codes = nullptr;
  float* scales = nullptr;
  int32_t* sums = nullptr;

  int64_t num_groups() const { return K / format.group; }
  int64_t num_sums() const { return K / format.sum_columns; }
  int64_t num_tiles() const { return ceil_div(num_rows, format.tile_rows); }
  Range row_tile(int64_t tile) const {  // evenly, so that 7 rows are 4 + 3 and not 6 + 1
    return split(num_rows, static_cast<int>(tile), static_cast<int>(num_tiles()));
  }
  int64_t num_units() const { return num_tiles() * num_groups(); }

  // Lays the three arrays out in `base`; returns their bytes. Null only counts.
  static int64_t lay_out(const RowFormat& format, int64_t num_rows, int64_t K, char* base, QuantRows* out) {
    QuantRows rows{format, num_rows, K, nullptr, nullptr, nullptr};
    const int64_t code_bytes = round_up(checked_mul(num_rows, K), 64);
    const int64_t scale_bytes = round_up(checked_mul(num_rows, K / format.group * 4), 64);
    const int64_t sum_bytes = round_up(checked_mul(num_rows, K / format.sum_columns * 4), 64);
    rows.codes = reinterpret_cast<int8_t*>(base);
    rows.scales = base == nullptr ? nullptr : reinterpret_cast<float*>(base + code_bytes);
    rows.sums = base == nullptr ? nullptr : reinterpret_cast<int32_t*>(base + code_bytes + scale_bytes);
    if (out != nullptr) *out = rows;
    return code_bytes + scale_bytes + sum_bytes;
  }
};

// --- kernels

struct QuantKernels {
  RowFormat (*row_format)(const QuantWeight& w, Act act, int64_t act_group, int64_t num_rows) = nullptr;
  // Units tile · num_groups + group: any split over threads gives the same bytes.
  void (*quantize)(const RowSource& x, const QuantRows& rows, Range units) = nullptr;
  void (*multiply)(const QuantRows& rows, const QuantWeight& w, Range blocks, const float* bias, float* y,
                   int64_t y_stride) = nullptr;
};

// packed: as LinearKernels::pack writes it. rounded: [rows.size(), K] without gaps, row `rows.begin` first.
struct QuantFloatKernels {
  int64_t (*max_gemv_rows)(const QuantWeight& w) = nullptr;
  void (*gemv)(const RowSource& x, int64_t num_rows, const QuantWeight& w, Range panels, const float* bias, float* y,
               int64_t y_stride) = nullptr;
  void (*gemm)(const float* packed, int64_t num_rows, const QuantWeight& w, Range panels, const float* bias, float* y,
               int64_t y_stride) = nullptr;
  void (*round_e4m3)(const RowSource& x, int64_t K, Range rows, float* rounded) = nullptr;
};

const QuantKernels& quant_kernels(Isa isa);
const QuantFloatKernels& quant_float_kernels(Isa isa);

}  // namespace fmo
