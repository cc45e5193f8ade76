// qlinear with activations as they are, for AVX2 + FMA: a weight becomes the f32 number (code − zero) · scale, then the
// multiply-adds are those of linear.
//
//   gemv  few rows: P panels from far-apart parts of the share, weights expanded in registers
//   gemm  blocks of k × blocks of rows: each panel block is expanded to f32 [k][16] in 16 KiB of stack, then the
//   register tiles of linear run
//         over it; while they compute, the codes of the next block are prefetched
//
// A vector of a block holds kColumns columns of 8 outputs: column j is at bit 8j of its lane (4 bit: columns 4 … 7 at
// 8j + 4). A format says how column j becomes f32: the integer or the fp8 value; one product by the scale follows.
// Groups that do not consist of whole vectors are left to the scalar version.
#include <immintrin.h>

#include "kernels/linear/gemm_avx2.h"
#include "kernels/qlinear/qlinear_tables.h"

namespace fmo {
namespace {

using namespace avx2;

constexpr int64_t kBlockColumns = 256;  // of a panel expanded at once: 16 KiB
constexpr int64_t kVectorBytes = 32;
template <DType D>
constexpr int kColumns = is_nibble(D) ? 8 : 4;  // per vector

template <int BITS>
inline __attribute__((always_inline)) __m256i shift_left(__m256i v) {
  if constexpr (BITS == 0) return v;
  return _mm256_slli_epi32(v, BITS);
}

// Column J of a vector in two's complement of `BITS` bits, as f32. 4 bit: of nibbles, else of bytes.
template <int J, int BITS>
inline __attribute__((always_inline)) __m256 signed_column(__m256i v) {
  constexpr int kFirst = 8 * (J % 4) + J / 4 * 4;
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(shift_left<32 - BITS - kFirst>(v), 32 - BITS));
}

// The vector of codes at p so that `column` may take it apart.
template <DType D>
struct Format;

template <>
struct Format<DType::i4> {
  __m256i v;
  Format(const uint8_t* p, __m256i) : v(load(p)) {}
  static __m256i load(const uint8_t* p) {  // code − 8 is the code with its top bit flipped
    return _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                            _mm256_set1_epi32(static_cast<int>(0x88888888u)));
  }
  template <int J>
  __m256 column() const {
    return signed_column<J, 4>(v);
  }
};

template <>
struct Format<DType::u4> {
  __m256i low, high;
  Format(const uint8_t* p, __m256i zeros) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), mask = _mm256_set1_epi8(15);
    low = _mm256_sub_epi8(_mm256_and_si256(v, mask), zeros);
    high = _mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi32(v, 4), mask), zeros);
  }
  template <int J>
  __m256 column() const {
    return signed_column<J % 4, 8>(J < 4 ? low : high);
  }
};

template <>
struct Format<DType::e2m1> {
  __m256i low, high;
  Format(const uint8_t* p, __m256i) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), mask = _mm256_set1_epi8(15);
    const __m256i doubled = _mm256_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12, 0, 1, 2, 3, 4, 6,
                                             8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    low = _mm256_shuffle_epi8(doubled, _mm256_and_si256(v, mask));
    high = _mm256_shuffle_epi8(doubled, _mm256_and_si256(_mm256_srli_epi32(v, 4), mask));
  }
  template <int J>
  __m256 column() const {
    return _mm256_mul_ps(signed_column<J % 4, 8>(J < 4 ? low : high), set1(0.5f));
  }
};

template <>
struct Format<DType::i8> {  // and i7
  __m256i v;
  Format(const uint8_t* p, __m256i zeros)
      : v(_mm256_sub_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), zeros)) {}
  template <int J>
  __m256 column() const {
    return signed_column<J, 8>(v);
  }
};

template <>
struct Format<DType::e4m3> {
  __m256i v;
  Format(const uint8_t* p, __m256i) : v(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))) {}
  // Sign, exponent and mantissa move to their places in f32, whose exponents count from 127 and not from 7.
  template <int J>
  __m256 column() const {
    const __m256i spread = _mm256_srai_epi32(shift_left<24 - 8 * J>(v), 4);
    const __m256i bits = _mm256_and_si256(spread, _mm256_set1_epi32(static_cast<int>(0x87f00000u)));
    return _mm256_mul_ps(_mm256_castsi256_ps(bits), set1(0x1p120f));
  }
};

