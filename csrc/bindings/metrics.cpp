// What runtime/metrics.py counts with: several times per request, so without a call of Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "bindings/bindings.h"

namespace nb = nanobind;

namespace fmo {
namespace {

// How many observations were at most each bound, and how many above the last.
class Buckets {
 public:
  explicit Buckets(std::vector<double> bounds) : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}

  void observe(double value) {
    ++counts_[static_cast<size_t>(std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin())];
    sum_ += value;
  }
  const std::vector<int64_t>& counts() const { return counts_; }
  double sum() const { return sum_; }

 private:
  std::vector<double> bounds_;  // rising
  std::vector<int64_t> counts_;
  double sum_ = 0;
};

// The last observations; count and sum of all.
class Window {
 public:
  explicit Window(size_t size) : size_(size) {
    if (size == 0) throw std::invalid_argument("a window holds 0 values, expected at least 1");
  }

  void observe(double value) {
    if (recent_.size() < size_) {
      recent_.push_back(value);
    } else {
      recent_[static_cast<size_t>(count_) % size_] = value;
    }
    ++count_;
    sum_ += value;
  }
  const std::vector<double>& recent() const { return recent_; }
  int64_t count() const { return count_; }
  double sum() const { return sum_; }

 private:
  size_t size_;
  std::vector<double> recent_;  // in no order
  int64_t count_ = 0;
  double sum_ = 0;
};

}  // namespace

void bind_metrics(nb::module_& m) {
  nb::class_<Buckets>(m, "Buckets", "How many observations were at most each of `bounds`, and how many above the last.")
      .def(nb::init<std::vector<double>>(), nb::arg("bounds"))
      .def("observe", &Buckets::observe, nb::arg("value"))
      .def_prop_ro("counts", &Buckets::counts)
      .def_prop_ro("sum", &Buckets::sum);
  nb::class_<Window>(m, "Window", "The last `size` observations, in no order; count and sum of all.")
      .def(nb::init<size_t>(), nb::arg("size"))
      .def("observe", &Window::observe, nb::arg("value"))
      .def_prop_ro("recent", &Window::recent)
      .def_prop_ro("count", &Window::count)
      .def_prop_ro("sum", &Window::sum);
}

}  // namespace fmo
