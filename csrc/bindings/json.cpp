// `_core.has_unique_names`.
#include "json/unique_names.h"

#include <nanobind/nanobind.h>

#include "bindings/bindings.h"

namespace nb = nanobind;

namespace fmo {

void bind_json(nb::module_& m) {
  m.def(
      "has_unique_names",
      [](const nb::bytes& json) { return has_unique_names({static_cast<const char*>(json.data()), json.size()}); },
      nb::arg("json"),
      "True: no object of this valid JSON text has two fields of the same name. False: perhaps one has.");
}

}  // namespace fmo