// The 8 scales of a group of one block.
__m256 load_scales(const char* scales, DType dtype, int64_t group_idx) {
  const int64_t first = group_idx * kBlockRows;
  if (dtype == DType::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(scales) + first);
  if (dtype == DType::f16)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + first * 2)));
  const __m256i codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales + first)));
  const __m256i half = _mm256_set1_epi32(1 << 22);  // 2^-127 where the code is 0, NaN where it is 255
  const __m256i is_nan = _mm256_cmpeq_epi32(codes, _mm256_set1_epi32(255));
  const __m256i bits = _mm256_or_si256(_mm256_slli_epi32(codes, 23), _mm256_and_si256(is_nan, half));
  return _mm256_castsi256_ps(_mm256_max_epi32(bits, half));
}

// Each row's zero in all bytes of its lane.
__m256i load_zeros(const QuantWeight& w, const uint8_t* zeros, int64_t group_idx) {
  if (zeros == nullptr) return _mm256_set1_epi8(static_cast<char>(common_zero(w.dtype)));
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros + group_idx * kBlockRows));
  return _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_set1_epi32(0x01010101));
}

// One block of a panel, walked group by group.
struct BlockStream {
  const uint8_t *codes, *zeros;
  const char* scales;

  BlockStream() = default;
  BlockStream(const QuantWeight& w, int64_t block)
      : codes(w.block(block)), zeros(w.block_zeros(block)), scales(w.block_scales(block)) {}
};

// The two blocks of a panel; the second is the first again where the panel has one only: its outputs are not stored.
inline int64_t second_block(const QuantWeight& w, int64_t panel) { return std::min(2 * panel + 1, w.num_blocks() - 1); }

// P panels × R rows of x.
template <DType D, int P, int R>
__attribute__((noinline)) void gemv_tile(const float* const* x, const QuantWeight& w, const int64_t* panels,
                                         const float* bias, float* y, int64_t y_stride) {
  constexpr int B = 2 * P;  // blocks
  BlockStream stream[B];
  unroll<P>([&](auto p) {
    stream[2 * p] = BlockStream(w, 2 * panels[p]);
    stream[2 * p + 1] = BlockStream(w, second_block(w, panels[p]));
  });
  __m256 sum[B * R];
  unroll<B * R>([&](auto i) { sum[i] = _mm256_setzero_ps(); });
  const uint8_t* codes[B];
  unroll<B>([&](auto b) { codes[b] = stream[b].codes; });
  alignas(32) float scales[B][kBlockRows];
  alignas(32) __m256i zeros[B];
  for (int64_t g = 0, k = 0; g < w.num_groups(); ++g) {
    unroll<B>([&](auto b) {
      _mm256_store_ps(scales[b], load_scales(stream[b].scales, w.scale_dtype, g));
      zeros[b] = load_zeros(w, stream[b].zeros, g);
    });
    for (const int64_t end = k + w.group; k < end; k += kColumns<D>) {
      const auto one_block = [&](auto b) __attribute__((always_inline)) {
        const Format<D> v(codes[b], zeros[b]);
        _mm_prefetch(codes[b] + 1024, _MM_HINT_T0);
        codes[b] += kVectorBytes;
        unroll<kColumns<D>>([&](auto j) __attribute__((always_inline)) {
          const __m256 weight = _mm256_mul_ps(v.template column<j>(), _mm256_load_ps(scales[b]));
          unroll<R>([&](auto r) __attribute__((always_inline)) {
            const __m256 a = _mm256_broadcast_ss(x[r] + k + j);
            sum[b * R + r] = multiply_add<true>(sum[b * R + r], a, weight);
          });
        });
      };
      unroll<B>([&](auto b) __attribute__((always_inline)) { one_block(b); });
    }
  }
  unroll<P>([&](auto p) {
    unroll<R>([&](auto r) {
      store_outputs(sum[2 * p * R + r], sum[(2 * p + 1) * R + r], panels[p] * kPanelRows, w.N, bias, y + r * y_stride);
    });
  });
}

