// Vectorisable passes over one row of floats: maximum with a check for bad values, and exponentials with their sum.
// The exponential is our own polynomial so that a seed gives the same token with every C library; lanes are summed in a
// fixed order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fmo {

struct RowMax {
  float value;
  bool has_nan;
};

RowMax row_max(std::span<const float> row);

// The lowest index of `value`, which must be in the row.
int64_t first_index_of(std::span<const float> row, float value);

// exp(x) for x <= 0 within 2 ulp; exactly 1 at 0 and exactly 0 below -87.
float exp_nonpositive(float x);

// scaled[i] = (row[i] - max) / temperature, weights[i] = exp(scaled[i]); returns the sum of the weights.
double softmax_weights(std::span<const float> row, float max, float temperature, std::span<float> scaled,
                       std::span<float> weights);

// sum of exp(row[i] - max)
double sum_exp(std::span<const float> row, float max);

}  // namespace fmo
