// The head of an HTTP/1.1 or 1.0 request: request line and fields, parsed in one go once its last empty line is there.
//
// Strict: what two servers might read differently is refused, never repaired. Lines end in CR LF; no folded lines, no
// space before a colon, no control characters; a body has one Content-Length of digits or is `chunked` and nothing
// else, never both. Methods are those of RFC 9110 and PATCH; an upgrade is not offered, so asking for one is ignored.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fmo::http {

enum class HeadError { none, malformed, too_many_fields };

struct RequestHead {
  std::string_view method;     // of a table, not of the request
  std::string path;            // with %xx decoded, without the query: any bytes
  std::string fields;          // "\nname:value\nname:value\n", names in lower case; "\n" if there are none
  int64_t content_length = 0;  // of a body that is not chunked
  bool is_chunked = false;
  bool is_1_1 = false;
  bool keeps_alive = false;  // another request may follow
  bool expects_continue = false;
};

// `lines`: request line and fields, each with its CR LF, without the empty line. `head` holds the result if it is none.
HeadError parse_request_head(std::string_view lines, int64_t max_fields, RequestHead& head);

// Whether `line` (without CR LF) is a well-formed field; then its parts, the value without white space around it.
bool split_field(std::string_view line, std::string_view& name, std::string_view& value);

// The number that `digits` spell, all of them; -1 if they do not, or if it is not below 2^53.
int64_t parse_number(std::string_view digits, int base);

// Whether `text` consists of the characters of names, at least one.
bool is_token(std::string_view text);

bool equals_ignoring_case(std::string_view text, std::string_view lower_case);

}  // namespace fmo::http
