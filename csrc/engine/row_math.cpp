#include "engine/row_math.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

namespace fmo {
namespace {

constexpr size_t kLanes = 8;

// Without a branch, so that loops over it become vector code: an argument below -87 is computed as 0 and its result
// masked.
inline float exp_polynomial(float x) {
  constexpr float kLog2e = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // their sum is ln 2; high × |n| < 2^9 is exact
  constexpr float kRound = 12582912.0f;                                // 1.5·2^23: adding it rounds to an integer
  const int32_t in_range = -static_cast<int32_t>(x >= -87.0f);
  const float y = std::bit_cast<float>(std::bit_cast<int32_t>(x) & in_range);
  const float n = (y * kLog2e + kRound) - kRound;
  const float r = (y - n * kLn2High) - n * kLn2Low;
  // exp(r) on |r| <= ln2/2: Taylor to r^7, error below 1e-8 relative
  float p = 1.9841270e-4f;
  p = p * r + 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = (p * r) * r + r + 1.0f;
  const float power_of_two = std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return std::bit_cast<float>(std::bit_cast<int32_t>(p * power_of_two) & in_range);
}

double sum_lanes(const double (&lanes)[kLanes]) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

}  // namespace

RowMax row_max(std::span<const float> row) {
  float lanes[kLanes];
  int32_t nan_lanes[kLanes] = {};
  for (float& lane : lanes) lane = -std::numeric_limits<float>::infinity();
  size_t idx = 0;
  for (; idx + kLanes <= row.size(); idx += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float value = row[idx + lane];
      nan_lanes[lane] |= static_cast<int32_t>(value != value);
      lanes[lane] = value > lanes[lane] ? value : lanes[lane];
    }
  }
  for (; idx < row.size(); ++idx) {
    nan_lanes[0] |= static_cast<int32_t>(row[idx] != row[idx]);
    lanes[0] = row[idx] > lanes[0] ? row[idx] : lanes[0];
  }
  RowMax result{lanes[0], false};
  for (size_t lane = 0; lane < kLanes; ++lane) {
    result.value = lanes[lane] > result.value ? lanes[lane] : result.value;
    result.has_nan = result.has_nan || nan_lanes[lane] != 0;
  }
  return result;
}

int64_t first_index_of(std::span<const float> row, float value) {
  size_t idx = 0;
  while (idx + 1 < row.size() && row[idx] != value) ++idx;
  return static_cast<int64_t>(idx);
}

double softmax_weights(std::span<const float> row, float max, float temperature, std::span<float> scaled,
                       std::span<float> weights) {
  double lanes[kLanes] = {};
  size_t idx = 0;
  for (; idx + kLanes <= row.size(); idx += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float x = (row[idx + lane] - max) / temperature;
      const float weight = exp_polynomial(x);
      scaled[idx + lane] = x;
      weights[idx + lane] = weight;
      lanes[lane] += static_cast<double>(weight);
    }
  }
  for (; idx < row.size(); ++idx) {
    scaled[idx] = (row[idx] - max) / temperature;
    weights[idx] = exp_polynomial(scaled[idx]);
    lanes[0] += static_cast<double>(weights[idx]);
  }
  return sum_lanes(lanes);
}

double sum_exp(std::span<const float> row, float max) {
  double lanes[kLanes] = {};
  size_t idx = 0;
  for (; idx + kLanes <= row.size(); idx += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += static_cast<double>(exp_polynomial(row[idx + lane] - max));
    }
  }
  for (; idx < row.size(); ++idx) lanes[0] += static_cast<double>(exp_polynomial(row[idx] - max));
  return sum_lanes(lanes);
}

// The k-th largest of the maxima of disjoint pieces is reached by at least k elements.
float kth_largest_bound(std::span<const float> row, int64_t k, std::vector<float>& piece_max) {
  constexpr size_t kPieceLen = 64;
  const size_t num_pieces = row.size() / kPieceLen;
  const auto rank = static_cast<size_t>(k - 1);
  if (num_pieces <= rank) return -std::numeric_limits<float>::infinity();
  piece_max.clear();
  for (size_t piece = 0; piece < num_pieces; ++piece) {
    piece_max.push_back(row_max(row.subspan(piece * kPieceLen, kPieceLen)).value);
  }
  const auto kth = piece_max.begin() + static_cast<std::ptrdiff_t>(rank);
  std::nth_element(piece_max.begin(), kth, piece_max.end(), std::greater<>());
  return *kth;
}

}  // namespace fmo
