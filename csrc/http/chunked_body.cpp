#include "http/chunked_body.h"

#include <algorithm>

#include "http/request_head.h"

namespace fmo::http {
namespace {

// ";name=value;name…": nobody reads them. Quoted values, which nobody sends, are not taken.
bool are_extensions(std::string_view text) {
  while (!text.empty()) {
    text.remove_prefix(1);
    const std::string_view extension = text.substr(0, text.find(';'));
    const size_t name_len = std::min(extension.find('='), extension.size());
    const bool has_value = name_len < extension.size();
    if (!is_token(extension.substr(0, name_len)) || (has_value && !is_token(extension.substr(name_len + 1))))
      return false;
    text.remove_prefix(extension.size());
  }
  return true;
}

}  // namespace

bool ChunkedBody::feed(std::string_view& data, std::string& body) {
  while (!data.empty() && state_ != State::whole) {
    if (state_ == State::data) {
      const size_t num_bytes = std::min(data.size(), static_cast<size_t>(num_data_bytes_left_));
      body.append(data.substr(0, num_bytes));
      data.remove_prefix(num_bytes);
      num_data_bytes_left_ -= static_cast<int64_t>(num_bytes);
      num_line_bytes_ = 0;
      if (num_data_bytes_left_ == 0) state_ = State::data_end;
    } else if (!take_line(data)) {
      return false;
    }
  }
  return true;
}

// Collects a line up to its LF; a whole one is looked at. False: malformed or too long.
bool ChunkedBody::take_line(std::string_view& data) {
  const size_t line_feed = data.find('\n');
  const size_t num_bytes = std::min(line_feed, data.size() - 1) + 1;
  num_line_bytes_ += static_cast<int64_t>(num_bytes);
  if (num_line_bytes_ > max_line_bytes_) return false;
  line_.append(data.substr(0, num_bytes));
  data.remove_prefix(num_bytes);
  if (line_feed == std::string_view::npos) return true;
  if (line_.size() < 2 || line_[line_.size() - 2] != '\r') return false;
  line_.resize(line_.size() - 2);
  const bool is_good = end_line();
  line_.clear();
  return is_good;
}

bool ChunkedBody::end_line() {
  if (state_ == State::data_end) {
    state_ = State::size;
    return line_.empty();
  }
  std::string_view name;
  std::string_view value;
  if (state_ == State::trailer) {
    if (line_.empty()) state_ = State::whole;
    return line_.empty() || (split_field(line_, name, value) && !equals_ignoring_case(name, "content-length") &&
                             !equals_ignoring_case(name, "transfer-encoding"));
  }
  const size_t size_len = std::min(line_.find(';'), line_.size());
  num_data_bytes_left_ = parse_number(std::string_view(line_).substr(0, size_len), 16);
  state_ = num_data_bytes_left_ == 0 ? State::trailer : State::data;
  return num_data_bytes_left_ >= 0 && are_extensions(std::string_view(line_).substr(size_len));
}

}  // namespace fmo::http
