// Reference of qlinear with integers: plain loops in the order of the contract. It does not use the sums of the rows:
// it subtracts the zeros from the codes.
#include <cmath>

#include "kernels/qlinear/qlinear_tables.h"

namespace fmo {
namespace {

constexpr int64_t kRowsAtOnce = 8;
constexpr int64_t kColumnsAtOnce = 32;  // divides every group

RowFormat row_format(const QuantWeight& w, Act act, int64_t act_group, int64_t) {
  return {act == Act::i8 ? 127.0f : 63.0f, act_group, act_group, -common_zero(w.dtype), kRowsAtOnce};
}

void quantize_group(const float* x, int64_t row, int64_t num_rows, int64_t group, const RowFormat& format,
                    int8_t* codes, float* scale) {
  const int64_t first = group * format.group;
  uint32_t max_bits = 0;
  for (int64_t k = first; k < first + format.group; ++k)
    max_bits = std::max(max_bits, std::bit_cast<uint32_t>(x[k]) & 0x7fffffffu);
  const GroupScale s = group_scale(max_bits, format.qmax);
  *scale = s.scale;
  for (int64_t k = first; k < first + format.group; ++k) {
    const float quotient = s.inverse == 0.0f ? 0.0f : x[k] * s.inverse;
    codes[(k / 4 * num_rows + row) * 4 + k % 4] = static_cast<int8_t>(std::nearbyint(quotient));
  }
}

void quantize(const RowSource& x, const QuantRows& rows, Range units) {
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const Range tile = rows.row_tile(unit / rows.num_groups());
    const int64_t group = unit % rows.num_groups();
    float* scales = rows.scales + tile.begin * rows.num_groups() + group * tile.size();
    for (int64_t r = 0; r < tile.size(); ++r) {
      quantize_group(x.row(tile.begin + r), r, tile.size(), group, rows.format, rows.codes + tile.begin * rows.K,
                     scales + r);
    }
  }
}

struct TileSums {
  int32_t sum[kRowsAtOnce][kBlockRows];  // of one group
  float y[kRowsAtOnce][kBlockRows];
};

// Adds kColumnsAtOnce columns of one block to the integers of all rows of a tile.
void add_columns(const QuantWeight& w, int64_t b, int64_t k0, const int8_t* codes, int64_t num_rows, TileSums& t) {
  int integers[kColumnsAtOnce][kBlockRows];
  for (int64_t k = 0; k < kColumnsAtOnce; ++k) {
    for (int64_t lane = 0; lane < kBlockRows; ++lane)
      integers[k][lane] = weight_integer(w, b * kBlockRows + lane, k0 + k);
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t k = 0; k < kColumnsAtOnce; ++k) {
      const int code = codes[((k0 + k) / 4 * num_rows + r) * 4 + k % 4];
      for (int64_t lane = 0; lane < kBlockRows; ++lane) t.sum[r][lane] += integers[k][lane] * code;
    }
  }
}

void multiply_tile(const QuantRows& rows, Range tile, const QuantWeight& w, int64_t b, TileSums& t) {
  const int64_t group = rows.format.group;
  const float unit = w.dtype == DType::e2m1 ? 0.5f : 1.0f;
  std::fill_n(&t.y[0][0], kRowsAtOnce * kBlockRows, 0.0f);
  for (int64_t g = 0; g < rows.num_groups(); ++g) {
    std::fill_n(&t.sum[0][0], kRowsAtOnce * kBlockRows, 0);
    for (int64_t k = g * group; k < (g + 1) * group; k += kColumnsAtOnce)
      add_columns(w, b, k, rows.codes + tile.begin * rows.K, tile.size(), t);
    for (int64_t r = 0; r < tile.size(); ++r) {
      const float scale = rows.scales[tile.begin * rows.num_groups() + g * tile.size() + r];
      for (int64_t lane = 0; lane < kBlockRows; ++lane) {
        const float w_scale = w.is_per_channel() ? 1.0f : weight_scale(w, b * kBlockRows + lane, g);
        t.y[r][lane] += static_cast<float>(t.sum[r][lane]) * (unit * w_scale * scale);
      }
    }
  }
}

void multiply(const QuantRows& rows, const QuantWeight& w, Range blocks, const float* bias, float* y,
              int64_t y_stride) {
  TileSums t;
  for (int64_t b = blocks.begin; b < blocks.end; ++b) {
    for (int64_t i = 0; i < rows.num_tiles(); ++i) {
      const Range tile = rows.row_tile(i);
      multiply_tile(rows, tile, w, b, t);
      for (int64_t r = 0; r < tile.size(); ++r) {
        for (int64_t n = b * kBlockRows; n < std::min(w.N, (b + 1) * kBlockRows); ++n) {
          float value = t.y[r][n - b * kBlockRows];
          if (w.is_per_channel()) value *= weight_scale(w, n, 0);
          y[(tile.begin + r) * y_stride + n] = bias == nullptr ? value : value + bias[n];
        }
      }
    }
  }
}

}  // namespace

QuantKernels quant_kernels_scalar() { return {row_format, quantize, multiply}; }

}  // namespace fmo
