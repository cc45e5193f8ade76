// Reference of lora: plain loops in the order of the contract.
#include <algorithm>

#include "kernels/linear/panel_scalar.h"
#include "kernels/lora/lora.h"

namespace fmo {
namespace {

void shrink(const RowSource& x, int64_t num_rows, const PanelWeight& down, int64_t panel, float* t, int64_t t_stride) {
  const auto load = [&](int64_t p, int64_t k, float* out) { scalar::load_weights(down, p, k, out); };
  scalar::gemv(x, num_rows, down, load, {panel, panel + 1}, nullptr, t - panel * kPanelRows, t_stride);
}

void expand(const float* t, int64_t t_stride, int64_t num_rows, const PanelWeight& up, Range panels, float scale,
            const RowTarget& target) {
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const int64_t first = p * kPanelRows, width = std::min(kPanelRows, up.N - first);
    for (int64_t i = 0; i < num_rows; ++i) {
      float sum[kPanelRows] = {}, weights[kPanelRows];
      for (int64_t r = 0; r < up.K; ++r) {
        scalar::load_weights(up, p, r, weights);
        for (int64_t n = 0; n < kPanelRows; ++n) sum[n] += t[i * t_stride + r] * weights[n];
      }
      float* y = target.row(i) + first;
      for (int64_t n = 0; n < width; ++n) y[n] += scale * sum[n];
    }
  }
}

}  // namespace

LoraKernels lora_kernels_scalar() { return {.shrink = shrink, .expand = expand}; }

}  // namespace fmo
