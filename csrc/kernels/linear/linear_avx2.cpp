// linear for AVX2 + FMA: an outer-product register tile of R rows × (16·P) outputs, in two drivers.
//
//   gemv  P panels from far-apart parts of the share at the same time: one stream per panel fills the memory pipeline
//         better than one long stream (+30-45 % bandwidth); the next lines are prefetched.
//   gemm  blocks of K (a panel block is 16 KiB and stays in L1) × blocks of rows (kBlockTiles: x stays in L2). While a
//         tile computes, it prefetches its share of the next panel's block. Partial sums rest in y between blocks of K,
//         which is exact: the chain over k stays one chain.
//
// bf16 weights are widened in registers: two instructions per 16 weights, in the shadow of the multiply-adds.
#include <immintrin.h>

#include "kernels/linear/linear_tables.h"
#include "kernels/math/vec_avx2.h"

namespace fmo {
namespace {

using avx2::unroll;

constexpr int64_t kPanelBlockBytes = 16 << 10;  // half of L1; the other half is for the tile of x
constexpr int64_t kSmallBytes = 256 << 10;      // x that stays in L2 as a whole: panels are then walked one by one
constexpr int64_t kBlockTiles = 16;             // 96 rows: with bf16, 512 k of them are 192 KiB
template <DType D>
constexpr int64_t kRowBytes = kPanelRows * dtype_bytes(D);  // one k of a panel

// How far ahead gemv prefetches each stream: few streams must reach further to keep as many lines in flight.
template <int P>
constexpr int64_t kPrefetchBytes = P >= 4   ? 1024
                                   : P >= 2 ? 2048
                                            : 4096;

alignas(32) constexpr uint32_t kHighHalvesData[8] = {0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u,
                                                     0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u};
const __m256i& kHighHalves = *reinterpret_cast<const __m256i*>(kHighHalvesData);

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

// P panels × R rows of x.
template <DType D, int P, int R>
__attribute__((noinline)) void gemv_tile(const float* const* x, const PanelWeight& w, const int64_t* panels,
                                         const float* bias, float* y, int64_t y_stride) {
  __m256 low[P * R], high[P * R];
  const char* stream[P];
  unroll<P>([&](auto p) { stream[p] = static_cast<const char*>(w.panel(panels[p])); });
  unroll<P * R>([&](auto i) { low[i] = high[i] = _mm256_setzero_ps(); });
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    unroll<P>([&](auto p) __attribute__((always_inline)) {
      const PanelVectors v = load_panel<D>(stream[p] + k * kRowBytes<D>);
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        const __m256 a = _mm256_broadcast_ss(x[r] + k);
        low[p * R + r] = multiply_add<D == DType::bf16>(low[p * R + r], a, v.low);
        high[p * R + r] = multiply_add<D == DType::bf16>(high[p * R + r], a, v.high);
      });
    });
  };
  constexpr int64_t kStep = 64 / kRowBytes<D>;  // k per cache line: 1 or 2
  int64_t k = 0;
  for (; k + kStep <= w.K; k += kStep) {
    unroll<P>([&](auto p) { _mm_prefetch(stream[p] + k * kRowBytes<D> + kPrefetchBytes<P>, _MM_HINT_T0); });
    unroll<kStep>([&](auto i) __attribute__((always_inline)) { step(k + i); });
  }
  for (; k < w.K; ++k) step(k);
  unroll<P>([&](auto p) {
    unroll<R>([&](auto r) {
      store_outputs(low[p * R + r], high[p * R + r], panels[p] * kPanelRows, w.N, bias, y + r * y_stride);
    });
  });
}

// `P` streams over a range of panels; what does not divide by P is done one panel at a time.
template <DType D, int P, int R>
void gemv_rows(const RowSource& source, const PanelWeight& w, Range range, const float* bias, float* y,
               int64_t y_stride) {
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

void gemv(const RowSource& x, int64_t num_rows, const PanelWeight& w, Range panels, const float* bias, float* y,
          int64_t y_stride) {
  const bool is_bf16 = w.dtype == DType::bf16;
  auto rows = is_bf16 ? gemv_rows<DType::bf16, 4, 1> : gemv_rows<DType::f32, 4, 1>;
  if (num_rows == 2) rows = is_bf16 ? gemv_rows<DType::bf16, 2, 2> : gemv_rows<DType::f32, 2, 2>;
  if (num_rows == 3) rows = gemv_rows<DType::f32, 2, 3>;
  rows(x, w, panels, bias, y, y_stride);
}

// Measured: with a panel tile of three bf16 rows or four f32 rows, the block prefetch of gemm beats the streams of
// gemv.
int64_t max_gemv_rows(DType dtype) { return dtype == DType::bf16 ? 2 : 3; }

// What a tile prefetches while it computes: two places per kPrefetchSteps of k.
struct Prefetch {
  const char* at;
  int64_t step_bytes;
};
constexpr int64_t kPrefetchSteps = 4;

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
    _mm_prefetch(next.at + next.step_bytes / 2, _MM_HINT_T0);
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

// Spreads the prefetch of the next panel's block evenly over the tiles of this one; `tile` counts from 0.
Prefetch prefetch_slice(const char* next, int64_t num_bytes, int64_t tile, int64_t num_tiles, int64_t num_k) {
  const int64_t slice = num_bytes / num_tiles;
  return {next + tile * slice, slice / std::max<int64_t>(num_k / kPrefetchSteps, 1)};
}

void add_bias(float* y, const float* bias, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] += bias[i];
}

