#include "http/request_head.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace fmo::http {
namespace {

constexpr std::array<std::string_view, 9> kMethods = {"GET", "POST",  "HEAD",  "OPTIONS", "DELETE",
                                                      "PUT", "PATCH", "TRACE", "CONNECT"};
constexpr std::string_view kLineEnd = "\r\n";
constexpr std::string_view kHostChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_";
constexpr std::string_view kAddressChars = "ABCDEFabcdef0123456789.:";  // of IPv6, in brackets
constexpr int64_t kMaxNumber = int64_t{1} << 53;

// The characters of names and methods ("token" of RFC 9110, 5.6.2).
constexpr std::array<bool, 256> make_token_chars() {
  std::array<bool, 256> result{};
  for (int c = '0'; c <= '9'; ++c) result[static_cast<size_t>(c)] = true;
  for (int c = 'a'; c <= 'z'; ++c) result[static_cast<size_t>(c)] = result[static_cast<size_t>(c - 32)] = true;
  for (const char c : std::string_view("!#$%&'*+-.^_`|~")) result[static_cast<unsigned char>(c)] = true;
  return result;
}
constexpr std::array<bool, 256> kTokenChars = make_token_chars();

bool is_token_char(char c) { return kTokenChars[static_cast<unsigned char>(c)]; }
bool is_value_char(char c) { return c == '\t' || (static_cast<unsigned char>(c) >= 0x20 && c != 0x7f); }
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

// A tab at the end stays: of "chunked\t", servers differ.
std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

// Of a comma-separated list, in any case.
bool has_item(std::string_view list, std::string_view lower_case) {
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    if (equals_ignoring_case(trimmed(list.substr(0, comma)), lower_case)) return true;
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return false;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c = lower(c);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// What is not %xx stays as it is.
std::string decoded(std::string_view path) {
  std::string result;
  result.reserve(path.size());
  for (size_t i = 0; i < path.size(); ++i) {
    const bool is_escape =
        path[i] == '%' && i + 2 < path.size() && hex_digit(path[i + 1]) >= 0 && hex_digit(path[i + 2]) >= 0;
    result += is_escape ? static_cast<char>(hex_digit(path[i + 1]) * 16 + hex_digit(path[i + 2])) : path[i];
    if (is_escape) i += 2;
  }
  return result;
}

bool is_port(std::string_view digits) {
  const int64_t port = parse_number(digits, 10);
  return digits.empty() || (port >= 0 && port < 65536);
}

// "name", "name:80", "[::1]:80"
bool is_host(std::string_view host) {
  const bool is_address = host.substr(0, 1) == "[";
  const size_t name_len = std::min(is_address ? host.find(']') : host.find(':'), host.size());
  const std::string_view name = host.substr(is_address, name_len - is_address);
  std::string_view port = host.substr(name_len);
  if (is_address && !port.empty()) port.remove_prefix(1);
  return !name.empty() && name_len + is_address <= host.size() &&
         name.find_first_not_of(is_address ? kAddressChars : kHostChars) == std::string_view::npos &&
         (port.empty() || (port.front() == ':' && is_port(port.substr(1))));
}

// "/path?query", or a URL with a host, as proxies get it.
bool parse_target(std::string_view target, std::string& path) {
  if (std::any_of(target.begin(), target.end(), [](char c) { return c <= 0x20 || c >= 0x7f; })) return false;
  for (const std::string_view scheme : {std::string_view("http://"), std::string_view("https://")}) {
    if (!equals_ignoring_case(target.substr(0, scheme.size()), scheme)) continue;
    target.remove_prefix(scheme.size());
    const size_t host_len = std::min(target.find_first_of("/?#"), target.size());
    if (!is_host(target.substr(0, host_len))) return false;
    target.remove_prefix(host_len);
    path = target.empty() || target.front() != '/' ? "/" : decoded(target.substr(0, target.find_first_of("?#")));
    return true;
  }
  if (target.empty() || target.front() != '/') return false;
  path = decoded(target.substr(0, target.find_first_of("?#")));
  return true;
}

bool parse_request_line(std::string_view line, RequestHead& head) {
  const size_t method_len = line.find(' ');
  const size_t version_begin = line.rfind(' ');
  if (method_len == std::string_view::npos || version_begin == method_len) return false;
  const auto* method = std::find(kMethods.begin(), kMethods.end(), line.substr(0, method_len));
  if (method == kMethods.end()) return false;
  head.method = *method;
  const std::string_view version = line.substr(version_begin + 1);
  if (version != "HTTP/1.1" && version != "HTTP/1.0") return false;
  head.is_1_1 = version.back() == '1';
  return parse_target(line.substr(method_len + 1, version_begin - method_len - 1), head.path);
}

// What the fields seen so far say of body and connection.
struct Framing {
  int num_lengths = 0;
  int num_encodings = 0;
  int num_hosts = 0;
  bool closes = false;
};

bool apply_field(std::string_view name, std::string_view value, RequestHead& head, Framing& framing) {
  if (equals_ignoring_case(name, "content-length")) {
    head.content_length = parse_number(value, 10);
    return ++framing.num_lengths == 1 && head.content_length >= 0;
  }
  if (equals_ignoring_case(name, "transfer-encoding")) {
    head.is_chunked = true;
    return ++framing.num_encodings == 1 && head.is_1_1 && equals_ignoring_case(value, "chunked");
  }
  if (equals_ignoring_case(name, "connection")) {
    framing.closes = framing.closes || has_item(value, "close");
  } else if (equals_ignoring_case(name, "expect")) {
    head.expects_continue = head.is_1_1 && equals_ignoring_case(value, "100-continue");
  } else if (equals_ignoring_case(name, "host")) {
    return ++framing.num_hosts == 1;
  }
  return true;
}

}  // namespace

bool is_token(std::string_view text) { return !text.empty() && std::all_of(text.begin(), text.end(), is_token_char); }

bool equals_ignoring_case(std::string_view text, std::string_view lower_case) {
  return text.size() == lower_case.size() &&
         std::equal(text.begin(), text.end(), lower_case.begin(), [](char a, char b) { return lower(a) == b; });
}

int64_t parse_number(std::string_view digits, int base) {
  int64_t number = -1;
  const char* end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, number, base);
  if (error != std::errc{} || stop != end || digits.front() == '-' || number >= kMaxNumber) return -1;
  return number;
}

