// The tensor.* and reduce.* ops: reference speed, any strides, any of f32, i32 and bool. Each output element is
// computed by one thread, in index order, so results depend on nothing but the inputs. Indices that the plan computed
// are checked while running.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "executor/ops.h"

namespace fmo {
namespace {

template <class T>
struct TypeTag {
  using Type = T;
};

// Calls f with the C++ type of `dtype`; bool is uint8_t.
template <class F>
void with_type(DType dtype, F&& f) {
  if (dtype == DType::f32) {
    f(TypeTag<float>{});
  } else if (dtype == DType::i32) {
    f(TypeTag<int32_t>{});
  } else {
    f(TypeTag<uint8_t>{});
  }
}

template <class To, class From>
To convert(From value, bool to_bool) {
  if (to_bool) return static_cast<To>(value != From{});
  if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    if (value != value) return To{};
    const double wide = value;
    return static_cast<To>(std::clamp(wide, static_cast<double>(std::numeric_limits<To>::min()),
                                      static_cast<double>(std::numeric_limits<To>::max())));
  } else {
    return static_cast<To>(value);
  }
}

// Adds the work of all lines along `axis` (or of all elements, axis < 0) to `body(line)`, split over the threads.
template <class Body>
void for_my_lines(int64_t num_lines, const Step& step, int thread, Body&& body) {
  const Range mine = split(num_lines, thread, step.num_threads);
  for (int64_t line = mine.begin; line < mine.end; ++line) body(line);
}

std::string kernel_name(const Binder& binder) {
  const std::string& op = binder.call().op;
  return op.substr(op.find('.') + 1) + ".cpu";
}

template <class To, class From>
void copy_line(const From* from, int64_t from_step, To* to, int64_t to_step, int64_t count, bool to_bool) {
  if (std::is_same_v<To, From> && !to_bool && from_step == 1 && to_step == 1) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(To));
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i * to_step] = convert<To>(from[i * from_step], to_bool);
}

void run_copy(const Tensor& x, const Tensor& y, const Step& step, int thread) {
  const int last = std::max(y.rank - 1, 0);
  const int64_t count = y.rank == 0 ? 1 : y.dim(last);
  const int64_t x_step = y.rank == 0 ? 0 : x.stride(last), y_step = y.rank == 0 ? 0 : y.stride(last);
  const bool to_bool = y.dtype == DType::boolean && x.dtype != DType::boolean;
  with_type(x.dtype, [&](auto from_tag) {
    with_type(y.dtype, [&](auto to_tag) {
      using From = typename decltype(from_tag)::Type;
      using To = typename decltype(to_tag)::Type;
      for_my_lines(y.count(0, last), step, thread, [&](int64_t line) {
        copy_line(x.as<const From>() + x.offset(line, 0, last), x_step, y.as<To>() + y.offset(line, 0, last), y_step,
                  count, to_bool);
      });
    });
  });
}

void require_fixed_axis(const Binder& binder, const Tensor& x, int axis) {
  binder.require(x.row_dim(axis) == RowDim::none,
                 "'" + binder.call().op + "' over the rows of the batch: " + describe(x));
}

}  // namespace

BoundOp bind_copy(Binder& binder) {
  binder.expect_operands(1, 1, 1);
  const Tensor *x = binder.input_any(0), *y = binder.output_any(0);
  binder.require_same_dims(*x, *y, "x and y");
  return {kernel_name(binder), [=](const Step& step, int thread) { run_copy(*x, *y, step, thread); }};
}

// y[…, i, …] = x[…, index[…, i, …], …]; along the other axes the index may be smaller than x.
BoundOp bind_gather(Binder& binder) {
  binder.expect_operands(2, 2, 1);
  const Tensor *x = binder.input_any(0), *index = binder.input(1, DType::i32), *y = binder.output_any(0);
  binder.require_same_dims(*index, *y, "index and y");
  binder.require(x->rank == index->rank && x->dtype == y->dtype,
                 describe(*x) + " gathered by " + describe(*index) + " does not give " + describe(*y));
  const int axis = binder.axis_attr("dim", x->rank);
  require_fixed_axis(binder, *x, axis);
  for (int other = 0; other < x->rank; ++other) {
    const bool covered =
        index->same_dim(other, *x, other) || (index->row_dim(other) == RowDim::none &&
                                              x->row_dim(other) == RowDim::none && index->dim(other) <= x->dim(other));
    binder.require(other == axis || covered, "the index " + describe(*index) + " is larger than x " + describe(*x));
  }
  return {kernel_name(binder), [=](const Step& step, int thread) {
            with_type(x->dtype, [&](auto tag) {
              using T = typename decltype(tag)::Type;
              for_my_lines(index->count(), step, thread, [&](int64_t flat) {
                int64_t from = 0, rest = flat;
                for (int d = index->rank - 1; d >= 0; --d) {
                  if (d != axis) from += rest % index->dim(d) * x->stride(d);
                  rest /= index->dim(d);
                }
                from += step.checked_index(index->as<int32_t>()[index->offset(flat)], x->dim(axis)) * x->stride(axis);
                y->as<T>()[y->offset(flat)] = x->as<const T>()[from];
              });
            });
          }};
}

