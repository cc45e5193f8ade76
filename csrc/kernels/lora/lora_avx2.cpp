// shrink  A panel of `down` passes by once for up to six rows: 12 accumulators, more than two multiply-adds per cycle
// of
//         latency 4 need; it comes from memory, one line per k or two, and is prefetched.
// expand  One panel of `up` (16 outputs × rank, a few KB) stays in the L1 cache while all rows of the adapter pass by,
//         four at a time: 8 accumulators.
#include <algorithm>

#include "kernels/linear/gemm_avx2.h"
#include "kernels/lora/lora.h"
#include "kernels/math/vec_avx2.h"

namespace fmo {
namespace {

using avx2::kRowBytes, avx2::load_panel, avx2::PanelVectors, avx2::unroll;

constexpr int kExpandRows = 4;
constexpr int64_t kPrefetchBytes = 2048;

template <DType D, int R>
void shrink_tile(const RowSource& source, const PanelWeight& down, int64_t p, float* t, int64_t t_stride) {
  const char* panel = static_cast<const char*>(down.panel(p));
  const float* x[R];
  __m256 low[R], high[R];
  unroll<R>([&](auto i) {
    x[i] = source.row(i);
    low[i] = high[i] = _mm256_setzero_ps();
  });
  for (int64_t k = 0; k < down.K; ++k) {
    const char* weights = panel + k * kRowBytes<D>;
    _mm_prefetch(weights + kPrefetchBytes, _MM_HINT_T0);
    const PanelVectors v = load_panel<D>(weights);
    unroll<R>([&](auto i) {
      const __m256 value = _mm256_broadcast_ss(x[i] + k);
      low[i] = _mm256_fmadd_ps(value, v.low, low[i]);
      high[i] = _mm256_fmadd_ps(value, v.high, high[i]);
    });
  }
  unroll<R>([&](auto i) {
    _mm256_storeu_ps(t + i * t_stride, low[i]);
    _mm256_storeu_ps(t + i * t_stride + 8, high[i]);
  });
}

using ShrinkTile = void (*)(const RowSource&, const PanelWeight&, int64_t, float*, int64_t);
template <DType D>
constexpr ShrinkTile kShrinkTiles[kLoraRows + 1] = {nullptr,           shrink_tile<D, 1>, shrink_tile<D, 2>,
                                                    shrink_tile<D, 3>, shrink_tile<D, 4>, shrink_tile<D, 5>,
                                                    shrink_tile<D, 6>};

void shrink(const RowSource& x, int64_t num_rows, const PanelWeight& down, int64_t panel, float* t, int64_t t_stride) {
  const ShrinkTile* tiles = down.dtype == DType::bf16 ? kShrinkTiles<DType::bf16> : kShrinkTiles<DType::f32>;
  tiles[num_rows](x, down, panel, t, t_stride);
}

// y[0 … width) += scale · the 16 sums.
void add_outputs(__m256 low, __m256 high, float scale, int64_t width, float* y) {
  low = _mm256_mul_ps(low, avx2::set1(scale));
  high = _mm256_mul_ps(high, avx2::set1(scale));
  if (width == kPanelRows) {
    _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), low));
    _mm256_storeu_ps(y + 8, _mm256_add_ps(_mm256_loadu_ps(y + 8), high));
    return;
  }
  const __m256i low_mask = avx2::tail_mask(width), high_mask = avx2::tail_mask(std::max<int64_t>(width - 8, 0));
  _mm256_maskstore_ps(y, low_mask, _mm256_add_ps(_mm256_maskload_ps(y, low_mask), low));
  if (width > 8) _mm256_maskstore_ps(y + 8, high_mask, _mm256_add_ps(_mm256_maskload_ps(y + 8, high_mask), high));
}

template <DType D, int R>
void expand_tile(const float* t, int64_t t_stride, int64_t first_row, const PanelWeight& up, int64_t p, float scale,
                 const RowTarget& target) {
  const char* panel = static_cast<const char*>(up.panel(p));
  __m256 low[R], high[R];
  unroll<R>([&](auto i) { low[i] = high[i] = _mm256_setzero_ps(); });
  for (int64_t r = 0; r < up.K; ++r) {
    const PanelVectors v = load_panel<D>(panel + r * kRowBytes<D>);
    unroll<R>([&](auto i) {
      const __m256 value = _mm256_broadcast_ss(t + (first_row + i) * t_stride + r);
      low[i] = _mm256_fmadd_ps(value, v.low, low[i]);
      high[i] = _mm256_fmadd_ps(value, v.high, high[i]);
    });
  }
  const int64_t first = p * kPanelRows, width = std::min(kPanelRows, up.N - first);
  unroll<R>([&](auto i) { add_outputs(low[i], high[i], scale, width, target.row(first_row + i) + first); });
}

template <DType D>
void expand_panels(const float* t, int64_t t_stride, int64_t num_rows, const PanelWeight& up, Range panels, float scale,
                   const RowTarget& target) {
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    int64_t i = 0;
    for (; i + kExpandRows <= num_rows; i += kExpandRows)
      expand_tile<D, kExpandRows>(t, t_stride, i, up, p, scale, target);
    for (; i < num_rows; ++i) expand_tile<D, 1>(t, t_stride, i, up, p, scale, target);
  }
}

void expand(const float* t, int64_t t_stride, int64_t num_rows, const PanelWeight& up, Range panels, float scale,
            const RowTarget& target) {
  const auto run = up.dtype == DType::bf16 ? expand_panels<DType::bf16> : expand_panels<DType::f32>;
  run(t, t_stride, num_rows, up, panels, scale, target);
}

}  // namespace

LoraKernels lora_kernels_avx2() { return {.shrink = shrink, .expand = expand}; }

}  // namespace fmo
