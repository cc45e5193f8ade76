// One panel of `up` (16 outputs × rank, a few KB) stays in the L1 cache while all rows of the adapter pass by, four at
// a time: 8 accumulators, which is what two multiply-adds per cycle of latency 4 keep busy.
#include <algorithm>

#include "kernels/lora/lora.h"
#include "kernels/math/vec_avx2.h"

namespace fmo {
namespace {

using avx2::unroll;

constexpr int kRows = 4;

// y[0 … width) += the 16 sums.
void add_outputs(__m256 low, __m256 high, int64_t width, float* y) {
  if (width == kPanelRows) {
    _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), low));
    _mm256_storeu_ps(y + 8, _mm256_add_ps(_mm256_loadu_ps(y + 8), high));
    return;
  }
  const __m256i low_mask = avx2::tail_mask(width), high_mask = avx2::tail_mask(std::max<int64_t>(width - 8, 0));
  _mm256_maskstore_ps(y, low_mask, _mm256_add_ps(_mm256_maskload_ps(y, low_mask), low));
  if (width > 8) _mm256_maskstore_ps(y + 8, high_mask, _mm256_add_ps(_mm256_maskload_ps(y + 8, high_mask), high));
}

template <int R>
void expand_tile(const float* t, int64_t t_stride, int64_t first_row, const float* panel, int64_t rank, int64_t first,
                 int64_t width, const RowTarget& target) {
  __m256 low[R], high[R];
  unroll<R>([&](auto i) { low[i] = high[i] = _mm256_setzero_ps(); });
  for (int64_t r = 0; r < rank; ++r) {
    const __m256 panel_low = _mm256_load_ps(panel + r * kPanelRows);
    const __m256 panel_high = _mm256_load_ps(panel + r * kPanelRows + 8);
    unroll<R>([&](auto i) {
      const __m256 value = _mm256_broadcast_ss(t + (first_row + i) * t_stride + r);
      low[i] = _mm256_fmadd_ps(value, panel_low, low[i]);
      high[i] = _mm256_fmadd_ps(value, panel_high, high[i]);
    });
  }
  unroll<R>([&](auto i) { add_outputs(low[i], high[i], width, target.row(first_row + i) + first); });
}

void expand(const float* t, int64_t t_stride, int64_t num_rows, const PanelWeight& up, Range panels,
            const RowTarget& target) {
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const auto* panel = static_cast<const float*>(up.panel(p));
    const int64_t first = p * kPanelRows, width = std::min(kPanelRows, up.N - first);
    int64_t i = 0;
    for (; i + kRows <= num_rows; i += kRows) expand_tile<kRows>(t, t_stride, i, panel, up.K, first, width, target);
    for (; i < num_rows; ++i) expand_tile<1>(t, t_stride, i, panel, up.K, first, width, target);
  }
}

}  // namespace

LoraKernels lora_kernels_avx2() { return {.expand = expand}; }

}  // namespace fmo
