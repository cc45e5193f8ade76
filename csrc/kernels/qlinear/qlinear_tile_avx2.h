// The register tile of qlinear with integers for AVX2: R blocks of 8 outputs × C rows of x, over whole groups of x.
// Included by qlinear_avx2.cpp only.
//
//   for each group                     t = 0                                            32-bit integers
//     for each flush of FLUSH columns  acc = −zero · Σ x, from the sums of the rows     16-bit integers, pairs of
//     columns
//                                      acc += maddubs(codes, x)    every 4 columns      wraps, but the last value fits:
//                                      t += madd(acc, 1)                                it is Σ (code − zero) · x
//     sums += float(t) · (scale of w · scale of x)                                      one multiply-add
//
// The 16-bit sum of a lane has FLUSH / 2 products, so the bit budget (docs/quantized-weights.md) sets FLUSH: 64 for i4,
// 32 for u4, e2m1 and i7 × i7 whose lanes are bounded, 8 for other bytes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/math/vec_avx2.h"
#include "kernels/qlinear/qlinear.h"

namespace fmo {
namespace {

using avx2::unroll;

enum class Form : uint8_t { i4, u4, e2m1, bytes };

// UNPACKED: nibbles that lie in bytes already, in a copy.
template <Form FORM, bool UNPACKED = false>
constexpr int64_t kBytesPer8 = FORM == Form::bytes || UNPACKED ? 64 : 32;  // of a block, for 8 columns

struct TileJob {
  const uint8_t* codes;  // of block 0 at the first column; the other blocks are code_stride apart
  int64_t code_stride;
  const char* scales;    // [groups][8] of scale_dtype; null: per channel, the scale comes after the sum
  int64_t scale_stride;  // bytes from block to block
  DType scale_dtype;
  const uint8_t* zeros;  // u4 only
  int64_t zero_stride, zero_step;
  const int8_t* x;  // [K/4][C][4], [groups][C] and [flushes][C]
  const float* x_scales;
  const int32_t* x_sums;
  int64_t num_groups, group;
  float* sums;  // [C][R][8]
  bool is_first;
  const char* next;  // what to prefetch, for each block next_stride apart: next_step bytes per chunk
  int64_t next_stride, next_step;
};

alignas(32) constexpr uint8_t kLowNibblesData[32] = {15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15,
                                                     15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15};
alignas(32) constexpr int16_t kOnesData[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
// Twice the value of an e2m1 code, plus 12.
alignas(32) constexpr uint8_t kE2m1Data[32] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
                                               12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
// Constants stay in memory: the accumulators need the registers.
const __m256i& kLowNibbles = *reinterpret_cast<const __m256i*>(kLowNibblesData);
const __m256i& kOnes = *reinterpret_cast<const __m256i*>(kOnesData);
const __m256i& kE2m1Table = *reinterpret_cast<const __m256i*>(kE2m1Data);

inline __attribute__((always_inline)) __m256i load_vector(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// 4 columns of 8 outputs as unsigned bytes; HALF: which 4 of 8.
template <Form FORM, bool UNPACKED, int HALF>
inline __attribute__((always_inline)) __m256i load_codes(const uint8_t* p) {
  if constexpr (FORM == Form::bytes || UNPACKED) return load_vector(p + 32 * HALF);
  __m256i v = load_vector(p);
  if constexpr (HALF == 1) v = _mm256_srli_epi16(v, 4);
  asm("vpand %1, %0, %0" : "+x"(v) : "m"(kLowNibbles));
  if constexpr (FORM == Form::e2m1) v = _mm256_shuffle_epi8(kE2m1Table, v);
  return v;
}

// 8 columns of 8 outputs from nibbles.
template <Form FORM>
struct Codes8 {
  __m256i first, second;
  inline __attribute__((always_inline)) Codes8(const uint8_t* p, __m256i low_nibbles) {
    first = load_vector(p);
    second = _mm256_and_si256(_mm256_srli_epi16(first, 4), low_nibbles);
    first = _mm256_and_si256(first, low_nibbles);
    if constexpr (FORM == Form::e2m1) {
      first = _mm256_shuffle_epi8(kE2m1Table, first);
      second = _mm256_shuffle_epi8(kE2m1Table, second);
    }
  }
};

// A copy of nibbles as bytes.
template <Form FORM>
void unpack_nibbles(const uint8_t* codes, int64_t num_bytes, uint8_t* bytes) {
  const __m256i low_nibbles = kLowNibbles;
  for (int64_t at = 0; at < num_bytes; at += 32, bytes += 64) {
    const Codes8<FORM> w(codes + at, low_nibbles);
    _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), w.first);
    _mm256_store_si256(reinterpret_cast<__m256i*>(bytes + 32), w.second);
  }
}

inline __attribute__((always_inline)) __m256i broadcast4(const void* p) {
  __m256i v;
  asm("vpbroadcastd %1, %0" : "=x"(v) : "m"(*static_cast<const int32_t*>(p)));
  return v;
}

// acc + maddubs(codes, x). In one piece, or gcc sums up in a tree and spills.
inline __attribute__((always_inline)) __m256i multiply_add_bytes(__m256i acc, __m256i codes, __m256i x) {
  __m256i product;
  asm volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(acc), "=&x"(product) : "x"(codes), "x"(x));
  return acc;
}

// The same for the first product: leaves the sum of the row as it is, which saves a copy.
inline __attribute__((always_inline)) __m256i start_bytes(__m256i sum, __m256i codes, __m256i x) {
  __m256i acc;
  asm volatile("vpmaddubsw %3, %2, %0\n\tvpaddw %1, %0, %0" : "=&x"(acc) : "x"(sum), "x"(codes), "x"(x));
  return acc;
}

inline __attribute__((always_inline)) __m256i add_totals(__m256i total, __m256i more) {
  asm volatile("vpaddd %1, %0, %0" : "+x"(total) : "x"(more));
  return total;
}

// Pairs of 16-bit sums to 32 bits.
inline __attribute__((always_inline)) __m256i widen_sums(__m256i acc) {
  asm("vpmaddwd %1, %0, %0" : "+x"(acc) : "m"(kOnes));
  return acc;
}

inline __m256 e8m0_scales(const char* p) {
  const __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m256i is_zero = _mm256_cmpeq_epi32(code, _mm256_setzero_si256());
  const __m256i is_nan = _mm256_cmpeq_epi32(code, _mm256_set1_epi32(255));
  const __m256i fraction = _mm256_and_si256(_mm256_or_si256(is_zero, is_nan), _mm256_set1_epi32(0x00400000));
  return _mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32(code, 23), fraction));
}

