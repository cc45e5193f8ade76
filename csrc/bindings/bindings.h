// The functions that put the parts of the core into the Python module.
#pragma once

#include <nanobind/nanobind.h>

namespace fmo {

void bind_limits(nanobind::module_& m);
void bind_executor(nanobind::module_& m);
void bind_engine(nanobind::module_& m);
void bind_tokenizer(nanobind::module_& m);
void bind_json(nanobind::module_& m);
void bind_http(nanobind::module_& m);
void bind_metrics(nanobind::module_& m);

}  // namespace fmo
