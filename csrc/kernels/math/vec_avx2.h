// Eight-lane f32 functions for AVX2 + FMA: exp, tanh, erf and what is made of them. Included only by files named
// *avx2*.
//
// Every function is lane-wise: the result of a lane depends on that lane alone, so a value is the same wherever it
// stands in a row. Relative error ≤ 2e-7 over the whole range (exp, tanh, erf, sigmoid), infinities and NaN as in libm.
// Polynomials: weighted minimax fits made for this file (Lawson iteration on Chebyshev nodes, float64).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <utility>

namespace fmo::avx2 {

// Calls f(integral_constant 0) … f(integral_constant COUNT-1): loops over register arrays must be unrolled by the
// language.
template <int COUNT, class F>
inline __attribute__((always_inline)) void unroll(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, I>{}), ...);
  }
  (std::make_integer_sequence<int, COUNT>{});
}

inline __m256 set1(float value) { return _mm256_set1_ps(value); }

// Lanes 0 … count-1 of a vector, for the end of a row. count in 0 … 8.
inline __m256i tail_mask(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// A fixed tree: (l0+l4)+(l2+l6) + (l1+l5)+(l3+l7).
inline float horizontal_sum(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline float horizontal_max(__m256 v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

inline __m256 pow2(__m256i exponent) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
}

// exp(x − n·ln2), |x − n·ln2| ≤ ln2/2.
inline __m256 exp_of_rest(__m256 x, __m256 n) {
  __m256 r = _mm256_fnmadd_ps(n, set1(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, set1(-2.12194440e-4f), r);
  __m256 q = set1(1.9790299e-4f);
  q = _mm256_fmadd_ps(q, r, set1(1.39447034e-3f));
  q = _mm256_fmadd_ps(q, r, set1(8.3334977e-3f));
  q = _mm256_fmadd_ps(q, r, set1(4.16662954e-2f));
  q = _mm256_fmadd_ps(q, r, set1(1.66666657e-1f));
  q = _mm256_fmadd_ps(q, r, set1(0.5f));
  return _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), q, r), set1(1.0f));
}

