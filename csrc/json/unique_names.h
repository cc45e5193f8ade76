// Whether no object of a JSON text has two fields of the same name: a parser that builds objects keeps one of them and
// says nothing.
#pragma once

#include <cstddef>
#include <string_view>

namespace fmo {

// What a text may hold to be looked at.
struct JsonBounds {
  size_t max_depth;
  size_t max_containers;  // arrays and objects
};

// True: surely so, if `json` is valid, and within `bounds`. False: perhaps not; names with escapes, many names in one
// object and deep nesting are not looked at.
bool has_unique_names(std::string_view json, const JsonBounds& bounds);

}  // namespace fmo
