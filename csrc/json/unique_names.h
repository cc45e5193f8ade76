// Whether no object of a JSON text has two fields of the same name: a parser that builds objects keeps one of them and
// says nothing.
#pragma once

#include <string_view>

namespace fmo {

// True: surely so, if `json` is valid. False: perhaps not; names with escapes, many names in one object and deep
// nesting are not looked at.
bool has_unique_names(std::string_view json);

}  // namespace fmo