bool split_field(std::string_view line, std::string_view& name, std::string_view& value) {
  const size_t name_len = line.find(':');
  if (name_len == 0 || name_len == std::string_view::npos) return false;
  name = line.substr(0, name_len);
  value = trimmed(line.substr(name_len + 1));
  return std::all_of(name.begin(), name.end(), is_token_char) && std::all_of(value.begin(), value.end(), is_value_char);
}

HeadError parse_request_head(std::string_view lines, int64_t max_fields, RequestHead& head) {
  head = RequestHead{};
  size_t line_len = lines.find(kLineEnd);
  if (line_len == std::string_view::npos || !parse_request_line(lines.substr(0, line_len), head))
    return HeadError::malformed;
  head.fields.reserve(lines.size());
  head.fields = '\n';
  Framing framing;
  int64_t num_fields = 0;
  for (lines.remove_prefix(line_len + 2); !lines.empty(); lines.remove_prefix(line_len + 2)) {
    line_len = lines.find(kLineEnd);
    std::string_view name;
    std::string_view value;
    if (line_len == std::string_view::npos || !split_field(lines.substr(0, line_len), name, value))
      return HeadError::malformed;
    if (++num_fields > max_fields) return HeadError::too_many_fields;
    if (!apply_field(name, value, head, framing)) return HeadError::malformed;
    for (const char c : name) head.fields += lower(c);
    (head.fields += ':').append(value) += '\n';
  }
  if (framing.num_lengths + framing.num_encodings > 1) return HeadError::malformed;
  head.keeps_alive = head.is_1_1 && !framing.closes;
  return HeadError::none;
}

}  // namespace fmo::http
