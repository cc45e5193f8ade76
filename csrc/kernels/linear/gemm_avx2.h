// What the AVX2 drivers of linear and qlinear share: loads of panels, the register tile of R rows × 16 outputs, and a
// block of rows against one block of one panel. Included only by files named *avx2*.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "kernels/linear/linear.h"
#include "kernels/math/vec_avx2.h"

namespace fmo::avx2 {

inline constexpr int64_t kSmallBytes = 256 << 10;  // x that stays in L2 as a whole: panels are then walked one by one
inline constexpr int64_t kBlockTiles = 16;         // 96 rows: with bf16, 512 k of them are 192 KiB
template <DType D>
constexpr int64_t kRowBytes = kPanelRows * dtype_bytes(D);  // one k of a panel

alignas(32) inline constexpr uint32_t kHighHalvesData[8] = {0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u,
                                                            0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u};
inline const __m256i& kHighHalves = *reinterpret_cast<const __m256i*>(kHighHalvesData);

struct PanelVectors {
  __m256 low, high;  // outputs 0 … 7 and 8 … 15
};

template <DType D>
inline __attribute__((always_inline)) PanelVectors load_panel(const char* p) {
  if constexpr (D == DType::f32) {
    const float* f = reinterpret_cast<const float*>(p);
    return {_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8)};
  } else {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    __m256i high;  // the mask comes from memory: kept in a register it would push an accumulator of the 6-row tile out
    asm("vpand %2, %1, %0" : "=x"(high) : "x"(v), "m"(kHighHalves));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(v, 16)), _mm256_castsi256_ps(high)};
  }
}

// sum + a · b. `IN_ORDER`: as the source says; left to itself, the compiler interleaves steps until accumulators spill.
template <bool IN_ORDER>
inline __attribute__((always_inline)) __m256 multiply_add(__m256 sum, __m256 a, __m256 b) {
  if constexpr (!IN_ORDER) return _mm256_fmadd_ps(a, b, sum);
  asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  return sum;
}

// Writes 16 outputs from `first` on, without the padding rows of the last panel.
inline void store_outputs(__m256 low, __m256 high, int64_t first, int64_t N, const float* bias, float* y) {
  if (first + kPanelRows <= N) {
    if (bias != nullptr) {
      low = _mm256_add_ps(low, _mm256_loadu_ps(bias + first));
      high = _mm256_add_ps(high, _mm256_loadu_ps(bias + first + 8));
    }
    _mm256_storeu_ps(y + first, low);
    _mm256_storeu_ps(y + first + 8, high);
    return;
  }
  alignas(32) float sums[kPanelRows];
  _mm256_store_ps(sums, low);
  _mm256_store_ps(sums + 8, high);
  for (int64_t i = 0; i < N - first; ++i) y[first + i] = bias == nullptr ? sums[i] : sums[i] + bias[first + i];
}

// Few rows: `P` streams over a range of panels, each tile P panels × R rows; what does not divide by P is done one
// panel at a time.
template <int P, int R, typename Weight, auto TILE, auto ONE_PANEL_TILE>
void gemv_streams(const RowSource& source, const Weight& w, Range range, const float* bias, float* y,
                  int64_t y_stride) {
  const float* x[R];
  unroll<R>([&](auto r) { x[r] = source.row(r); });
  const int64_t share = range.size() / P;
  for (int64_t i = 0; i < share; ++i) {
    int64_t panels[P];
    unroll<P>([&](auto p) { panels[p] = range.begin + p * share + i; });
    TILE(x, w, panels, bias, y, y_stride);
  }
  for (int64_t p = range.begin + share * P; p < range.end; ++p) ONE_PANEL_TILE(x, w, &p, bias, y, y_stride);
}

// What a tile prefetches while it computes: two places, `offset` apart, per kPrefetchSteps of k.
struct Prefetch {
  const char* at;
  int64_t offset, step_bytes;
};
inline constexpr int64_t kPrefetchSteps = 4;

