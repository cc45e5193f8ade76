// A body with `transfer-encoding: chunked`, as it arrives.
//
//   size [;extension] CR LF · data CR LF · … · 0 CR LF · trailer fields · CR LF          trailers are checked and
//   dropped
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fmo::http {

class ChunkedBody {
 public:
  // `max_line_bytes`: of sizes, extensions and trailers between two pieces of data.
  explicit ChunkedBody(int64_t max_line_bytes) : max_line_bytes_(max_line_bytes) {}

  // Takes from the front of `data` what belongs to the body and appends its content to `body`. False: malformed.
  bool feed(std::string_view& data, std::string& body);
  bool is_whole() const { return state_ == State::whole; }

 private:
  enum class State { size, data, data_end, trailer, whole };
  bool take_line(std::string_view& data);
  bool end_line();

  int64_t max_line_bytes_;
  State state_ = State::size;
  int64_t num_data_bytes_left_ = 0;
  int64_t num_line_bytes_ = 0;  // since the last data
  std::string line_;            // as far as it is there, with its CR
};

}  // namespace fmo::http