const char* panel_block(const PanelWeight& w, int64_t p, int64_t k0) {
  return static_cast<const char*>(w.panel(p)) + k0 * kPanelRows * dtype_bytes(w.dtype);
}

// All tiles of a block of rows against one block of one panel. The last, ragged panel goes through `edge` [rows of the
// block][16].
struct GemmBlock {
  const float* packed;
  int64_t num_rows;
  Range tiles;
  int64_t k0, num_k;
  float* y;
  int64_t y_stride;
  const float* bias;
  float* edge;

  // `next`: the panel block that will be wanted after this one.
  void run(const PanelWeight& w, int64_t p, const char* next, const TileFunction* tile_functions) const {
    const char* panel = panel_block(w, p, k0);
    const int64_t first = p * kPanelRows, width = std::min(kPanelRows, w.N - first);
    const int64_t first_row = row_tile(num_rows, tiles.begin).begin;
    const bool ragged = width < kPanelRows;
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const Range rows = row_tile(num_rows, t);
      const int64_t height = rows.size();
      float* out = ragged ? edge + (rows.begin - first_row) * kPanelRows : y + rows.begin * y_stride + first;
      const int64_t out_stride = ragged ? kPanelRows : y_stride;
      for (int64_t r = 0; r < height; ++r)
        _mm_prefetch(out + (height + r) * out_stride, _MM_HINT_T0);  // where the next tile will write
      tile_functions[height](
          panel, packed + rows.begin * w.K + k0 * height, num_k, out, out_stride, k0 == 0,
          prefetch_slice(next, num_k * kPanelRows * dtype_bytes(w.dtype), t - tiles.begin, tiles.size(), num_k));
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

void gemm(const float* packed, int64_t num_rows, const PanelWeight& w, Range panels, const float* bias, float* y,
          int64_t y_stride) {
  alignas(64) float edge[kBlockTiles * kTileRows * kPanelRows];
  const TileFunction* tile_functions =
      w.dtype == DType::bf16 ? kTileFunctions<DType::bf16> : kTileFunctions<DType::f32>;
  const int64_t block_k = kPanelBlockBytes / (kPanelRows * dtype_bytes(w.dtype));
  const int64_t num_tiles = num_row_tiles(num_rows);
  const auto block_at = [&](Range tiles, int64_t k0) {
    return GemmBlock{packed, num_rows, tiles, k0, std::min(block_k, w.K - k0), y, y_stride, bias, edge};
  };
  if (num_tiles <= kBlockTiles && num_rows * w.K * 4 <= kSmallBytes) {
    for (int64_t p = panels.begin; p < panels.end; ++p) {
      for (int64_t k0 = 0; k0 < w.K; k0 += block_k) {
        block_at({0, num_tiles}, k0).run(w, p, panel_block(w, p, k0 + block_k), tile_functions);
      }
    }
    return;
  }
  const int num_blocks = static_cast<int>(ceil_div(num_tiles, kBlockTiles));
  for (int i = 0; i < num_blocks; ++i) {
    for (int64_t k0 = 0; k0 < w.K; k0 += block_k) {
      const GemmBlock block = block_at(split(num_tiles, i, num_blocks), k0);
      for (int64_t p = panels.begin; p < panels.end; ++p) {
        const bool is_last = p + 1 == panels.end;
        const char* next = is_last ? panel_block(w, panels.begin, k0 + block_k) : panel_block(w, p + 1, k0);
        block.run(w, p, next, tile_functions);
      }
    }
  }
}

// Eight k of up to six rows are transposed in registers and stored as eight groups of R values; each store overwrites
// the surplus of the one before.
template <int R>
void pack_tile(const float* const* x, int64_t K, float* tile) {
  int64_t k = 0;
  for (; (k + 7) * R + 8 <= K * R; k += 8) {  // as long as the surplus of the last store stays in this tile
    __m256 r[8];
    unroll<8>(
        [&](auto i) { r[i] = i < R ? _mm256_loadu_ps(x[i < R ? static_cast<int>(i) : 0] + k) : _mm256_setzero_ps(); });
    __m256 t[8], u[8];
    unroll<4>([&](auto i) {
      t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    });
    unroll<2>([&](auto i) {
      u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    });
    unroll<4>([&](auto i) { _mm256_storeu_ps(tile + (k + i) * R, _mm256_permute2f128_ps(u[i], u[4 + i], 0x20)); });
    unroll<4>([&](auto i) { _mm256_storeu_ps(tile + (k + 4 + i) * R, _mm256_permute2f128_ps(u[i], u[4 + i], 0x31)); });
  }
  for (; k < K; ++k) unroll<R>([&](auto r) { tile[k * R + r] = x[r][k]; });
}

using PackFunction = void (*)(const float* const*, int64_t, float*);
constexpr PackFunction kPackFunctions[kTileRows + 1] = {nullptr,      pack_tile<1>, pack_tile<2>, pack_tile<3>,
                                                        pack_tile<4>, pack_tile<5>, pack_tile<6>};

void pack(const RowSource& x, int64_t num_rows, int64_t K, Range tiles, float* packed) {
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const Range rows = row_tile(num_rows, t);
    const float* source[kTileRows] = {};
    for (int64_t r = 0; r < rows.size(); ++r) source[r] = x.row(rows.begin + r);
    kPackFunctions[rows.size()](source, K, packed + rows.begin * K);
  }
}

}  // namespace

LinearKernels linear_kernels_avx2() {
  return {.max_gemv_rows = max_gemv_rows, .pack = pack, .gemm = gemm, .gemv = gemv};
}

}  // namespace fmo
