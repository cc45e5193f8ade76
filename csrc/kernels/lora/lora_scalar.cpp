// Reference of lora: plain loops in the order of the contract.
#include <algorithm>

#include "kernels/lora/lora.h"

namespace fmo {
namespace {

void expand(const float* t, int64_t t_stride, int64_t num_rows, const PanelWeight& up, Range panels,
            const RowTarget& target) {
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const float* panel = static_cast<const float*>(up.panel(p));
    const int64_t first = p * kPanelRows, width = std::min(kPanelRows, up.N - first);
    for (int64_t i = 0; i < num_rows; ++i) {
      float sum[kPanelRows] = {};
      for (int64_t r = 0; r < up.K; ++r) {
        for (int64_t n = 0; n < kPanelRows; ++n) sum[n] += t[i * t_stride + r] * panel[r * kPanelRows + n];
      }
      float* y = target.row(i) + first;
      for (int64_t n = 0; n < width; ++n) y[n] += sum[n];
    }
  }
}

}  // namespace

LoraKernels lora_kernels_scalar() { return {.expand = expand}; }

}  // namespace fmo
