// Vectorisable passes over one row of floats: maximum with a check for bad values, and exponentials with their sum.
// The exponential is our own polynomial so that a seed gives the same token with every C library; lanes are summed in a
// fixed order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace fmo {

struct RowMax {
  float value;
  bool has_nan;
};

RowMax row_max(std::span<const float> row);

// The lowest index of `value`, which must be in the row.
int64_t first_index_of(std::span<const float> row, float value);

// scaled[i] = (row[i] - max) / temperature, weights[i] = exp(scaled[i]); returns the sum of the weights.
double softmax_weights(std::span<const float> row, float max, float temperature, std::span<float> scaled,
                       std::span<float> weights);

// sum of exp(row[i] - max)
double sum_exp(std::span<const float> row, float max);

// A value that at least k elements reach, close to the k-th largest in a long row. `piece_max` is scratch.
float kth_largest_bound(std::span<const float> row, int64_t k, std::vector<float>& piece_max);

}  // namespace fmo