inline __m256 f16_scales(const char* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline __m256 f32_scales(const char* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }

// The scales of R blocks in the sum of group g; of e2m1 half of them, because its integers are doubled.
template <Form FORM, int R>
inline __attribute__((always_inline)) void load_group_scales(const TileJob& job, int64_t g, __m256* scales) {
  const auto for_each = [&](int64_t group_bytes, auto load) __attribute__((always_inline)) {
    const char* p = job.scales + g * group_bytes;
    unroll<R>([&](auto r) __attribute__((always_inline)) { scales[r] = load(p + r * job.scale_stride); });
  };
  if (job.scales == nullptr) {
    unroll<R>([&](auto r) __attribute__((always_inline)) { scales[r] = avx2::set1(1.0f); });
  } else if (job.scale_dtype == DType::f16) {
    for_each(16, f16_scales);
  } else if (job.scale_dtype == DType::f32) {
    for_each(32, f32_scales);
  } else {
    for_each(8, e8m0_scales);
  }
  if constexpr (FORM == Form::e2m1)
    unroll<R>([&](auto r) __attribute__((always_inline)) { scales[r] = _mm256_mul_ps(scales[r], avx2::set1(0.5f)); });
}

// The zeros of 8 outputs, twice in each lane.
inline __m256i load_zeros(const uint8_t* p) {
  const __m256i zeros = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm256_or_si256(zeros, _mm256_slli_epi32(zeros, 16));
}

// ONE: a group is one chunk, which saves the totals.
template <Form FORM, bool UNPACKED, int FLUSH, bool ONE, int R, int C>
struct Tile {
  static constexpr int kChunk = FLUSH > 32 ? FLUSH : 32;  // columns per turn of the loop
  static constexpr int kFlushes = kChunk / FLUSH;
  static constexpr int64_t kStep = kBytesPer8<FORM, UNPACKED>;
  static constexpr int64_t kChunkBytes = kChunk / 8 * kStep;
  static constexpr int kLines = kChunkBytes / 64;
  static constexpr int64_t kStreamAhead = 1024;  // bytes: four streams are prefetched where they go

  // Where the loop stands.
  const uint8_t* codes;
  const int8_t* x;
  const int32_t* x_sums;
  const char* next;

  // Accumulators that stay in 16 bits for a whole flush: needs FLUSH ≥ 16.
  inline __attribute__((always_inline)) void add_chunk(const TileJob& job, const __m256i* zeros, __m256i* totals) {
    unroll<kFlushes>([&](auto f) __attribute__((always_inline)) {
      __m256i acc[R * C];
      unroll<FLUSH / 4>([&](auto fours) __attribute__((always_inline)) {
        constexpr int kFours = f * (FLUSH / 4) + fours;
        __m256i w[R];
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          w[r] = load_codes<FORM, UNPACKED, kFours % 2>(codes + r * job.code_stride + kFours / 2 * kStep);
        });
        unroll<C>([&](auto c) __attribute__((always_inline)) {
          const __m256i a = broadcast4(x + (kFours * C + c) * 4);
          if constexpr (fours == 0) {
            const __m256i sum = broadcast4(x_sums + f * C + c);
            unroll<R>([&](auto r) __attribute__((always_inline)) {
              acc[c * R + r] = start_bytes(FORM == Form::u4 ? _mm256_mullo_epi16(sum, zeros[r]) : sum, w[r], a);
            });
          } else {
            unroll<R>([&](auto r) __attribute__((always_inline)) {
              acc[c * R + r] = multiply_add_bytes(acc[c * R + r], w[r], a);
            });
          }
        });
      });
      unroll<R * C>([&](auto i) __attribute__((always_inline)) {
        const __m256i wide = widen_sums(acc[i]);
        totals[i] = ONE && f == 0 ? wide : _mm256_add_epi32(totals[i], wide);
      });
    });
  }

  // Four streams of nibbles, few rows: block after block, each vector of codes is loaded once.
  inline __attribute__((always_inline)) void add_chunk_by_blocks(const TileJob& job, const __m256i* zeros,
                                                                 __m256i* totals) {
    const __m256i low_nibbles = kLowNibbles;
    unroll<kFlushes>([&](auto f) __attribute__((always_inline)) {
      __m256i acc[R * C];
      unroll<C>([&](auto c) __attribute__((always_inline)) {
        const __m256i sum = broadcast4(x_sums + f * C + c);
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          acc[c * R + r] = FORM == Form::u4 ? _mm256_mullo_epi16(sum, zeros[r]) : sum;
        });
      });
      unroll<FLUSH / 8>([&](auto s) __attribute__((always_inline)) {
        constexpr int kEight = f * (FLUSH / 8) + s;
        __m256i a[2 * C];
        unroll<2 * C>([&](auto i) __attribute__((always_inline)) { a[i] = broadcast4(x + (2 * kEight * C + i) * 4); });
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          const Codes8<FORM> w(codes + r * job.code_stride + kEight * kStep, low_nibbles);
          unroll<C>([&](auto c) __attribute__((always_inline)) {
            acc[c * R + r] = multiply_add_bytes(acc[c * R + r], w.first, a[c]);
            acc[c * R + r] = multiply_add_bytes(acc[c * R + r], w.second, a[C + c]);
          });
        });
      });
      unroll<R * C>([&](auto i) __attribute__((always_inline)) {
        const __m256i wide = widen_sums(acc[i]);
        totals[i] = ONE && f == 0 ? wide : _mm256_add_epi32(totals[i], wide);
      });
    });
  }

  // FLUSH = 8: the totals have the registers, one row of x after the other has accumulators.
  inline __attribute__((always_inline)) void add_chunk_by_rows(const TileJob& job, __m256i* totals) {
    unroll<kFlushes>([&](auto f) __attribute__((always_inline)) {
      __m256i w[2 * R];
      unroll<2 * R>([&](auto i) __attribute__((always_inline)) {
        w[i] = load_codes<FORM, UNPACKED, i / R>(codes + i % R * job.code_stride + f * kStep);
      });
      unroll<C>([&](auto c) __attribute__((always_inline)) {
        __m256i acc[R];
        const __m256i sum = broadcast4(x_sums + f * C + c);
        const __m256i first = broadcast4(x + (2 * f * C + c) * 4), second = broadcast4(x + ((2 * f + 1) * C + c) * 4);
        unroll<R>([&](auto r) __attribute__((always_inline)) { acc[r] = start_bytes(sum, w[r], first); });
        unroll<R>([&](auto r)
                      __attribute__((always_inline)) { acc[r] = multiply_add_bytes(acc[r], w[R + r], second); });
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          totals[c * R + r] = add_totals(totals[c * R + r], widen_sums(acc[r]));
        });
      });
    });
  }

  inline __attribute__((always_inline)) void prefetch(const TileJob& job) {
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<kLines>([&](auto i) __attribute__((always_inline)) {
        if constexpr (R == 4) {
          _mm_prefetch(codes + r * job.code_stride + kStreamAhead + i * 64, _MM_HINT_T0);
        } else {
          _mm_prefetch(next + r * job.next_stride + i * (job.next_step / kLines), _MM_HINT_T0);
        }
      });
    });
    if constexpr (R != 4) next += job.next_step;
  }

  inline __attribute__((always_inline)) void add_group(const TileJob& job, int64_t g, __m256i* totals) {
    __m256i zeros[R];
    if constexpr (FORM == Form::u4) {
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        zeros[r] = load_zeros(job.zeros + r * job.zero_stride + g * job.zero_step);
      });
    }
    if constexpr (!ONE)
      unroll<R * C>([&](auto i) __attribute__((always_inline)) { totals[i] = _mm256_setzero_si256(); });
    int64_t k = 0;
    do {
      prefetch(job);
      if constexpr (R == 4 && FORM != Form::bytes) {
        add_chunk_by_blocks(job, zeros, totals);
      } else if constexpr (FLUSH == 8) {
        add_chunk_by_rows(job, totals);
      } else {
        add_chunk(job, zeros, totals);
      }
      codes += kChunkBytes;
      x += kChunk * C;
      x_sums += kFlushes * C;
      k += kChunk;
    } while (!ONE && k < job.group);
  }
};

