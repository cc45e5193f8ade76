// What requests are read with: functions that look at every message or field of one, so that Python needs not.
// None of them decides: what they do not take for ordinary, Python looks at.
#include "json/unique_names.h"

#include <nanobind/nanobind.h>

#include <bit>
#include <cstdint>

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

// Those of `values` whose bit is set in `wanted` as one value to look up; None: one is a list, an object or a long
// text.
nb::object plain_values(const nb::tuple& values, uint64_t wanted) {
  constexpr Py_ssize_t kMaxChars = 64;
  const nb::tuple plain = nb::steal<nb::tuple>(PyTuple_New(std::popcount(wanted)));
  if (!plain.is_valid()) throw nb::python_error();
  Py_ssize_t num_plain = 0;
  for (; wanted != 0; wanted &= wanted - 1) {
    PyObject* value = PyTuple_GetItem(values.ptr(), std::countr_zero(wanted));
    if (value == nullptr) throw nb::python_error();
    const bool is_plain = value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) ||
                          PyFloat_CheckExact(value) ||
                          (PyUnicode_CheckExact(value) && PyUnicode_GET_LENGTH(value) <= kMaxChars);
    if (!is_plain) return nb::none();
    Py_INCREF(value);
    PyTuple_SET_ITEM(plain.ptr(), num_plain++, value);
  }
  return plain;
}

// {"role", "content"} of each message, the role as `roles` calls it; None if a message is not just these two texts.
nb::object plain_messages(const nb::list& messages, const nb::dict& roles) {
  static PyObject* const role_name = PyUnicode_InternFromString("role");
  static PyObject* const content_name = PyUnicode_InternFromString("content");
  nb::list plain;
  for (const nb::handle message : messages) {
    if (!PyDict_CheckExact(message.ptr()) || PyDict_GET_SIZE(message.ptr()) != 2) return nb::none();
    PyObject* role = PyDict_GetItemWithError(message.ptr(), role_name);
    PyObject* content = PyDict_GetItemWithError(message.ptr(), content_name);
    if (role == nullptr || content == nullptr || !PyUnicode_CheckExact(role) || !PyUnicode_CheckExact(content)) {
      return nb::none();
    }
    PyObject* known_role = PyDict_GetItemWithError(roles.ptr(), role);
    if (known_role == nullptr) return nb::none();
    nb::dict copy;
    if (PyDict_SetItem(copy.ptr(), role_name, known_role) != 0 ||
        PyDict_SetItem(copy.ptr(), content_name, content) != 0) {
      throw nb::python_error();
    }
    plain.append(copy);
  }
  return plain;
}

// Whether a text of a message, its role apart, holds one of the characters, or something of it is no text.
bool may_hold(const nb::list& messages, const nb::str& characters) {
  const Py_ssize_t num_characters = PyUnicode_GET_LENGTH(characters.ptr());
  for (const nb::handle message : messages) {
    for (const auto& [name, value] : nb::borrow<nb::dict>(message)) {
      if (PyUnicode_CompareWithASCIIString(name.ptr(), "role") == 0) continue;
      if (!PyUnicode_CheckExact(value.ptr())) return true;
      for (Py_ssize_t i = 0; i < num_characters; ++i) {
        const Py_UCS4 character = PyUnicode_READ_CHAR(characters.ptr(), i);
        if (PyUnicode_FindChar(value.ptr(), character, 0, PyUnicode_GET_LENGTH(value.ptr()), 1) >= 0) return true;
      }
    }
  }
  return false;
}

}  // namespace

void bind_json(nb::module_& m) {
  m.def(
      "has_unique_names",
      [](const nb::bytes& json, size_t max_depth, size_t max_containers) {
        return has_unique_names({static_cast<const char*>(json.data()), json.size()}, {max_depth, max_containers});
      },
      nb::arg("json"), nb::arg("max_depth"), nb::arg("max_containers"),
      "True: this text, if it is valid JSON, nests no deeper than `max_depth`, holds at most `max_containers` arrays "
      "and objects, and none of its objects has two fields of the same name. False: perhaps one has.");
  m.def("given_attributes", &given_attributes, nb::arg("object"), nb::arg("names"),
        "Those attributes of `object` that are not None, by name.");
  m.def("plain_values", &plain_values, nb::arg("values"), nb::arg("wanted"),
        "Those of `values` whose bit is set in `wanted`, if each is None, a number or a short text; else None.");
  m.def("plain_messages", &plain_messages, nb::arg("messages"), nb::arg("roles"),
        "Messages of role and content only, the roles as `roles` calls them; None: some are others.");
  m.def("may_hold", &may_hold, nb::arg("messages"), nb::arg("characters"),
        "False: no text of the messages but their roles holds any of `characters`, and all of them are texts.");
}

}  // namespace fmo
