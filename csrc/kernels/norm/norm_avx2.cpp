// Norms for AVX2: a row is walked in steps of 32, then 8, then a masked rest; four partial sums, added in a fixed
// order.
#include <immintrin.h>

#include <cmath>

#include "kernels/math/vec_avx2.h"
#include "kernels/norm/norm.h"

namespace fmo {
namespace {

// Sum of term(vector of x) over a row; `term` gets zeros beyond the end, masked out again by `mask`.
template <class Term>
inline float sum_over(const float* x, int64_t H, Term&& term) {
  __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  int64_t i = 0;
  for (; i + 32 <= H; i += 32) {
    avx2::unroll<4>([&](auto j) __attribute__((always_inline)) {
      sum[j] = _mm256_add_ps(sum[j], term(_mm256_loadu_ps(x + i + j * 8)));
    });
  }
  for (; i + 8 <= H; i += 8) sum[0] = _mm256_add_ps(sum[0], term(_mm256_loadu_ps(x + i)));
  if (i < H) {
    const __m256i mask = avx2::tail_mask(H - i);
    sum[1] = _mm256_add_ps(sum[1], _mm256_and_ps(term(_mm256_maskload_ps(x + i, mask)), _mm256_castsi256_ps(mask)));
  }
  return avx2::horizontal_sum(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}

const float* add_residual(const NormRow& row) {
  if (row.residual == nullptr) return row.x;
  int64_t i = 0;
  for (; i + 8 <= row.H; i += 8)
    _mm256_storeu_ps(row.sum + i, _mm256_add_ps(_mm256_loadu_ps(row.x + i), _mm256_loadu_ps(row.residual + i)));
  for (; i < row.H; ++i) row.sum[i] = row.x[i] + row.residual[i];
  return row.sum;
}

void rms(const NormRow& row) {
  const float* x = add_residual(row);
  const float squares = sum_over(x, row.H, [](__m256 v) __attribute__((always_inline)) { return _mm256_mul_ps(v, v); });
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(row.H) + row.eps);
  const __m256 scales = avx2::set1(scale);
  int64_t i = 0;
  for (; i + 8 <= row.H; i += 8) {
    __m256 value = _mm256_mul_ps(_mm256_loadu_ps(x + i), scales);
    if (row.w != nullptr) value = _mm256_mul_ps(value, _mm256_loadu_ps(row.w + i));
    _mm256_storeu_ps(row.y + i, value);
  }
  for (; i < row.H; ++i) row.y[i] = row.w == nullptr ? x[i] * scale : x[i] * scale * row.w[i];
}

void layer(const NormRow& row) {
  const float* x = add_residual(row);
  const float mean =
      sum_over(x, row.H, [](__m256 v) __attribute__((always_inline)) { return v; }) / static_cast<float>(row.H);
  const __m256 means = avx2::set1(mean);
  const float squares = sum_over(
      x, row.H, [&](__m256 v) __attribute__((always_inline)) {
        const __m256 centred = _mm256_sub_ps(v, means);
        return _mm256_mul_ps(centred, centred);
      });
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(row.H) + row.eps);
  const __m256 scales = avx2::set1(scale);
  int64_t i = 0;
  for (; i + 8 <= row.H; i += 8) {
    __m256 value = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), means), scales);
    if (row.w != nullptr) value = _mm256_mul_ps(value, _mm256_loadu_ps(row.w + i));
    if (row.b != nullptr) value = _mm256_add_ps(value, _mm256_loadu_ps(row.b + i));
    _mm256_storeu_ps(row.y + i, value);
  }
  for (; i < row.H; ++i) {
    float value = (x[i] - mean) * scale;
    if (row.w != nullptr) value *= row.w[i];
    row.y[i] = row.b == nullptr ? value : value + row.b[i];
  }
}

}  // namespace

NormKernels norm_kernels_avx2() { return {.rms = rms, .layer = layer}; }

}  // namespace fmo
