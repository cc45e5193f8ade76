// `_core.measure_limits` and what Python may know about the machine.
#include "kernels/limits/limits.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "bindings/bindings.h"

namespace nb = nanobind;

namespace fmo {

void bind_limits(nb::module_& m) {
  m.def(
      "measure_limits",
      [](int num_threads) {
        MachineLimits limits;
        {
          const nb::gil_scoped_release no_gil;
          ThreadPool pool(num_threads > 0 ? num_threads : usable_threads());
          limits = measure_limits(pool, detect_isa());
        }
        nb::dict result;
        result["read_bandwidth_gb_s"] = limits.read_bandwidth_gb_s;
        result["fma_gflop_s"] = limits.fma_gflop_s;
        result["byte_gop_s"] = limits.byte_gop_s;
        return result;
      },
      nb::arg("num_threads") = 0,
      "The machine's read bandwidth and its peaks of multiply-adds, f32 and bytes, with so many threads (0: all), "
      "measured now.");
  m.def("usable_threads", &usable_threads, "How many threads this process may use.");
  m.def(
      "detect_isa", [] { return std::string(isa_name(detect_isa())); },
      "The best instruction set that kernels have on this machine.");
}

}  // namespace fmo
