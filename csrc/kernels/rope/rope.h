// Rotary position embedding of one head of one token.        contract of rope.cpu
//
//   y = x, with dims offset … offset+R−1 rotated (R = rotary_dim):
//   half                 pairs (i, i+R/2) → same places          y_a = x_a·cos_i − x_b·sin_i
//   interleaved          pairs (2i, 2i+1) → same places          y_b = x_b·cos_i + x_a·sin_i
//   interleaved_to_half  pairs (2i, 2i+1) → (i, i+R/2)
//
// cos, sin [R/2] f32. y must not overlap x. Two roundings per product and sum, as in torch; compilers vectorise the
// `half` loop.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fmo {

enum class RopeStyle { half, interleaved, interleaved_to_half };

struct RopeParams {
  RopeStyle style = RopeStyle::half;
  int64_t rotary_dim = 0, offset = 0, head_dim = 0;
};

inline void rope_head(const RopeParams& params, const float* __restrict x, const float* __restrict cos,
                      const float* __restrict sin, float* __restrict y) {
  const int64_t half = params.rotary_dim / 2, end = params.offset + params.rotary_dim;
  std::copy_n(x, params.offset, y);
  std::copy(x + end, x + params.head_dim, y + end);
  const float* from = x + params.offset;
  float* to = y + params.offset;
  if (params.style == RopeStyle::half) {
    for (int64_t i = 0; i < half; ++i) to[i] = from[i] * cos[i] - from[i + half] * sin[i];
    for (int64_t i = 0; i < half; ++i) to[i + half] = from[i + half] * cos[i] + from[i] * sin[i];
    return;
  }
  const bool in_place = params.style == RopeStyle::interleaved;
  for (int64_t i = 0; i < half; ++i) {
    const float a = from[2 * i], b = from[2 * i + 1];
    to[in_place ? 2 * i : i] = a * cos[i] - b * sin[i];
    to[in_place ? 2 * i + 1 : i + half] = b * cos[i] + a * sin[i];
  }
}

}  // namespace fmo
