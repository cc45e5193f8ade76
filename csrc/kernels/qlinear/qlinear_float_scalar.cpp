// Reference of qlinear with activations as they are: every weight becomes an f32 number, then the chain of linear.
#include <cmath>

#include "kernels/linear/panel_scalar.h"
#include "kernels/qlinear/qlinear_tables.h"

namespace fmo {
namespace {

// The 16 weights of column k of a panel; rows beyond the last block are 0.
void load_weights(const QuantWeight& w, int64_t panel, int64_t k, float out[kPanelRows]) {
  for (int64_t i = 0; i < kPanelRows; ++i) {
    const int64_t n = panel * kPanelRows + i;
    out[i] = n / kBlockRows < w.num_blocks() ? weight_number(w, n, k) * weight_scale(w, n, k / w.group) : 0.0f;
  }
}

void gemv(const RowSource& x, int64_t num_rows, const QuantWeight& w, Range panels, const float* bias, float* y,
          int64_t y_stride) {
  const auto load = [&](int64_t p, int64_t k, float* out) { load_weights(w, p, k, out); };
  scalar::gemv(x, num_rows, w, load, panels, bias, y, y_stride);
}

void gemm(const float* packed, int64_t num_rows, const QuantWeight& w, Range panels, const float* bias, float* y,
          int64_t y_stride) {
  const auto load = [&](int64_t p, int64_t k, float* out) { load_weights(w, p, k, out); };
  scalar::gemm(packed, num_rows, w, load, panels, bias, y, y_stride);
}

// To the nearest e4m3 number of at most 448, ties to even.
float nearest_e4m3(float value) {
  if (value == 0.0f) return value;
  const int exponent = std::max(std::ilogb(value), -6);  // below 2^-6 the numbers are evenly spaced by 2^-9
  const float step = std::ldexp(1.0f, exponent - 3);
  return std::nearbyint(value / step) * step;
}

void round_e4m3(const RowSource& x, int64_t K, Range rows, float* rounded) {
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const float* row = x.row(r);
    float* out = rounded + (r - rows.begin) * K;
    uint32_t max_bits = 0;
    for (int64_t k = 0; k < K; ++k) max_bits = std::max(max_bits, std::bit_cast<uint32_t>(row[k]) & 0x7fffffffu);
    const GroupScale s = group_scale(max_bits, 448.0f);
    for (int64_t k = 0; k < K; ++k) out[k] = (s.inverse == 0.0f ? 0.0f : nearest_e4m3(row[k] * s.inverse)) * s.scale;
  }
}

}  // namespace

QuantFloatKernels quant_float_kernels_scalar() {
  return {[](const QuantWeight&) -> int64_t { return 4; }, gemv, gemm, round_e4m3};
}

}  // namespace fmo