// y = x, then y[…, index[…, i, …], …] = src[…, i, …] for ascending i; the split is by lines, so that no line has two
// writers.
BoundOp bind_scatter(Binder& binder) {
  binder.expect_operands(3, 3, 1);
  const Tensor *x = binder.input_any(0), *index = binder.input(1, DType::i32), *src = binder.input_any(2),
               *y = binder.output_any(0);
  binder.require_same_dims(*x, *y, "x and y");
  binder.require(x->rank == index->rank && x->dtype == y->dtype && src->dtype == x->dtype,
                 "x, y and src must have one type, and x and index one rank");
  if (src->rank != 0) binder.require_same_dims(*src, *index, "src and index");
  const int axis = binder.axis_attr("dim", x->rank);
  require_fixed_axis(binder, *x, axis);
  for (int other = 0; other < x->rank; ++other) {
    binder.require(other == axis || index->same_dim(other, *x, other),
                   "the index " + describe(*index) + " does not cover x " + describe(*x));
  }
  return {kernel_name(binder), [=](const Step& step, int thread) {
            with_type(x->dtype, [&](auto tag) {
              using T = typename decltype(tag)::Type;
              for_my_lines(x->count_without(axis), step, thread, [&](int64_t line) {
                T* to = y->as<T>() + y->offset_without(axis, line);
                const T* from = x->as<const T>() + x->offset_without(axis, line);
                const int32_t* ids = index->as<int32_t>() + index->offset_without(axis, line);
                const T* values = src->as<const T>() + (src->rank == 0 ? 0 : src->offset_without(axis, line));
                const int64_t value_step = src->rank == 0 ? 0 : src->stride(axis);
                for (int64_t i = 0; i < x->dim(axis); ++i) to[i * y->stride(axis)] = from[i * x->stride(axis)];
                for (int64_t i = 0; i < index->dim(axis); ++i) {
                  to[step.checked_index(ids[i * index->stride(axis)], x->dim(axis)) * y->stride(axis)] =
                      values[i * value_step];
                }
              });
            });
          }};
}

BoundOp bind_gather_rows(Binder& binder) {
  binder.expect_operands(2, 2, 1);
  const Tensor *x = binder.input_any(0), *rows = binder.input(1, DType::i32, 1), *y = binder.output_any(0);
  bool fits = x->rank >= 1 && x->rank == y->rank && x->dtype == y->dtype && y->same_dim(0, *rows, 0);
  for (int axis = 1; fits && axis < x->rank; ++axis) fits = x->same_dim(axis, *y, axis);
  binder.require(fits, "rows " + describe(*rows) + " of " + describe(*x) + " do not give " + describe(*y));
  return {kernel_name(binder), [=](const Step& step, int thread) {
            with_type(x->dtype, [&](auto tag) {
              using T = typename decltype(tag)::Type;
              const int last = std::max(x->rank - 1, 1);
              const int64_t count = x->rank > 1 ? x->dim(last) : 1, lines_per_row = x->count(1, last);
              const int64_t x_step = x->rank > 1 ? x->stride(last) : 0, y_step = x->rank > 1 ? y->stride(last) : 0;
              for_my_lines(rows->dim(0) * lines_per_row, step, thread, [&](int64_t flat) {
                const int64_t row = flat / lines_per_row, line = flat % lines_per_row;
                const int64_t from = step.checked_index(rows->as<int32_t>()[row * rows->stride(0)], x->dim(0));
                copy_line(x->as<const T>() + from * x->stride(0) + x->offset(line, 1, last), x_step,
                          y->as<T>() + row * y->stride(0) + y->offset(line, 1, last), y_step, count, false);
              });
            });
          }};
}

