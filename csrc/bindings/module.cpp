// The Python extension `friendli_runtime._core`. Each part of the core binds itself in its own file.
#include <nanobind/nanobind.h>

#include "bindings/bindings.h"

NB_MODULE(_core, m) {
  m.doc() = "The C++ core of fmo: executor, kernels and engine for the CPU.";
  fmo::bind_limits(m);
  fmo::bind_executor(m);
  fmo::bind_engine(m);
  fmo::bind_tokenizer(m);
  fmo::bind_json(m);
  fmo::bind_http(m);
  fmo::bind_metrics(m);
}
