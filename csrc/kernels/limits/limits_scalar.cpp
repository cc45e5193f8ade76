// Limits without vector instructions of the source: what plain loops reach.
#include <cstdint>

#include "kernels/limits/limits.h"

namespace fmo {
namespace {

constexpr int kChains = 32;

double fma(int64_t num_rounds, double* flop) {
  float chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = static_cast<float>(i);
  volatile float factor_source = 0.999f;
  const float factor = factor_source;
  for (int64_t round = 0; round < num_rounds; ++round) {
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * factor + 1.0f;
  }
  *flop = 2.0 * kChains * static_cast<double>(num_rounds);
  double sum = 0.0;
  for (float value : chain) sum += value;
  return sum;
}

int64_t bytes(int64_t num_rounds, double* ops) {
  int32_t chain[kChains] = {};
  volatile int factor_source = 3;
  const int factor = factor_source;
  for (int64_t round = 0; round < num_rounds; ++round) {
    for (int i = 0; i < kChains; ++i) chain[i] += static_cast<int8_t>(chain[i] + i) * factor;
  }
  *ops = 2.0 * kChains * static_cast<double>(num_rounds);
  int64_t sum = 0;
  for (int32_t value : chain) sum += value;
  return sum;
}

uint64_t read_streams(const char* data, int64_t num_bytes, int num_streams) {
  const int64_t words = num_bytes / num_streams / 8;
  const auto* from = reinterpret_cast<const uint64_t*>(data);
  uint64_t sum[4] = {};
  for (int64_t i = 0; i < words; ++i) {
    for (int stream = 0; stream < num_streams; ++stream) sum[stream] ^= from[stream * words + i];
  }
  return sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}

}  // namespace

LimitLoops limit_loops_scalar() { return {fma, bytes, read_streams}; }

}  // namespace fmo