// Sorted best first; of equal values the lowest index comes first. NaN counts as the best, as in torch.
BoundOp bind_topk(Binder& binder) {
  binder.expect_operands(1, 1, 2);
  const Tensor *x = binder.input_any(0), *values = binder.output_any(0), *indices = binder.output(1, DType::i32);
  const int axis = binder.axis_attr("dim", x->rank);
  const int64_t k = binder.int_attr("k");
  const bool largest = binder.bool_attr("largest", true);
  require_fixed_axis(binder, *x, axis);
  binder.require_same_dims(*values, *indices, "values and indices");
  bool fits =
      values->rank == x->rank && values->dtype == x->dtype && k >= 1 && k <= x->dim(axis) && values->dim(axis) == k;
  for (int other = 0; fits && other < x->rank; ++other) fits = other == axis || x->same_dim(other, *values, other);
  binder.require(fits, "the best " + std::to_string(k) + " of " + describe(*x) + " do not give " + describe(*values));
  binder.need_workspace(0, checked_mul(x->dim(axis), 4));
  return {kernel_name(binder), [=](const Step& step, int thread) {
            with_type(x->dtype, [&](auto tag) {
              using T = typename decltype(tag)::Type;
              int32_t* order = reinterpret_cast<int32_t*>(step.thread_workspace(thread));
              for_my_lines(x->count_without(axis), step, thread, [&](int64_t line) {
                const T* from = x->as<const T>() + x->offset_without(axis, line);
                const auto is_better = [&](int32_t a, int32_t b) {
                  const T va = from[a * x->stride(axis)], vb = from[b * x->stride(axis)];
                  const bool nan_a = va != va, nan_b = vb != vb;
                  if (nan_a || nan_b) return nan_a == nan_b ? a < b : nan_a == largest;
                  return va == vb ? a < b : (largest ? va > vb : va < vb);
                };
                std::iota(order, order + x->dim(axis), 0);
                std::partial_sort(order, order + k, order + x->dim(axis), is_better);
                T* best = values->as<T>() + values->offset_without(axis, line);
                int32_t* where = indices->as<int32_t>() + indices->offset_without(axis, line);
                for (int64_t i = 0; i < k; ++i) {
                  best[i * values->stride(axis)] = from[order[i] * x->stride(axis)];
                  where[i * indices->stride(axis)] = order[i];
                }
              });
            });
          }};
}

namespace {

// Operands of a matmul seen as [batch…, rows, inner] · [batch…, inner, columns]; a 1-d operand has one row or column.
struct Matmul {
  const Tensor *a, *b, *y;
  int num_batch;                                                                       // batch axes of y
  int64_t a_row = 0, a_inner = 0, b_inner = 0, b_column = 0, y_row = 0, y_column = 0;  // strides
  int a_row_axis = -1, b_column_axis = -1;
  int inner_axis = 0;  // of a

  // Offset of batch `flat` of y in an operand whose batch axes are broadcast against those of y.
  int64_t batch_offset(const Tensor& x, int x_batch, int64_t flat) const {
    int64_t sum = 0;
    for (int axis = num_batch - 1; axis >= 0; --axis) {
      const int own = axis - (num_batch - x_batch);
      if (own >= 0 && (x.dim(own) != 1 || x.row_dim(own) != RowDim::none)) sum += flat % y->dim(axis) * x.stride(own);
      flat /= y->dim(axis);
    }
    return sum;
  }
};

bool batch_axes_fit(const Matmul& m, const Tensor& x, int x_batch) {
  if (x_batch > m.num_batch) return false;
  for (int own = 0; own < x_batch; ++own) {
    const bool broadcasts = x.row_dim(own) == RowDim::none && x.dim(own) == 1;
    if (!broadcasts && !x.same_dim(own, *m.y, own + m.num_batch - x_batch)) return false;
  }
  return true;
}

void run_matmul(const Matmul& m, const Step& step, int thread) {
  const int64_t rows = m.a_row_axis < 0 ? 1 : m.a->dim(m.a_row_axis),
                columns = m.b_column_axis < 0 ? 1 : m.b->dim(m.b_column_axis);
  const int64_t inner = m.a->dim(m.inner_axis);
  const int a_batch = std::max(m.a->rank - 2, 0), b_batch = std::max(m.b->rank - 2, 0);
  for_my_lines(m.y->count(0, m.num_batch) * rows, step, thread, [&](int64_t line) {
    const int64_t batch = line / rows, row = line % rows;
    const float* a = m.a->as<const float>() + m.batch_offset(*m.a, a_batch, batch) + row * m.a_row;
    const float* b = m.b->as<const float>() + m.batch_offset(*m.b, b_batch, batch);
    float* y = m.y->as<float>() + m.y->offset(batch, 0, m.num_batch) + row * m.y_row;
    for (int64_t j = 0; j < columns; ++j) y[j * m.y_column] = 0.0f;
    for (int64_t k = 0; k < inner; ++k) {
      const float left = a[k * m.a_inner];
      for (int64_t j = 0; j < columns; ++j) y[j * m.y_column] += left * b[k * m.b_inner + j * m.b_column];
    }
  });
}

}  // namespace

