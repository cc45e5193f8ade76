// What requests are read with: `_core.has_unique_names`, `_core.given_attributes`.
#include "json/unique_names.h"

#include <nanobind/nanobind.h>

#include "bindings/bindings.h"

namespace nb = nanobind;

namespace fmo {
namespace {

nb::dict given_attributes(const nb::handle object, const nb::tuple& names) {
  nb::dict given;
  for (const nb::handle name : names) {
    const nb::object value = nb::getattr(object, name);
    if (!value.is_none()) given[name] = value;
  }
  return given;
}

}  // namespace

void bind_json(nb::module_& m) {
  m.def(
      "has_unique_names",
      [](const nb::bytes& json, size_t max_depth, size_t max_containers) {
        return has_unique_names({static_cast<const char*>(json.data()), json.size()}, {max_depth, max_containers});
      },
      nb::arg("json"), nb::kw_only(), nb::arg("max_depth"), nb::arg("max_containers"),
      "True: this text, if it is valid JSON, nests no deeper than `max_depth`, holds at most `max_containers` arrays "
      "and objects, and none of its objects has two fields of the same name. False: perhaps one has.");
  m.def("given_attributes", &given_attributes, nb::arg("object"), nb::arg("names"),
        "Those attributes of `object` that are not None, by name.");
}

}  // namespace fmo
