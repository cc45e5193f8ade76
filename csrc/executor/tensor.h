// A bound operand: resolved pointer, element type, dims and strides. Dims named by a row dim are set anew at every
// step.
#pragma once

#include <array>
#include <cstdint>

#include "base/dtype.h"
#include "executor/plan.h"

namespace fmo {

inline constexpr int kMaxRank = 8;

struct Tensor {
  char* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::array<int64_t, kMaxRank> dims{};
  std::array<int64_t, kMaxRank> strides{};  // elements, never negative
  std::array<RowDim, kMaxRank> row_dims{};  // none: a fixed dim

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }

  int64_t dim(int axis) const { return dims[static_cast<size_t>(axis)]; }
  int64_t stride(int axis) const { return strides[static_cast<size_t>(axis)]; }
  RowDim row_dim(int axis) const { return row_dims[static_cast<size_t>(axis)]; }
  bool same_dim(int axis, const Tensor& other, int other_axis) const {
    return row_dim(axis) == other.row_dim(other_axis) &&
           (row_dim(axis) != RowDim::none || dim(axis) == other.dim(other_axis));
  }
  bool has_row_dim() const {
    for (int axis = 0; axis < rank; ++axis) {
      if (row_dim(axis) != RowDim::none) return true;
    }
    return false;
  }

  // Product of dims[begin … end).
  int64_t count(int begin, int end) const {
    int64_t product = 1;
    for (int axis = begin; axis < end; ++axis) product *= dim(axis);
    return product;
  }
  int64_t count() const { return count(0, rank); }

  // Offset in elements of the `flat`-th (row-major) index over dims[begin … end).
  int64_t offset(int64_t flat, int begin, int end) const {
    int64_t sum = 0;
    for (int axis = end - 1; axis >= begin; --axis) {
      sum += flat % dim(axis) * stride(axis);
      flat /= dim(axis);
    }
    return sum;
  }
  int64_t offset(int64_t flat) const { return offset(flat, 0, rank); }

  // The same without `skip`: the index runs over all other axes.
  int64_t offset_without(int skip, int64_t flat) const {
    int64_t sum = 0;
    for (int axis = rank - 1; axis >= 0; --axis) {
      if (axis == skip) continue;
      sum += flat % dim(axis) * stride(axis);
      flat /= dim(axis);
    }
    return sum;
  }
  int64_t count_without(int skip) const { return count(0, skip) * count(skip + 1, rank); }
};

}  // namespace fmo