template <Form FORM, bool UNPACKED, int FLUSH, bool ONE, int R, int C>
__attribute__((noinline)) void multiply_tile(const TileJob& job_in_memory) {
  const TileJob job = job_in_memory;
  Tile<FORM, UNPACKED, FLUSH, ONE, R, C> at{job.codes, job.x, job.x_sums, job.next};
  if (job.is_first) unroll<R * C>([&](auto i) { _mm256_store_ps(job.sums + i * 8, _mm256_setzero_ps()); });
  const float* x_scales = job.x_scales;
  for (int64_t g = 0; g < job.num_groups; ++g, x_scales += C) {
    __m256i totals[R * C];
    at.add_group(job, g, totals);
    __m256 scales[R];
    load_group_scales<FORM, R>(job, g, scales);
    unroll<C>([&](auto c) __attribute__((always_inline)) {
      const __m256 x_scale = _mm256_broadcast_ss(x_scales + c);
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        const __m256 scale = _mm256_mul_ps(scales[r], x_scale);
        float* sum = job.sums + (c * R + r) * 8;
        _mm256_store_ps(sum, _mm256_fmadd_ps(_mm256_cvtepi32_ps(totals[c * R + r]), scale, _mm256_load_ps(sum)));
      });
    });
    asm volatile("" ::: "memory");  // or the sums would take registers from the accumulators
  }
}

}  // namespace
}  // namespace fmo