// exp(x) = 2^n · exp(r), |r| ≤ ln2/2. The power of two is applied in two halves so that overflow gives inf and
// underflow subnormals.
inline __m256 exp(__m256 x) {
  const __m256 clamped =
      _mm256_min_ps(set1(89.0f), _mm256_max_ps(set1(-104.0f), x));  // min/max keep a NaN in the second operand
  const __m256 n =
      _mm256_round_ps(_mm256_mul_ps(clamped, set1(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 p = exp_of_rest(clamped, n);
  const __m256i exponent = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  return _mm256_mul_ps(_mm256_mul_ps(p, pow2(half)), pow2(_mm256_sub_epi32(exponent, half)));
}

// exp(x) for x ≤ 0, where a result below 2^-126 is 0: the weights of a softmax.
inline __m256 exp_of_weight(__m256 x) {
  const __m256 clamped = _mm256_max_ps(set1(-88.0f), x);  // max keeps a NaN in the second operand
  const __m256 n =
      _mm256_round_ps(_mm256_mul_ps(clamped, set1(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm256_mul_ps(exp_of_rest(clamped, n), pow2(_mm256_cvtps_epi32(n)));
}

inline __m256 abs(__m256 x) { return _mm256_andnot_ps(set1(-0.0f), x); }
inline __m256 copy_sign(__m256 magnitude, __m256 sign) {
  return _mm256_or_ps(magnitude, _mm256_and_ps(sign, set1(-0.0f)));
}

// |x| < 0.65: odd polynomial; else 1 − 2/(exp(2|x|)+1) with the sign of x.
inline __m256 tanh(__m256 x) {
  const __m256 s = _mm256_mul_ps(x, x);
  __m256 q = set1(2.05958099e-3f);
  q = _mm256_fmadd_ps(q, s, set1(-8.08562618e-3f));
  q = _mm256_fmadd_ps(q, s, set1(2.16634031e-2f));
  q = _mm256_fmadd_ps(q, s, set1(-5.39399423e-2f));
  q = _mm256_fmadd_ps(q, s, set1(1.33331522e-1f));
  q = _mm256_fmadd_ps(q, s, set1(-3.33333284e-1f));
  const __m256 small = _mm256_fmadd_ps(_mm256_mul_ps(q, s), x, x);
  const __m256 t = abs(x);
  const __m256 e = exp(_mm256_add_ps(t, t));
  const __m256 big = _mm256_sub_ps(set1(1.0f), _mm256_div_ps(set1(2.0f), _mm256_add_ps(e, set1(1.0f))));
  return _mm256_blendv_ps(copy_sign(big, x), small, _mm256_cmp_ps(t, set1(0.65f), _CMP_LT_OQ));
}

// |x| < 1: x + x·P(x²); else 1 − exp(Q(|x|)), where Q fits log erfc, with the sign of x; beyond 4, erf is 1 in f32.
inline __m256 erf(__m256 x) {
  const __m256 s = _mm256_mul_ps(x, x);
  __m256 p = set1(7.85390657e-5f);
  p = _mm256_fmadd_ps(p, s, set1(-8.01020826e-4f));
  p = _mm256_fmadd_ps(p, s, set1(5.18832961e-3f));
  p = _mm256_fmadd_ps(p, s, set1(-2.68538129e-2f));
  p = _mm256_fmadd_ps(p, s, set1(1.12835854e-1f));
  p = _mm256_fmadd_ps(p, s, set1(-3.7612626e-1f));
  p = _mm256_fmadd_ps(p, s, set1(1.28379166e-1f));
  const __m256 small = _mm256_fmadd_ps(p, x, x);
  const __m256 t = _mm256_min_ps(set1(4.0f), abs(x));
  __m256 q = set1(-2.16975895e-5f);
  q = _mm256_fmadd_ps(q, t, set1(4.41472337e-4f));
  q = _mm256_fmadd_ps(q, t, set1(-4.20528278e-3f));
  q = _mm256_fmadd_ps(q, t, set1(2.5210334e-2f));
  q = _mm256_fmadd_ps(q, t, set1(-1.08422093e-1f));
  q = _mm256_fmadd_ps(q, t, set1(-6.33216381e-1f));
  q = _mm256_fmadd_ps(q, t, set1(-1.12958026e0f));
  q = _mm256_fmadd_ps(q, t, set1(1.88466598e-4f));
  const __m256 big = _mm256_sub_ps(set1(1.0f), exp(q));
  return _mm256_blendv_ps(copy_sign(big, x), small, _mm256_cmp_ps(t, set1(1.0f), _CMP_LT_OQ));
}

inline __m256 sigmoid(__m256 x) {
  const __m256 e = exp(_mm256_xor_ps(x, set1(-0.0f)));
  return _mm256_div_ps(set1(1.0f), _mm256_add_ps(set1(1.0f), e));
}

// exp(-x) may overflow: the quotient is then x/inf = −0, which is right to rounding.
inline __m256 silu(__m256 x) {
  const __m256 e = exp(_mm256_xor_ps(x, set1(-0.0f)));
  return _mm256_div_ps(x, _mm256_add_ps(set1(1.0f), e));
}

inline __m256 gelu(__m256 x) {
  const __m256 e = erf(_mm256_mul_ps(x, set1(0.70710678f)));
  return _mm256_mul_ps(_mm256_mul_ps(set1(0.5f), x), _mm256_add_ps(set1(1.0f), e));
}

inline __m256 gelu_tanh(__m256 x) {
  const __m256 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
  const __m256 inner = _mm256_mul_ps(set1(0.79788456f), _mm256_fmadd_ps(set1(0.044715f), cube, x));
  return _mm256_mul_ps(_mm256_mul_ps(set1(0.5f), x), _mm256_add_ps(set1(1.0f), tanh(inner)));
}

inline __m256 rsqrt(__m256 x) { return _mm256_div_ps(set1(1.0f), _mm256_sqrt_ps(x)); }

// sum += a · b, where the source says so: left to itself, gcc interleaves the steps of a register tile until
// accumulators spill.
inline __attribute__((always_inline)) void add_product(__m256& sum, __m256 a, __m256 b) {
  asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
}

}  // namespace fmo::avx2