// R rows × one panel block. `y` points at the 16 outputs of the first row; `first_block`: y holds nothing yet.
template <DType D, int R>
__attribute__((noinline)) void gemm_tile(const char* panel, const float* tile, int64_t num_k, float* y,
                                         int64_t y_stride, bool first_block, Prefetch next) {
  __m256 low[R], high[R];
  unroll<R>([&](auto r) {
    low[r] = first_block ? _mm256_setzero_ps() : _mm256_loadu_ps(y + r * y_stride);
    high[r] = first_block ? _mm256_setzero_ps() : _mm256_loadu_ps(y + r * y_stride + 8);
  });
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    const PanelVectors v = load_panel<D>(panel + k * kRowBytes<D>);
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      const __m256 a = _mm256_broadcast_ss(tile + k * R + r);
      low[r] = multiply_add<true>(low[r], a, v.low);
      high[r] = multiply_add<true>(high[r], a, v.high);
    });
  };
  int64_t k = 0;
  for (; k + kPrefetchSteps <= num_k; k += kPrefetchSteps) {
    _mm_prefetch(next.at, _MM_HINT_T0);
    _mm_prefetch(next.at + next.offset, _MM_HINT_T0);
    next.at += next.step_bytes;
    unroll<kPrefetchSteps>([&](auto i) __attribute__((always_inline)) { step(k + i); });
  }
  for (; k < num_k; ++k) step(k);
  unroll<R>([&](auto r) {
    _mm256_storeu_ps(y + r * y_stride, low[r]);
    _mm256_storeu_ps(y + r * y_stride + 8, high[r]);
  });
}

using TileFunction = void (*)(const char*, const float*, int64_t, float*, int64_t, bool, Prefetch);
template <DType D>
constexpr TileFunction kTileFunctions[kTileRows + 1] = {
    nullptr, gemm_tile<D, 1>, gemm_tile<D, 2>, gemm_tile<D, 3>, gemm_tile<D, 4>, gemm_tile<D, 5>, gemm_tile<D, 6>};

// What follows a block of a panel: two pieces of memory of num_bytes each, `offset` apart.
struct NextBlock {
  const char* at;
  int64_t offset, num_bytes;

  // Its prefetch is spread evenly over the tiles of the block before; `tile` counts from 0.
  Prefetch slice(int64_t tile, int64_t num_tiles, int64_t num_k) const {
    const int64_t bytes = num_bytes / num_tiles;
    return {at + tile * bytes, offset, bytes / std::max<int64_t>(num_k / kPrefetchSteps, 1)};
  }
};

inline void add_bias(float* y, const float* bias, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] += bias[i];
}
// All tiles of a block of rows against one block of one panel. The last, ragged panel goes through `edge` [rows of the
// block][16].
struct GemmBlock {
  const float* packed;
  int64_t num_rows;
  Range tiles;
  int64_t k0, num_k, N, K;
  float* y;
  int64_t y_stride;
  const float* bias;
  float* edge;

  // `panel`: the num_k × 16 weights of panel p from k0 on; `next`: what will be wanted after them.
  void run(const char* panel, int64_t p, const NextBlock& next, const TileFunction* tile_functions) const {
    const int64_t first = p * kPanelRows, width = std::min(kPanelRows, N - first);
    const int64_t first_row = row_tile(num_rows, tiles.begin).begin;
    const bool ragged = width < kPanelRows;
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const Range rows = row_tile(num_rows, t);
      const int64_t height = rows.size();
      float* out = ragged ? edge + (rows.begin - first_row) * kPanelRows : y + rows.begin * y_stride + first;
      const int64_t out_stride = ragged ? kPanelRows : y_stride;
      for (int64_t r = 0; r < height; ++r)
        _mm_prefetch(out + (height + r) * out_stride, _MM_HINT_T0);  // where the next tile will write
      tile_functions[height](panel, packed + rows.begin * K + k0 * height, num_k, out, out_stride, k0 == 0,
                             next.slice(t - tiles.begin, tiles.size(), num_k));
      if (k0 + num_k == K) finish(out, out_stride, rows, first, width);
    }
  }

  void finish(float* out, int64_t out_stride, Range rows, int64_t first, int64_t width) const {
    for (int64_t r = 0; r < rows.size(); ++r) {
      float* target = y + (rows.begin + r) * y_stride + first;
      if (width < kPanelRows) std::copy_n(out + r * out_stride, width, target);
      if (bias != nullptr) add_bias(target, bias + first, width);
    }
  }
};

}  // namespace fmo::avx2