BoundOp bind_matmul(Binder& binder) {
  binder.expect_operands(2, 2, 1);
  Matmul m{};
  m.a = binder.input(0);
  m.b = binder.input(1);
  m.y = binder.output(0);
  binder.require(m.a->rank >= 1 && m.b->rank >= 1,
                 "a matmul needs operands with dims, not " + describe(*m.a) + " and " + describe(*m.b));
  m.a_row_axis = m.a->rank >= 2 ? m.a->rank - 2 : -1;
  m.b_column_axis = m.b->rank >= 2 ? m.b->rank - 1 : -1;
  m.inner_axis = m.a->rank - 1;
  const int b_inner_axis = m.b->rank >= 2 ? m.b->rank - 2 : 0;
  const int tail = (m.a_row_axis >= 0 ? 1 : 0) + (m.b_column_axis >= 0 ? 1 : 0);
  m.num_batch = m.y->rank - tail;
  bool fits = m.num_batch >= 0 && m.a->same_dim(m.inner_axis, *m.b, b_inner_axis);
  if (fits && m.a_row_axis >= 0) fits = m.y->same_dim(m.num_batch, *m.a, m.a_row_axis);
  if (fits && m.b_column_axis >= 0) fits = m.y->same_dim(m.y->rank - 1, *m.b, m.b_column_axis);
  fits = fits && batch_axes_fit(m, *m.a, std::max(m.a->rank - 2, 0)) &&
         batch_axes_fit(m, *m.b, std::max(m.b->rank - 2, 0));
  binder.require(fits, describe(*m.a) + " times " + describe(*m.b) + " does not give " + describe(*m.y));
  require_fixed_axis(binder, *m.a, m.inner_axis);
  m.a_inner = m.a->stride(m.inner_axis);
  m.b_inner = m.b->stride(b_inner_axis);
  if (m.a_row_axis >= 0) m.a_row = m.a->stride(m.a_row_axis), m.y_row = m.y->stride(m.num_batch);
  if (m.b_column_axis >= 0) m.b_column = m.b->stride(m.b_column_axis), m.y_column = m.y->stride(m.y->rank - 1);
  return {kernel_name(binder), [=](const Step& step, int thread) { run_matmul(m, step, thread); }};
}

BoundOp bind_cumsum(Binder& binder) {
  binder.expect_operands(1, 1, 1);
  const Tensor *x = binder.input_any(0), *y = binder.output_any(0);
  binder.require_same_dims(*x, *y, "x and y");
  binder.require(x->dtype == y->dtype && x->dtype != DType::boolean,
                 "cumsum of " + describe(*x) + " to " + describe(*y));
  const int axis = binder.axis_attr("dim", x->rank);
  require_fixed_axis(binder, *x, axis);
  return {kernel_name(binder), [=](const Step& step, int thread) {
            with_type(x->dtype, [&](auto tag) {
              using T = typename decltype(tag)::Type;
              using Sum = std::conditional_t<std::is_same_v<T, float>, float, uint32_t>;  // integers wrap around
              for_my_lines(x->count_without(axis), step, thread, [&](int64_t line) {
                const T* from = x->as<const T>() + x->offset_without(axis, line);
                T* to = y->as<T>() + y->offset_without(axis, line);
                Sum sum{};
                for (int64_t i = 0; i < x->dim(axis); ++i) {
                  sum += static_cast<Sum>(from[i * x->stride(axis)]);
                  to[i * y->stride(axis)] = static_cast<T>(sum);
                }
              });
            });
          }};
}

