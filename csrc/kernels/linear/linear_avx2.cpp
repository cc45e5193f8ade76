// linear for AVX2 + FMA: an outer-product register tile of R rows × (16·P) outputs, in two drivers.
//
//   gemv  P panels from far-apart quarters of the share at the same time: one stream per panel fills the memory pipeline better than
//         one long stream (+30-45 % bandwidth); the next lines are prefetched.
//   gemm  blocks of K (kBlockK: one panel block is 16 KiB and stays in L1) × blocks of rows (kBlockTiles: x stays in L2). bf16 panels are
//         unpacked to f32 once per block of rows; the next panel block is prefetched in slices between the tiles. Partial sums rest in y
//         between blocks of K, which is exact: the chain over k stays one chain.
#include <immintrin.h>

#include "kernels/linear/linear_tables.h"
#include "kernels/math/vec_avx2.h"

namespace fmo {
namespace {

using avx2::unroll;

constexpr int64_t kBlockK = 256;
constexpr int64_t kBlockTiles = 40;
constexpr int64_t kPrefetchBytes = 1024;  // ahead of each stream of gemv

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
    return {_mm256_castsi256_ps(_mm256_slli_epi32(v, 16)), _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(-65536)))};
  }
}

template <DType D>
constexpr int64_t kRowBytes = kPanelRows * dtype_bytes(D);  // one k of a panel

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

// P panels × R rows of x.
template <DType D, int P, int R>
__attribute__((noinline)) void gemv_tile(const float* const* x, const PanelWeight& w, const int64_t* panels, const float* bias, float* y,
                                         int64_t y_stride) {
  __m256 low[P * R], high[P * R];
  const char* stream[P];
  unroll<P>([&](auto p) { stream[p] = static_cast<const char*>(w.panel(panels[p])); });
  unroll<P * R>([&](auto i) { low[i] = high[i] = _mm256_setzero_ps(); });
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    unroll<P>([&](auto p) __attribute__((always_inline)) {
      const PanelVectors v = load_panel<D>(stream[p] + k * kRowBytes<D>);
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        const __m256 a = _mm256_broadcast_ss(x[r] + k);
        low[p * R + r] = _mm256_fmadd_ps(a, v.low, low[p * R + r]);
        high[p * R + r] = _mm256_fmadd_ps(a, v.high, high[p * R + r]);
      });
    });
  };
  constexpr int64_t kStep = 64 / kRowBytes<D>;  // k per cache line: 1 or 2
  int64_t k = 0;
  for (; k + kStep <= w.K; k += kStep) {
    unroll<P>([&](auto p) { _mm_prefetch(stream[p] + k * kRowBytes<D> + kPrefetchBytes, _MM_HINT_T0); });
    unroll<kStep>([&](auto i) __attribute__((always_inline)) { step(k + i); });
  }
  for (; k < w.K; ++k) step(k);
  unroll<P>([&](auto p) {
    unroll<R>([&](auto r) { store_outputs(low[p * R + r], high[p * R + r], panels[p] * kPanelRows, w.N, bias, y + r * y_stride); });
  });
}

// `P` streams over a range of panels; what does not divide by P is done one panel at a time.
template <DType D, int P, int R>
void gemv_rows(const RowSource& source, const PanelWeight& w, Range range, const float* bias, float* y, int64_t y_stride) {
  const float* x[R];
  unroll<R>([&](auto r) { x[r] = source.row(r); });
  const int64_t share = range.size() / P;
  for (int64_t i = 0; i < share; ++i) {
    int64_t panels[P];
    unroll<P>([&](auto p) { panels[p] = range.begin + p * share + i; });
    gemv_tile<D, P, R>(x, w, panels, bias, y, y_stride);
  }
  for (int64_t p = range.begin + share * P; p < range.end; ++p) gemv_tile<D, 1, R>(x, w, &p, bias, y, y_stride);
}

template <DType D>
void gemv_typed(const RowSource& x, int64_t num_rows, const PanelWeight& w, Range panels, const float* bias, float* y, int64_t y_stride) {
  switch (num_rows) {
    case 1: return gemv_rows<D, 4, 1>(x, w, panels, bias, y, y_stride);
    case 2: return gemv_rows<D, 2, 2>(x, w, panels, bias, y, y_stride);
    case 3: return gemv_rows<D, 2, 3>(x, w, panels, bias, y, y_stride);
    case 4: return gemv_rows<D, 1, 4>(x, w, panels, bias, y, y_stride);
    case 5: return gemv_rows<D, 1, 5>(x, w, panels, bias, y, y_stride);
    case 6: return gemv_rows<D, 1, 6>(x, w, panels, bias, y, y_stride);
    default: return;
  }
}

void gemv(const RowSource& x, int64_t num_rows, const PanelWeight& w, Range panels, const float* bias, float* y, int64_t y_stride) {
  const auto typed = w.dtype == DType::bf16 ? gemv_typed<DType::bf16> : gemv_typed<DType::f32>;
  typed(x, num_rows, w, panels, bias, y, y_stride);
}

