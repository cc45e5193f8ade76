// Rows of x to integers, for AVX2: 32 columns of a row at a time.
#include <immintrin.h>

#include <bit>

#include "kernels/math/vec_avx2.h"
#include "kernels/qlinear/qlinear_tables.h"

namespace fmo {
namespace {

using avx2::unroll;

constexpr int64_t kColumns = 32;

// The bits of max|x|, compared as integers: a NaN is the largest.
uint32_t max_magnitude(const float* x, int64_t count) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i top[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  for (int64_t k = 0; k < count; k += kColumns) {
    unroll<4>([&](auto i) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + k + 8 * i));
      top[i] = _mm256_max_epi32(top[i], _mm256_and_si256(bits, magnitude));
    });
  }
  const __m256i all = _mm256_max_epi32(_mm256_max_epi32(top[0], top[1]), _mm256_max_epi32(top[2], top[3]));
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(half));
}

// 32 values to 8-bit integers, in order. `inverse` 0 gives zeros, of NaN and infinity too.
__m256i round_columns(const float* x, __m256 inverse) {
  const __m256 keep = _mm256_cmp_ps(inverse, _mm256_setzero_ps(), _CMP_NEQ_OQ);
  __m256i v[4];
  unroll<4>([&](auto i) {
    v[i] = _mm256_cvtps_epi32(_mm256_and_ps(keep, _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse)));
  });
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// Where the columns of one row of a tile go.
struct RowTarget {
  int32_t* codes;  // four columns each; `num_rows` apart
  int32_t* sums;
  int64_t num_rows;
  int64_t sum_columns;  // 8, 16, 32 or 64
  int sum_shift;        // its logarithm: a division would cost more than all else
  __m256i factor;

  // The sums of 32 columns: 4, 2 or 1 of them; of 64 columns the second half is added to the first.
  void put_sums(__m256i codes_of_columns, int64_t k) const {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes_of_columns);
    pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0xb1));
    if (sum_columns > 8) pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
    if (sum_columns > 16) pairs = _mm256_add_epi16(pairs, _mm256_permute2x128_si256(pairs, pairs, 1));
    alignas(32) int32_t sum[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(sum), _mm256_mullo_epi16(pairs, factor));
    int32_t* target = sums + (k >> sum_shift) * num_rows;
    if (sum_columns > kColumns) {
      *target = k % (2 * kColumns) == 0 ? sum[0] : add_pairs(*target, sum[0]);
      return;
    }
    for (int64_t i = 0; i < kColumns / 4; i += sum_columns / 4, target += num_rows) *target = sum[i];
  }

  static int32_t add_pairs(int32_t a, int32_t b) {
    return _mm_cvtsi128_si32(_mm_add_epi16(_mm_cvtsi32_si128(a), _mm_cvtsi32_si128(b)));
  }

  void put_codes(__m256i codes_of_columns, int64_t k) const {
    int32_t* target = codes + k / 4 * num_rows;
    if (num_rows == 1) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), codes_of_columns);
    alignas(32) int32_t fours[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(fours), codes_of_columns);
    unroll<8>([&](auto i) { target[i * num_rows] = fours[i]; });
  }
};

}  // namespace

void quantize_rows_avx2(const RowSource& x, const QuantRows& rows, Range units) {
  const RowFormat& format = rows.format;
  const __m256i factor = _mm256_set1_epi16(static_cast<int16_t>(format.sum_factor));
  const int sum_shift = std::countr_zero(static_cast<uint64_t>(format.sum_columns));
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const Range tile = rows.row_tile(unit / rows.num_groups());
    const int64_t group = unit % rows.num_groups(), first = group * format.group, num_rows = tile.size();
    for (int64_t r = 0; r < num_rows; ++r) {
      const float* source = x.row(tile.begin + r) + first;
      const GroupScale scale = group_scale(max_magnitude(source, format.group), format.qmax);
      rows.scales[tile.begin * rows.num_groups() + group * num_rows + r] = scale.scale;
      int32_t* codes = reinterpret_cast<int32_t*>(rows.codes + tile.begin * rows.K + first * num_rows) + r;
      int32_t* sums = rows.sums + tile.begin * rows.num_sums() + first / format.sum_columns * num_rows + r;
      const RowTarget target{codes, sums, num_rows, format.sum_columns, sum_shift, factor};
      for (int64_t k = 0; k < format.group; k += kColumns) {
        const __m256i integers = round_columns(source + k, avx2::set1(scale.inverse));
        target.put_codes(integers, k);
        target.put_sums(integers, k);
      }
    }
  }
}

}  // namespace fmo