BoundOp bind_full(Binder& binder) {
  binder.expect_operands(0, 0, 1);
  const Tensor* y = binder.output_any(0);
  const double value = binder.float_attr("value");
  return {kernel_name(binder), [=](const Step& step, int thread) {
            with_type(y->dtype, [&](auto tag) {
              using T = typename decltype(tag)::Type;
              const T element = convert<T>(value, y->dtype == DType::boolean);
              for_my_lines(y->count(), step, thread, [&](int64_t flat) { y->as<T>()[y->offset(flat)] = element; });
            });
          }};
}

BoundOp bind_iota(Binder& binder) {
  binder.expect_operands(0, 0, 1);
  const Tensor* y = binder.output_any(0);
  const int axis = binder.axis_attr("dim", y->rank);
  binder.require(y->dtype != DType::boolean, "iota gives f32 or i32, not " + describe(*y));
  return {kernel_name(binder), [=](const Step& step, int thread) {
            with_type(y->dtype, [&](auto tag) {
              using T = typename decltype(tag)::Type;
              const int64_t inner = y->count(axis + 1, y->rank);
              for_my_lines(y->count(), step, thread, [&](int64_t flat) {
                y->as<T>()[y->offset(flat)] = static_cast<T>(flat / inner % y->dim(axis));
              });
            });
          }};
}

namespace {

enum class Reduction { sum, mean, max, min, argmax };

// Reduces `count` values `step` apart. f32 sums are taken in double: reference precision at reference speed.
template <class T>
double reduce_line(Reduction reduction, const T* x, int64_t step, int64_t count) {
  if (reduction == Reduction::sum || reduction == Reduction::mean) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(x[i * step]);
    return reduction == Reduction::sum ? sum : sum / static_cast<double>(count);
  }
  int64_t best = 0;
  for (int64_t i = 1; i < count; ++i) {
    const T value = x[i * step], top = x[best * step];
    const bool is_nan = value != value, is_better = reduction == Reduction::min ? value < top : value > top;
    if (top == top && (is_nan || is_better)) best = i;
  }
  return reduction == Reduction::argmax ? static_cast<double>(best) : static_cast<double>(x[best * step]);
}

Reduction reduction_of(Binder& binder) {
  const std::string name = binder.call().op.substr(7);
  if (name == "sum") return Reduction::sum;
  if (name == "mean") return Reduction::mean;
  if (name == "max") return Reduction::max;
  return name == "min" ? Reduction::min : Reduction::argmax;
}

}  // namespace

// The axis is given by `dim`; the output has lost it, or has size 1 there (`keepdim`).
BoundOp bind_reduce(Binder& binder) {
  binder.expect_operands(1, 1, 1);
  const Tensor *x = binder.input_any(0), *y = binder.output_any(0);
  const Reduction reduction = reduction_of(binder);
  const int axis = binder.axis_attr("dim", x->rank);
  require_fixed_axis(binder, *x, axis);
  const bool keeps = binder.bool_attr("keepdim", false);
  bool fits = y->rank == (keeps ? x->rank : x->rank - 1) &&
              (!keeps || (y->dim(axis) == 1 && y->row_dim(axis) == RowDim::none)) && x->dim(axis) > 0;
  for (int other = 0; fits && other < x->rank; ++other) {
    fits = other == axis || x->same_dim(other, *y, other - (!keeps && other > axis ? 1 : 0));
  }
  fits = fits && (reduction == Reduction::argmax ? y->dtype == DType::i32 : y->dtype == x->dtype);
  binder.require(fits, "'" + binder.call().op + "' of " + describe(*x) + " over dim " + std::to_string(axis) +
                           " does not give " + describe(*y));
  return {kernel_name(binder), [=](const Step& step, int thread) {
            with_type(x->dtype, [&](auto from_tag) {
              with_type(y->dtype, [&](auto to_tag) {
                using From = typename decltype(from_tag)::Type;
                using To = typename decltype(to_tag)::Type;
                for_my_lines(x->count_without(axis), step, thread, [&](int64_t line) {
                  const double value = reduce_line(reduction, x->as<const From>() + x->offset_without(axis, line),
                                                   x->stride(axis), x->dim(axis));
                  y->as<To>()[y->offset(line)] = convert<To>(value, y->dtype == DType::boolean);
                });
              });
            });
          }};
}

}  // namespace fmo