// R rows × one f32 panel block. `y` points at the 16 outputs of the first row; `first_block`: y holds nothing yet.
template <int R>
__attribute__((noinline)) void gemm_tile(const float* panel, const float* tile, int64_t num_k, float* y, int64_t y_stride, bool first_block) {
  __m256 low[R], high[R];
  unroll<R>([&](auto r) {
    low[r] = first_block ? _mm256_setzero_ps() : _mm256_loadu_ps(y + r * y_stride);
    high[r] = first_block ? _mm256_setzero_ps() : _mm256_loadu_ps(y + r * y_stride + 8);
  });
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    const __m256 b0 = _mm256_loadu_ps(panel + k * kPanelRows), b1 = _mm256_loadu_ps(panel + k * kPanelRows + 8);
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      const __m256 a = _mm256_broadcast_ss(tile + k * R + r);
      low[r] = _mm256_fmadd_ps(a, b0, low[r]);
      high[r] = _mm256_fmadd_ps(a, b1, high[r]);
    });
  };
  int64_t k = 0;
  for (; k + 4 <= num_k; k += 4) unroll<4>([&](auto i) __attribute__((always_inline)) { step(k + i); });
  for (; k < num_k; ++k) step(k);
  unroll<R>([&](auto r) {
    _mm256_storeu_ps(y + r * y_stride, low[r]);
    _mm256_storeu_ps(y + r * y_stride + 8, high[r]);
  });
}

using TileFunction = void (*)(const float*, const float*, int64_t, float*, int64_t, bool);
constexpr TileFunction kTileFunctions[kTileRows + 1] = {nullptr,      gemm_tile<1>, gemm_tile<2>, gemm_tile<3>,
                                                        gemm_tile<4>, gemm_tile<5>, gemm_tile<6>};

// A block of a panel as f32: in place, or unpacked to `unpacked`.
const float* panel_block(const PanelWeight& w, int64_t p, int64_t k0, int64_t num_k, float* unpacked) {
  const char* source = static_cast<const char*>(w.panel(p)) + k0 * kPanelRows * dtype_bytes(w.dtype);
  if (w.dtype == DType::f32) return reinterpret_cast<const float*>(source);
  for (int64_t k = 0; k < num_k; ++k) {
    const PanelVectors v = load_panel<DType::bf16>(source + k * kRowBytes<DType::bf16>);
    _mm256_store_ps(unpacked + k * kPanelRows, v.low);
    _mm256_store_ps(unpacked + k * kPanelRows + 8, v.high);
  }
  return unpacked;
}

// Spreads the prefetch of the next panel block over the tiles of this one.
struct NextPanel {
  const char* data = nullptr;
  int64_t num_bytes = 0, done = 0, slice = 0;
  NextPanel(const PanelWeight& w, int64_t p, int64_t end, int64_t k0, int64_t num_k, int64_t num_tiles) {
    if (p >= end) return;
    data = static_cast<const char*>(w.panel(p)) + k0 * kPanelRows * dtype_bytes(w.dtype);
    num_bytes = num_k * kPanelRows * dtype_bytes(w.dtype);
    slice = round_up(ceil_div(num_bytes, num_tiles), 64);
  }
  void advance() {
    const int64_t end = std::min(done + slice, num_bytes);
    for (; done < end; done += 64) _mm_prefetch(data + done, _MM_HINT_T1);
  }
};

void add_bias(float* y, const float* bias, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] += bias[i];
}

// All tiles of a block of rows against one block of one panel. The last, ragged panel goes through `edge` [rows of the block][16].
struct GemmBlock {
  const float* packed;
  int64_t num_rows, tile_begin, tile_end, k0, num_k;
  float* y;
  int64_t y_stride;
  const float* bias;
  float* edge;

  void run(const PanelWeight& w, int64_t p, int64_t panel_end, float* unpacked) const {
    const float* panel = panel_block(w, p, k0, num_k, unpacked);
    NextPanel next(w, p + 1, panel_end, k0, num_k, tile_end - tile_begin);
    const int64_t first = p * kPanelRows, width = std::min(kPanelRows, w.N - first);
    const int64_t first_row = row_tile(num_rows, tile_begin).begin;
    for (int64_t t = tile_begin; t < tile_end; ++t) {
      const Range rows = row_tile(num_rows, t);
      const int64_t height = rows.size();
      const bool ragged = width < kPanelRows;
      float* out = ragged ? edge + (rows.begin - first_row) * kPanelRows : y + rows.begin * y_stride + first;
      const int64_t out_stride = ragged ? kPanelRows : y_stride;
      kTileFunctions[height](panel, packed + rows.begin * w.K + k0 * height, num_k, out, out_stride, k0 == 0);
      next.advance();
      if (k0 + num_k == w.K) finish(out, out_stride, rows, first, width);
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

void gemm(const float* packed, int64_t num_rows, const PanelWeight& w, Range panels, const float* bias, float* y, int64_t y_stride) {
  alignas(64) float unpacked[kBlockK * kPanelRows];
  alignas(64) float edge[kBlockTiles * kTileRows * kPanelRows];
  const int64_t num_tiles = num_row_tiles(num_rows);
  for (int64_t t0 = 0; t0 < num_tiles; t0 += kBlockTiles) {
    for (int64_t k0 = 0; k0 < w.K; k0 += kBlockK) {
      const GemmBlock block{packed, num_rows, t0,       std::min(t0 + kBlockTiles, num_tiles), k0, std::min(kBlockK, w.K - k0), y,
                            y_stride, bias,     edge};
      for (int64_t p = panels.begin; p < panels.end; ++p) block.run(w, p, panels.end, unpacked);
    }
  }
}

}  // namespace

LinearKernels linear_kernels_avx2() { return {.max_gemv_rows = 6, .pack = pack_rows_scalar, .gemm = gemm, .gemv = gemv}; }

}  // namespace fmo
