// Counter-based random numbers: a pure function of (seed, position, draw), so that a sample's tokens do not depend on
// what ran beside it. The mixing is the finaliser of splitmix64 (Steele, Lea, Flood 2014), applied once per coordinate.
#pragma once

#include <cstdint>

namespace fmo {

constexpr uint64_t mix_bits(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Uniform in [0, 1), a multiple of 2^-53. `position` counts output tokens, `draw` the uses at one position.
constexpr double random_uniform(uint64_t seed, uint64_t position, uint64_t draw) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ull;
  uint64_t bits = mix_bits(seed + kGolden);
  bits = mix_bits(bits ^ mix_bits(position + 2 * kGolden));
  bits = mix_bits(bits ^ mix_bits(draw + 3 * kGolden));
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace fmo