template <DType D, int P, int R>
constexpr auto gemv_rows = gemv_streams<P, R, QuantWeight, gemv_tile<D, P, R>, gemv_tile<D, 1, R>>;

constexpr int64_t kMaxGemvRows = 4;
using GemvFunction = void (*)(const RowSource&, const QuantWeight&, Range, const float*, float*, int64_t);
template <DType D>
constexpr GemvFunction kGemvFunctions[kMaxGemvRows + 1] = {nullptr, gemv_rows<D, 4, 1>, gemv_rows<D, 2, 2>,
                                                           gemv_rows<D, 1, 3>, gemv_rows<D, 1, 4>};

// Columns k0 … k0 + num_k of a panel as f32 [num_k][16].
template <DType D>
void expand_block(const QuantWeight& w, int64_t panel, int64_t k0, int64_t num_k, float* out) {
  const BlockStream stream[2] = {BlockStream(w, 2 * panel), BlockStream(w, second_block(w, panel))};
  for (int64_t k = k0, end; k < k0 + num_k; k = end) {
    const int64_t g = k / w.group;
    end = std::min((g + 1) * w.group, k0 + num_k);
    for (int b = 0; b < 2; ++b) {
      const __m256 scales = load_scales(stream[b].scales, w.scale_dtype, g);
      const __m256i zeros = load_zeros(w, stream[b].zeros, g);
      const uint8_t* codes = stream[b].codes + k / kColumns<D> * kVectorBytes;
      float* target = out + (k - k0) * kPanelRows + b * kBlockRows;
      for (int64_t i = k; i < end; i += kColumns<D>, codes += kVectorBytes, target += kColumns<D> * kPanelRows) {
        const Format<D> v(codes, zeros);
        unroll<kColumns<D>>([&](auto j) __attribute__((always_inline)) {
          _mm256_storeu_ps(target + j * kPanelRows, _mm256_mul_ps(v.template column<j>(), scales));
        });
      }
    }
  }
}

using ExpandFunction = void (*)(const QuantWeight&, int64_t, int64_t, int64_t, float*);

struct Kernels {
  const GemvFunction* gemv;
  ExpandFunction expand;
};

template <DType D>
Kernels kernels_of() {
  return {kGemvFunctions<D>, expand_block<D>};
}

Kernels kernels_for(DType dtype) {
  switch (dtype) {
    case DType::i4:
      return kernels_of<DType::i4>();
    case DType::u4:
      return kernels_of<DType::u4>();
    case DType::e2m1:
      return kernels_of<DType::e2m1>();
    case DType::e4m3:
      return kernels_of<DType::e4m3>();
    default:
      return kernels_of<DType::i8>();
  }
}

bool has_whole_vectors(const QuantWeight& w) { return w.group % (w.is_4_bit() ? 8 : 4) == 0; }

void gemv(const RowSource& x, int64_t num_rows, const QuantWeight& w, Range panels, const float* bias, float* y,
          int64_t y_stride) {
  if (!has_whole_vectors(w)) return quant_float_kernels_scalar().gemv(x, num_rows, w, panels, bias, y, y_stride);
  kernels_for(w.dtype).gemv[num_rows](x, w, panels, bias, y, y_stride);
}

// The codes of a panel from k0 on, to prefetch.
NextBlock codes_at(const QuantWeight& w, int64_t panel, int64_t k0, int64_t num_k) {
  const int64_t bytes_per_vector = w.is_4_bit() ? 8 : 4;
  return {reinterpret_cast<const char*>(w.block(2 * panel) + k0 / bytes_per_vector * kVectorBytes), w.block_bytes(),
          num_k / bytes_per_vector * kVectorBytes};
}

