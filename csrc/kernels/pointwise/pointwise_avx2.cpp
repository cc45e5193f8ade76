// Pointwise functions for AVX2: the plain loops compiled for it, and exp, tanh, erf and their kin eight at a time.
#include <immintrin.h>

#include "kernels/math/vec_avx2.h"
#include "kernels/pointwise/pointwise_loops.h"

namespace fmo {
namespace {

template <__m256 (*F)(__m256)>
void map_vectors(const float* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, F(_mm256_loadu_ps(x + i)));
  if (i < n) {
    const __m256i mask = avx2::tail_mask(n - i);
    _mm256_maskstore_ps(y + i, mask, F(_mm256_maskload_ps(x + i, mask)));
  }
}

UnaryF32 unary_f32(std::string_view name) {
  static constexpr Named<UnaryF32> table[] = {
      {"exp", map_vectors<avx2::exp>},
      {"tanh", map_vectors<avx2::tanh>},
      {"erf", map_vectors<avx2::erf>},
      {"sigmoid", map_vectors<avx2::sigmoid>},
      {"silu", map_vectors<avx2::silu>},
      {"gelu", map_vectors<avx2::gelu>},
      {"gelu_tanh", map_vectors<avx2::gelu_tanh>},
  };
  const UnaryF32 own = find(table, name);
  return own != nullptr ? own : plain_unary_f32(name);
}

}  // namespace

PointwiseKernels pointwise_kernels_avx2() {
  return {unary_f32, plain_binary_f32, plain_compare_f32, plain_unary_i32, plain_binary_i32};
}

}  // namespace fmo
