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

#include "kernels/linear/gemm_avx2.h"
#include "kernels/linear/linear_tables.h"

namespace fmo {
namespace {

using namespace avx2;

constexpr int64_t kPanelBlockBytes = 16 << 10;  // half of L1; the other half is for the tile of x

// How far ahead gemv prefetches each stream: few streams must reach further to keep as many lines in flight.
template <int P>
constexpr int64_t kPrefetchBytes = P >= 4   ? 1024
                                   : P >= 2 ? 2048
                                            : 4096;

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

template <DType D, int P, int R>
constexpr auto gemv_rows = gemv_streams<P, R, PanelWeight, gemv_tile<D, P, R>, gemv_tile<D, 1, R>>;

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

const char* panel_block(const PanelWeight& w, int64_t p, int64_t k0) {
  return static_cast<const char*>(w.panel(p)) + k0 * kPanelRows * dtype_bytes(w.dtype);
}
void gemm(const float* packed, int64_t num_rows, const PanelWeight& w, Range panels, const float* bias, float* y,
          int64_t y_stride) {
  alignas(64) float edge[kBlockTiles * kTileRows * kPanelRows];
  const TileFunction* tile_functions =
      w.dtype == DType::bf16 ? kTileFunctions<DType::bf16> : kTileFunctions<DType::f32>;
  const int64_t block_k = kPanelBlockBytes / (kPanelRows * dtype_bytes(w.dtype));
  const int64_t num_tiles = num_row_tiles(num_rows);
  const auto block_at = [&](Range tiles, int64_t k0) {
    return GemmBlock{packed, num_rows, tiles, k0, std::min(block_k, w.K - k0), w.N, w.K, y, y_stride, bias, edge};
  };
  const auto run = [&](const GemmBlock& block, int64_t p, const char* next) {
    const int64_t half = block.num_k * kPanelRows * dtype_bytes(w.dtype) / 2;
    block.run(panel_block(w, p, block.k0), p, {next, half, half}, tile_functions);
  };
  if (num_tiles <= kBlockTiles && num_rows * w.K * 4 <= kSmallBytes) {
    for (int64_t p = panels.begin; p < panels.end; ++p) {
      for (int64_t k0 = 0; k0 < w.K; k0 += block_k) {
        run(block_at({0, num_tiles}, k0), p, panel_block(w, p, k0 + block_k));
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
        run(block, p, next);
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
