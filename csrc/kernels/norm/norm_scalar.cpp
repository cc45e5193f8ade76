// Reference of the norms: sums in double.
#include <cmath>

#include "kernels/norm/norm.h"

namespace fmo {
namespace {

const float* add_residual(const NormRow& row) {
  if (row.residual == nullptr) return row.x;
  for (int64_t i = 0; i < row.H; ++i) row.sum[i] = row.x[i] + row.residual[i];
  return row.sum;
}

void rms(const NormRow& row) {
  const float* x = add_residual(row);
  double squares = 0.0;
  for (int64_t i = 0; i < row.H; ++i) squares += static_cast<double>(x[i]) * x[i];
  const float scale = 1.0f / std::sqrt(static_cast<float>(squares / static_cast<double>(row.H)) + row.eps);
  for (int64_t i = 0; i < row.H; ++i) row.y[i] = row.w == nullptr ? x[i] * scale : x[i] * scale * row.w[i];
}

void layer(const NormRow& row) {
  const float* x = add_residual(row);
  double sum = 0.0, squares = 0.0;
  for (int64_t i = 0; i < row.H; ++i) sum += x[i];
  const double mean = sum / static_cast<double>(row.H);
  for (int64_t i = 0; i < row.H; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / std::sqrt(static_cast<float>(squares / static_cast<double>(row.H)) + row.eps);
  for (int64_t i = 0; i < row.H; ++i) {
    float value = static_cast<float>(x[i] - mean) * scale;
    if (row.w != nullptr) value *= row.w[i];
    row.y[i] = row.b == nullptr ? value : value + row.b[i];
  }
}

}  // namespace

NormKernels norm_kernels_scalar() { return {.rms = rms, .layer = layer}; }

}  // namespace fmo