void gemm(const float* packed, int64_t num_rows, const QuantWeight& w, Range panels, const float* bias, float* y,
          int64_t y_stride) {
  if (!has_whole_vectors(w)) return quant_float_kernels_scalar().gemm(packed, num_rows, w, panels, bias, y, y_stride);
  alignas(64) float edge[kBlockTiles * kTileRows * kPanelRows];
  alignas(64) float expanded[kBlockColumns * kPanelRows];
  const ExpandFunction expand = kernels_for(w.dtype).expand;
  const auto run = [&](Range tiles, int64_t k0, int64_t p, int64_t next_p, int64_t next_k0) {
    const int64_t num_k = std::min(kBlockColumns, w.K - k0);
    expand(w, p, k0, num_k, expanded);
    const GemmBlock block{packed, num_rows, tiles, k0, num_k, w.N, w.K, y, y_stride, bias, edge};
    block.run(reinterpret_cast<const char*>(expanded), p, codes_at(w, next_p, next_k0, num_k),
              kTileFunctions<DType::f32>);
  };
  const int64_t num_tiles = num_row_tiles(num_rows);
  if (num_tiles <= kBlockTiles && num_rows * w.K * 4 <= kSmallBytes) {
    for (int64_t p = panels.begin; p < panels.end; ++p) {
      for (int64_t k0 = 0; k0 < w.K; k0 += kBlockColumns) run({0, num_tiles}, k0, p, p, k0 + kBlockColumns);
    }
    return;
  }
  const int num_blocks = static_cast<int>(ceil_div(num_tiles, kBlockTiles));
  for (int i = 0; i < num_blocks; ++i) {
    for (int64_t k0 = 0; k0 < w.K; k0 += kBlockColumns) {
      for (int64_t p = panels.begin; p < panels.end; ++p) run(split(num_tiles, i, num_blocks), k0, p, p + 1, k0);
    }
  }
}

// Eight f32 of at most 448 to the nearest e4m3 number, ties to even: adding and taking away a power of two rounds to
// its last place, which is 2^-3 of the value's own power of two, and 2^-9 below 2^-6.
__m256 nearest_e4m3(__m256 value) {
  const __m256i exponent = _mm256_and_si256(_mm256_castps_si256(value), _mm256_set1_epi32(0x7f800000));
  const __m256i least = _mm256_set1_epi32((127 - 6) << 23);
  const __m256i shift = _mm256_add_epi32(_mm256_max_epi32(exponent, least), _mm256_set1_epi32(20 << 23));
  const __m256 magic = _mm256_or_ps(_mm256_castsi256_ps(shift), _mm256_and_ps(value, set1(-0.0f)));
  const __m256 rounded = _mm256_sub_ps(_mm256_add_ps(value, magic), magic);
  return avx2::copy_sign(avx2::abs(rounded), value);
}

void round_e4m3(const RowSource& x, int64_t K, Range rows, float* rounded) {
  if (K % 8 != 0) return quant_float_kernels_scalar().round_e4m3(x, K, rows, rounded);
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const float* row = x.row(r);
    float* out = rounded + (r - rows.begin) * K;
    __m256i highest = _mm256_setzero_si256();  // of the bits, so that a NaN is the largest
    for (int64_t k = 0; k < K; k += 8) {
      const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(row + k));
      highest = _mm256_max_epi32(highest, _mm256_and_si256(bits, magnitude));
    }
    alignas(32) uint32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), highest);
    const GroupScale s = group_scale(*std::max_element(lanes, lanes + 8), 448.0f);
    const __m256 inverse = set1(s.inverse), scale = set1(s.scale);
    for (int64_t k = 0; k < K; k += 8) {
      const __m256 code =
          s.inverse == 0.0f ? _mm256_setzero_ps() : nearest_e4m3(_mm256_mul_ps(_mm256_loadu_ps(row + k), inverse));
      _mm256_storeu_ps(out + k, _mm256_mul_ps(code, scale));
    }
  }
}

}  // namespace

QuantFloatKernels quant_float_kernels_avx2() {
  return {[](const QuantWeight&) -> int64_t { return kMaxGemvRows; }, gemv, gemm, round_e4m3};
}

}  // namespace fmo
