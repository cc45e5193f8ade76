#include "json/unique_names.h"

#include <algorithm>
#include <array>
#include <cstddef>

namespace fmo {
namespace {

constexpr size_t kMaxDepth = 64;           // whatever the bounds say
constexpr size_t kMaxNames = 128;          // of the open objects together
constexpr size_t kMaxNamesPerObject = 64;  // each is compared with all before it

struct OpenValue {
  bool is_object = false;
  size_t first_name = 0;  // of this object, among all names
};

// The end of the string whose opening quote is at `start`: its closing quote, or npos.
size_t string_end(std::string_view json, size_t start, bool& has_escape) {
  has_escape = false;
  size_t pos = start + 1;
  size_t quote = json.find('"', pos);
  while (quote != std::string_view::npos) {
    const size_t escape = json.substr(pos, quote - pos).find('\\');
    if (escape == std::string_view::npos) break;
    has_escape = true;
    pos += escape + 2;
    if (pos > quote) quote = json.find('"', pos);
  }
  return quote;
}

}  // namespace

bool has_unique_names(std::string_view json, const JsonBounds& bounds) {
  const size_t max_depth = std::min(kMaxDepth, bounds.max_depth);
  std::array<OpenValue, kMaxDepth> open;
  std::array<std::string_view, kMaxNames> names;
  size_t depth = 0;
  size_t num_containers = 0;
  size_t num_names = 0;
  bool is_name_next = false;
  for (size_t pos = 0; pos < json.size(); ++pos) {
    const char c = json[pos];
    if (c == '{' || c == '[') {
      if (depth == max_depth || ++num_containers > bounds.max_containers) return false;
      open[depth++] = {c == '{', num_names};
      is_name_next = c == '{';
    } else if (c == '}' || c == ']') {
      if (depth == 0) return false;
      num_names = open[--depth].first_name;
      is_name_next = false;
    } else if (c == ',') {
      is_name_next = depth > 0 && open[depth - 1].is_object;
    } else if (c == '"') {
      bool has_escape = false;
      const size_t end = string_end(json, pos, has_escape);
      if (end == std::string_view::npos) return false;
      if (is_name_next) {
        const auto first = names.begin() + static_cast<std::ptrdiff_t>(open[depth - 1].first_name);
        const auto last = names.begin() + static_cast<std::ptrdiff_t>(num_names);
        const std::string_view name = json.substr(pos + 1, end - pos - 1);
        if (has_escape || num_names == kMaxNames || last - first >= static_cast<std::ptrdiff_t>(kMaxNamesPerObject))
          return false;
        if (std::find(first, last, name) != last) return false;
        names[num_names++] = name;
        is_name_next = false;
      }
      pos = end;
    }
  }
  return true;
}

}  // namespace fmo
