// Limits with AVX2 + FMA. Twelve chains hide the latency of the multiply-add; an empty asm keeps the compiler from
// merging them.
#include <immintrin.h>

#include "kernels/limits/limits.h"
#include "kernels/math/vec_avx2.h"

namespace fmo {
namespace {

constexpr int kChains = 12;

double fma(int64_t num_rounds, double* flop) {
  __m256 chain[kChains];
  avx2::unroll<kChains>([&](auto i) { chain[i] = avx2::set1(1.0f); });
  const __m256 factor = avx2::set1(0.999f), term = avx2::set1(0.001f);
  for (int64_t round = 0; round < num_rounds; ++round) {
    avx2::unroll<kChains>([&](auto i) __attribute__((always_inline)) {
      chain[i] = _mm256_fmadd_ps(chain[i], factor, term);
      asm volatile("" : "+x"(chain[i]));
    });
  }
  *flop = 2.0 * 8.0 * kChains * static_cast<double>(num_rounds);
  __m256 sum = _mm256_setzero_ps();
  avx2::unroll<kChains>([&](auto i) { sum = _mm256_add_ps(sum, chain[i]); });
  return avx2::horizontal_sum(sum);
}

// The inner loop of linear with integers, in registers only: per chain 8 times maddubs and a 16-bit add, then one madd
// and a 32-bit add. Inline assembly, because a compiler would compute a product that does not change once.
int64_t bytes(int64_t num_rounds, double* ops) {
  constexpr int kByteChains = 6, kProducts = 8;
  __m256i total[kByteChains];
  avx2::unroll<kByteChains>([&](auto i) { total[i] = _mm256_setzero_si256(); });
  const __m256i codes = _mm256_set1_epi8(7), x = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
  for (int64_t round = 0; round < num_rounds; ++round) {
    __m256i acc[kByteChains];
    avx2::unroll<kByteChains>([&](auto i) __attribute__((always_inline)) { acc[i] = _mm256_setzero_si256(); });
    avx2::unroll<kProducts>([&](auto) __attribute__((always_inline)) {
      avx2::unroll<kByteChains>([&](auto i) __attribute__((always_inline)) {
        __m256i sum = acc[i], product;
        asm volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(codes), "x"(x));
        acc[i] = sum;
      });
    });
    avx2::unroll<kByteChains>([&](auto i) __attribute__((always_inline)) {
      total[i] = _mm256_add_epi32(total[i], _mm256_madd_epi16(acc[i], ones));
    });
  }
  *ops = 2.0 * 32.0 * kProducts * kByteChains * static_cast<double>(num_rounds);
  __m256i sum = _mm256_setzero_si256();
  avx2::unroll<kByteChains>([&](auto i) { sum = _mm256_add_epi32(sum, total[i]); });
  return _mm256_extract_epi64(sum, 0);
}

template <int STREAMS>
uint64_t read(const char* data, int64_t num_bytes) {
  const int64_t part = num_bytes / STREAMS / 256 * 256;
  __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  for (int64_t at = 0; at < part; at += 256) {
    avx2::unroll<STREAMS>([&](auto stream) __attribute__((always_inline)) {
      const auto* p = reinterpret_cast<const __m256i*>(data + stream * part + at);
      avx2::unroll<8>([&](auto i) __attribute__((always_inline)) {
        sum[i % 4] = _mm256_xor_si256(sum[i % 4], _mm256_loadu_si256(p + i));
      });
    });
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0) ^ _mm256_extract_epi64(all, 3));
}

uint64_t read_streams(const char* data, int64_t num_bytes, int num_streams) {
  return num_streams == 1 ? read<1>(data, num_bytes) : read<4>(data, num_bytes);
}

}  // namespace

LimitLoops limit_loops_avx2() { return {fma, bytes, read_streams}; }

}  // namespace fmo
