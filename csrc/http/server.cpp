#include "http/server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <limits>
#include <system_error>
#include <utility>

namespace fmo::http {
namespace {

constexpr int kAcceptedAtOnce = 16;  // then those that are there get their turn: a burst of new ones holds up nobody
constexpr int kServedAtOnce = 64;
constexpr size_t kReceiveBytes = 64 << 10;
constexpr int64_t kStalledBytes = 64 << 10;        // unsent, from which on the client has stalled …
constexpr int64_t kResumedBytes = 16 << 10;        // … until no more than these are left
constexpr int64_t kMinProgressBytes = 16 << 10;    // that a stalled client has to take in `write_stall_s`
constexpr int64_t kSmallBodyBytes = 64 << 10;      // which a body may have however many others there are
constexpr double kLongestS = 1e9;                  // of a deadline: for ever
constexpr int64_t kTickNs = 50'000'000;            // deadlines are looked at no more often
constexpr int64_t kAcceptPauseNs = 1'000'000'000;  // when there are too few descriptors
constexpr uint64_t kListenerKey = 0;               // no connection has it, nor the next one
constexpr uint64_t kAlarmKey = 1;

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::system_error system_error(const char* what) { return {errno, std::generic_category(), what}; }

std::string_view reason_phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 500:
      return "Internal Server Error";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "";  // which the format allows
  }
}

void append_number(std::string& text, uint64_t number, int base) {
  std::array<char, 20> digits{};
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), number, base);
  text.append(digits.data(), end.ptr);
}

}  // namespace

Server::Server(int listener, const Limits& limits, Refusals refusals)
    : limits_(limits), refusals_(std::move(refusals)), listener_(listener), receive_buffer_(kReceiveBytes) {
  epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
  alarm_ = ::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  const int yes = 1;
  ::setsockopt(listener_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);  // connections inherit it
  epoll_event event{EPOLLIN, {.u64 = kAlarmKey}};
  if (epoll_ < 0 || alarm_ < 0 || ::epoll_ctl(epoll_, EPOLL_CTL_ADD, alarm_, &event) != 0) throw system_error("epoll");
  watch_listener(true);
}

Server::~Server() {
  for (const auto& connection : slots_) {
    if (connection != nullptr) ::close(connection->fd);
  }
  if (alarm_ >= 0) ::close(alarm_);
  if (epoll_ >= 0) ::close(epoll_);
}

std::vector<Event> Server::poll() {
  lost_.clear();
  std::array<epoll_event, kServedAtOnce> ready;  // NOLINT: the kernel fills it
  const int num_ready = ::epoll_wait(epoll_, ready.data(), kServedAtOnce, 0);
  for (int i = 0; i < num_ready; ++i) {
    const uint64_t key = ready[static_cast<size_t>(i)].data.u64;
    const uint32_t what = ready[static_cast<size_t>(i)].events;
    if (key == kListenerKey) {
      accept_some();
    } else if (key == kAlarmKey) {
      on_alarm();
    } else if (Connection* connection = in_slot_of(key); connection != nullptr && connection->key == key) {
      if ((what & (EPOLLERR | EPOLLHUP)) != 0) lose(*connection);
      if ((what & EPOLLOUT) != 0) flush(*connection);
      if ((what & EPOLLIN) != 0) receive(*connection);
      if ((what & EPOLLRDHUP) != 0) end_input(*connection);
    }
  }
  return std::exchange(events_, {});
}

void Server::stop() {
  is_stopping_ = true;
  watch_listener(false);
  listener_ = -1;
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot] != nullptr && slots_[slot]->request_id == 0) close_when_sent(*slots_[slot]);
  }
}

std::vector<ConnectionState> Server::connections() const {
  std::vector<ConnectionState> states;
  for (const auto& connection : slots_) {
    if (connection != nullptr) states.push_back({connection->num_unsent_bytes(), connection->has_stalled});
  }
  return states;
}

// Connections ---------------------------------------------------------------------------------------------------------

Server::Connection* Server::in_slot_of(uint64_t key) const {
  const uint64_t slot = key & ((uint64_t{1} << kSlotBits) - 1);
  return slot < slots_.size() ? slots_[slot].get() : nullptr;
}

Server::Connection* Server::answering(uint64_t request_id) const {
  Connection* connection = in_slot_of(request_id);
  return connection != nullptr && connection->request_id == request_id && request_id != 0 ? connection : nullptr;
}

void Server::watch_listener(bool is_watched) {
  epoll_event event{EPOLLIN, {.u64 = kListenerKey}};
  if (listener_ >= 0) ::epoll_ctl(epoll_, is_watched ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, listener_, &event);
}

void Server::accept_some() {
  for (int i = 0; i < kAcceptedAtOnce; ++i) {
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      add(fd);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      watch_listener(false);
      accept_at_ns_ = now_ns() + kAcceptPauseNs;
      set_alarm(accept_at_ns_);
      return;
    } else if (errno == EAGAIN) {
      return;
    }
  }
}

void Server::add(int fd) {
  make_room();
  if (free_slots_.empty()) {
    free_slots_.push_back(static_cast<uint32_t>(slots_.size()));
    slots_.emplace_back();
  }
  const uint32_t slot = free_slots_.back();
  auto connection = std::make_unique<Connection>(limits_.max_header_bytes);
  connection->fd = fd;
  connection->key = new_key(slot);
  connection->epoll_events = EPOLLIN;
  epoll_event event{EPOLLIN, {.u64 = connection->key}};
  if ((slot >> kSlotBits) != 0 || ::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0) {
    ::close(fd);
    return;
  }
  free_slots_.pop_back();
  slots_[slot] = std::move(connection);
  ++num_connections_;
  set_idle(*slots_[slot], true);
  set_deadline(*slots_[slot], limits_.header_timeout_s);
  receive(*slots_[slot]);  // most clients send at once
}

// When they are too many, the one that is idle longest gives way; who has begun to send a request is told.
void Server::make_room() {
  if (num_connections_ < limits_.max_connections || idle_.empty()) return;
  Connection& oldest = *in_slot_of(idle_.front());
  if (oldest.in_head || !oldest.input.empty()) {
    refuse(oldest, refusals_.too_many_connections);
  } else {
    close_when_sent(oldest);
  }
}

void Server::lose(Connection& connection) {
  if (connection.fd < 0) return;
  if (const uint64_t request_id = end_request(connection); request_id != 0 && !connection.is_new) {
    events_.push_back({Event::Kind::gone, request_id, {}, {}, {}});
    set_alarm(now_ns());  // if it is not `poll` that found out
  }
  set_idle(connection, false);
  ::close(std::exchange(connection.fd, -1));
  connection.reads_no_more = true;
  --num_connections_;
  const auto slot = static_cast<uint32_t>(connection.key & ((uint64_t{1} << kSlotBits) - 1));
  free_slots_.push_back(slot);
  lost_.push_back(std::move(slots_[slot]));
}

void Server::set_idle(Connection& connection, bool is_idle) {
  if (is_idle == connection.idle.has_value()) return;
  if (is_idle) {
    connection.idle = idle_.insert(idle_.end(), connection.key);
  } else {
    idle_.erase(*connection.idle);
    connection.idle.reset();
  }
}

// What it is watched for. Who has sent more than one request, or does not read, is not read from, but heard when it
// leaves.
void Server::watch(Connection& connection) {
  if (connection.fd < 0) return;
  const bool has_request = connection.request_id != 0;
  const bool reads = !connection.reads_no_more &&
                     (connection.in_body || (has_request ? connection.input.empty() : !connection.has_stalled));
  const uint32_t input = reads ? EPOLLIN : connection.reads_no_more ? 0U : EPOLLRDHUP;
  const uint32_t events = input | (connection.num_unsent_bytes() > 0 ? EPOLLOUT : 0U);
  if (events == connection.epoll_events) return;
  connection.epoll_events = events;
  epoll_event event{events, {.u64 = connection.key}};
  ::epoll_ctl(epoll_, EPOLL_CTL_MOD, connection.fd, &event);
}

// Requests ------------------------------------------------------------------------------------------------------------

void Server::receive(Connection& connection) {
  if (connection.reads_no_more) return;
  const ssize_t num_bytes = ::recv(connection.fd, receive_buffer_.data(), receive_buffer_.size(), 0);
  if (num_bytes < 0) {
    if (errno != EAGAIN && errno != EINTR) lose(connection);
    return;
  }
  if (num_bytes == 0) {
    end_input(connection);
    return;
  }
  const std::string_view data(receive_buffer_.data(), static_cast<size_t>(num_bytes));
  if (connection.input.empty()) {
    connection.input = parsed(connection, data);
  } else {
    connection.input += data;
    parse_input(connection);
  }
  watch(connection);
}

// The client has closed its side, which ends what runs for it.
void Server::end_input(Connection& connection) {
  if (const uint64_t request_id = end_request(connection); request_id != 0)
    events_.push_back({Event::Kind::gone, request_id, {}, {}, {}});
  close_when_sent(connection);
}

void Server::parse_input(Connection& connection) {
  connection.input = std::string(parsed(connection, connection.input));
}

// What is left of `data`. At most one request becomes an event, with its body if that is whole.
std::string_view Server::parsed(Connection& connection, std::string_view data) {
  while (!data.empty() && !connection.reads_no_more) {
    if (connection.in_body) {
      feed_body(connection, data);
    } else if (connection.request_id != 0 || connection.has_stalled || !parse_head(connection, data)) {
      break;
    }
  }
  if (connection.is_new) announce(connection);
  return connection.reads_no_more ? std::string_view() : data;
}

// False: it is not whole, or it is the end.
bool Server::parse_head(Connection& connection, std::string_view& data) {
  if (!connection.in_head) connection.num_scanned_bytes = 0;
  while (data.substr(0, 2) == "\r\n") {  // of clients that end a body with an empty line
    data.remove_prefix(2);
    connection.num_scanned_bytes = 0;
  }
  const size_t end =
      data.find("\r\n\r\n", connection.num_scanned_bytes - std::min<size_t>(connection.num_scanned_bytes, 3));
  const size_t num_bytes = end == std::string_view::npos ? data.size() : end + 2;
  if (num_bytes > static_cast<size_t>(limits_.max_header_bytes)) {
    refuse(connection, refusals_.head_too_large);
    return false;
  }
  if (end == std::string_view::npos) {
    keep_partial_head(connection, data);
    return false;
  }
  const HeadError error = parse_request_head(data.substr(0, num_bytes), limits_.max_headers, connection.head);
  data.remove_prefix(num_bytes + 2);
  connection.in_head = false;
  if (error != HeadError::none) {
    refuse(connection, error == HeadError::malformed ? refusals_.malformed : refusals_.head_too_large);
    return false;
  }
  start_request(connection);
  return true;
}

void Server::keep_partial_head(Connection& connection, std::string_view data) {
  const std::string_view unseen = data.substr(connection.num_scanned_bytes);
  const bool is_text = std::all_of(unseen.begin(), unseen.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 || c == '\r' || c == '\n' || c == '\t';
  });
  if (!is_text) {  // another protocol, which would wait for an answer until the deadline
    refuse(connection, refusals_.malformed);
    return;
  }
  connection.num_scanned_bytes = data.size();
  if (data.empty() || connection.in_head) return;
  connection.in_head = true;
  if (!connection.is_fresh) set_deadline(connection, limits_.header_timeout_s);
}

void Server::start_request(Connection& connection) {
  if (num_connections_ > limits_.max_connections) {
    refuse(connection, refusals_.too_many_connections);
    return;
  }
  const RequestHead& head = connection.head;
  connection.is_fresh = false;
  connection.deadline_ns = 0;
  set_idle(connection, false);
  connection.request_id = new_key(connection.key & ((uint64_t{1} << kSlotBits) - 1));
  connection.is_new = true;
  connection.in_body = head.is_chunked || head.content_length > 0;
  connection.body_state = connection.in_body ? BodyState::incomplete : BodyState::whole;
  connection.num_body_bytes_left = head.content_length;
  if (head.content_length > limits_.max_body_bytes) connection.body_state = BodyState::too_large;
  if (head.is_chunked) connection.chunks = ChunkedBody(limits_.max_header_bytes);
}

void Server::announce(Connection& connection) {
  connection.is_new = false;
  if (connection.request_id == 0) return;
  // Who is idle afterwards keeps no texts.
  std::string path = std::exchange(connection.head.path, {});
  std::string fields = std::exchange(connection.head.fields, {});
  Event event{Event::Kind::request, connection.request_id, connection.head, connection.body_state, {}};
  event.head.path = std::move(path);
  event.head.fields = std::move(fields);
  if (connection.body_state == BodyState::whole) event.body = std::exchange(connection.body, {});
  events_.push_back(std::move(event));
}

// Takes from `data` what belongs to the body. What nobody wants to have is dropped.
void Server::feed_body(Connection& connection, std::string_view& data) {
  bool is_well_formed = true;
  const size_t num_bytes_before = connection.body.size();
  if (connection.head.is_chunked) {
    is_well_formed = connection.chunks.feed(data, connection.body);
    connection.in_body = is_well_formed && !connection.chunks.is_whole();
  } else {
    const size_t num_bytes = std::min(data.size(), static_cast<size_t>(connection.num_body_bytes_left));
    connection.body.append(data.substr(0, num_bytes));
    data.remove_prefix(num_bytes);
    connection.num_body_bytes_left -= static_cast<int64_t>(num_bytes);
    connection.in_body = connection.num_body_bytes_left > 0;
  }
  const bool is_wanted = connection.request_id != 0 && connection.body_state == BodyState::incomplete;
  if (is_wanted) {
    const auto num_new_bytes = static_cast<int64_t>(connection.body.size() - num_bytes_before);
    connection.num_body_bytes += num_new_bytes;
    num_bodies_bytes_ += num_new_bytes;
  }
  if (!is_wanted) {
    connection.body.clear();
  } else if (connection.num_body_bytes > limits_.max_body_bytes) {
    end_body(connection, BodyState::too_large);
  } else if (connection.num_body_bytes > kSmallBodyBytes && num_bodies_bytes_ > limits_.max_bodies_bytes) {
    end_body(connection, BodyState::too_many);
  } else if (!is_well_formed) {
    end_body(connection, BodyState::malformed);
  } else if (!connection.in_body) {
    end_body(connection, BodyState::whole);
  }
  if (is_well_formed) return;
  if (connection.request_id == 0) refuse(connection, refusals_.malformed);
  connection.reads_no_more = true;  // nobody knows where the next request begins
}

void Server::release_body(Connection& connection) {
  connection.body = std::string();
  num_bodies_bytes_ -= std::exchange(connection.num_body_bytes, 0);
}

// Its id, 0 if there is none.
uint64_t Server::end_request(Connection& connection) {
  release_body(connection);
  return std::exchange(connection.request_id, 0);
}

void Server::end_body(Connection& connection, BodyState state) {
  connection.body_state = state;
  if (state != BodyState::whole) release_body(connection);
  if (!connection.awaits_body) return;
  connection.awaits_body = false;
  connection.deadline_ns = 0;
  events_.push_back({Event::Kind::body, connection.request_id, {}, state, std::move(connection.body)});
  connection.body = std::string();
}

BodyState Server::take_body(uint64_t request_id, std::string& body) {
  Connection* connection = answering(request_id);
  if (connection == nullptr) return BodyState::incomplete;  // that the client is gone is about to be told
  const BodyState state = connection->body_state;
  if (state == BodyState::whole) body = std::exchange(connection->body, {});
  if (state == BodyState::incomplete) {
    connection->awaits_body = true;
    set_deadline(*connection, limits_.body_timeout_s);
    if (connection->head.expects_continue) send(*connection, "HTTP/1.1 100 Continue\r\n\r\n");
  }
  return state;
}

// Answers -------------------------------------------------------------------------------------------------------------

void Server::append_head(Connection& connection, int status, std::initializer_list<std::string_view> fields,
                         std::string& head) {
  bool says_close = false;
  head += "HTTP/1.1 ";
  append_number(head, static_cast<uint64_t>(status), 10);
  (head += ' ').append(reason_phrase(status)).append("\r\ndate: ").append(date()).append("\r\n");
  for (const std::string_view lines : fields) {
    head += lines;
    says_close = says_close || lines.find("connection: close\r\n") != std::string_view::npos;
  }
  if (is_stopping_ || connection.reads_no_more || says_close) connection.head.keeps_alive = false;
  if (!connection.head.keeps_alive && !says_close) head += "connection: close\r\n";
  head += "\r\n";
}

void Server::answer(uint64_t request_id, int status, std::string_view content_type, std::string_view body,
                    std::string_view fields) {
  Connection* connection = answering(request_id);
  if (connection == nullptr) return;
  if (connection->is_begun) {
    lose(*connection);
    return;
  }
  std::string length;
  append_number(length, body.size(), 10);
  answer_buffer_.clear();
  append_head(*connection, status, {"content-type: ", content_type, "\r\ncontent-length: ", length, "\r\n", fields},
              answer_buffer_);
  if (connection->head.method != "HEAD") answer_buffer_ += body;
  send(*connection, answer_buffer_);
  finish(*connection);
}

void Server::begin(uint64_t request_id, int status, std::string_view fields) {
  Connection* connection = answering(request_id);
  if (connection == nullptr || connection->is_begun) return;
  connection->is_begun = true;
  if (!connection->head.is_1_1)
    connection->head.keeps_alive = false;  // the end of the connection is that of the answer
  append_head(*connection, status, {fields, connection->head.is_1_1 ? "transfer-encoding: chunked\r\n" : ""},
              connection->answer_head);
}

bool Server::write(uint64_t request_id, std::string_view data, bool is_last) {
  Connection* connection = answering(request_id);
  if (connection == nullptr || !connection->is_begun) return false;
  answer_buffer_ = std::exchange(connection->answer_head, {});
  const bool is_chunked = connection->head.is_1_1;
  if (is_chunked && !data.empty()) {
    append_number(answer_buffer_, data.size(), 16);
    answer_buffer_ += "\r\n";
  }
  answer_buffer_ += data;
  if (is_chunked && !data.empty()) answer_buffer_ += "\r\n";
  if (is_chunked && is_last) answer_buffer_ += "0\r\n\r\n";
  send(*connection, answer_buffer_);
  if (is_last) finish(*connection);
  return connection->has_stalled;
}

void Server::abort(uint64_t request_id) {
  if (Connection* connection = answering(request_id); connection != nullptr) lose(*connection);
}

void Server::send(Connection& connection, std::string_view data) {
  if (connection.fd < 0) return;
  if (connection.num_unsent_bytes() == 0) {
    const ssize_t num_bytes = ::send(connection.fd, data.data(), data.size(), MSG_NOSIGNAL);
    if (num_bytes < 0 && errno != EAGAIN && errno != EINTR) {
      lose(connection);
      return;
    }
    data.remove_prefix(static_cast<size_t>(std::max<ssize_t>(num_bytes, 0)));
    if (data.empty()) return;
  }
  connection.output += data;
  if (connection.num_unsent_bytes() > kStalledBytes && !connection.has_stalled) {
    connection.has_stalled = true;
    connection.num_seen_unsent = connection.num_unsent_bytes();
    set_deadline(connection, limits_.write_stall_s);
  }
  watch(connection);
}

void Server::flush(Connection& connection) {
  if (connection.fd < 0 || connection.num_unsent_bytes() == 0) return;
  const ssize_t num_bytes = ::send(connection.fd, connection.output.data() + connection.num_sent_bytes,
                                   static_cast<size_t>(connection.num_unsent_bytes()), MSG_NOSIGNAL);
  if (num_bytes < 0) {
    if (errno != EAGAIN && errno != EINTR) lose(connection);
    return;
  }
  connection.num_sent_bytes += static_cast<size_t>(num_bytes);
  if (connection.num_unsent_bytes() == 0) {
    connection.output = std::string();
    connection.num_sent_bytes = 0;
    if (connection.is_closing) {
      lose(connection);
      return;
    }
  } else if (connection.num_sent_bytes > connection.output.size() / 2) {
    connection.output.erase(0, std::exchange(connection.num_sent_bytes, 0));
  }
  if (connection.has_stalled && !connection.is_closing && connection.num_unsent_bytes() <= kResumedBytes) {
    connection.has_stalled = false;
    connection.deadline_ns = 0;
    if (connection.request_id == 0) {
      go_on(connection);
    } else {
      events_.push_back({Event::Kind::resumed, connection.request_id, {}, {}, {}});
    }
  }
  watch(connection);
}

// The answer is written: the next request, or the end.
void Server::finish(Connection& connection) {
  end_request(connection);
  connection.is_begun = connection.awaits_body = false;
  if (!connection.head.keeps_alive || connection.reads_no_more || is_stopping_) {
    close_when_sent(connection);
  } else {
    go_on(connection);
  }
}

// Nothing is being answered. The client has a limited time for the next request, and for a body that nobody wants.
void Server::go_on(Connection& connection) {
  if (connection.fd < 0) return;
  if (!connection.has_stalled) {  // who does not read gets no further answer
    set_idle(connection, true);
    set_deadline(connection, limits_.keep_alive_s);
    if (!connection.input.empty()) {  // not at once: many short requests would nest
      resumable_.push_back(connection.key);
      set_alarm(now_ns());
    }
  }
  watch(connection);
}

void Server::refuse(Connection& connection, const std::string& answer) {
  if (connection.is_closing) return;
  send(connection, answer);
  close_when_sent(connection);
}

// Or could not be for `write_stall_s`.
void Server::close_when_sent(Connection& connection) {
  if (connection.fd < 0) return;
  if (connection.num_unsent_bytes() == 0) {
    lose(connection);
    return;
  }
  connection.reads_no_more = connection.is_closing = true;
  connection.num_seen_unsent = connection.num_unsent_bytes();
  set_idle(connection, false);
  set_deadline(connection, limits_.write_stall_s);
  watch(connection);
}

std::string_view Server::date() {
  static constexpr const char* kDays[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  static constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                            "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  if (const time_t now_s = ::time(nullptr); now_s != date_s_) {
    date_s_ = now_s;
    tm utc{};
    ::gmtime_r(&now_s, &utc);
    std::snprintf(date_.data(), date_.size(), "%s, %02d %s %04d %02d:%02d:%02d GMT", kDays[utc.tm_wday], utc.tm_mday,
                  kMonths[utc.tm_mon], utc.tm_year + 1900, utc.tm_hour, utc.tm_min, utc.tm_sec);
  }
  return date_.data();
}

// Deadlines -----------------------------------------------------------------------------------------------------------

void Server::set_deadline(Connection& connection, double seconds) {
  connection.deadline_ns = now_ns() + static_cast<int64_t>(std::min(seconds, kLongestS) * 1e9);
  if (deadline_ns_ == 0 || connection.deadline_ns < deadline_ns_) {
    deadline_ns_ = connection.deadline_ns;
    set_alarm(deadline_ns_);
  }
}

void Server::set_alarm(int64_t time_ns) {
  if (alarm_ns_ != 0 && alarm_ns_ <= time_ns) return;
  alarm_ns_ = time_ns;
  itimerspec spec{};
  spec.it_value = {time_ns / 1'000'000'000, time_ns % 1'000'000'000};
  ::timerfd_settime(alarm_, TFD_TIMER_ABSTIME, &spec, nullptr);
}

void Server::on_alarm() {
  uint64_t num_expirations = 0;
  if (::read(alarm_, &num_expirations, sizeof num_expirations) < 0) return;
  alarm_ns_ = 0;
  for (const uint64_t key : std::exchange(resumable_, {})) {
    if (Connection* connection = in_slot_of(key); connection != nullptr && connection->key == key) {
      parse_input(*connection);
      watch(*connection);
    }
  }
  const int64_t now = now_ns();
  if (accept_at_ns_ != 0 && accept_at_ns_ <= now) {
    accept_at_ns_ = 0;
    watch_listener(true);
  }
  if (deadline_ns_ != 0 && deadline_ns_ <= now) check_deadlines(now);
  if (accept_at_ns_ != 0) set_alarm(accept_at_ns_);
  if (deadline_ns_ != 0) set_alarm(deadline_ns_);
}

void Server::check_deadlines(int64_t now) {
  deadline_ns_ = 0;
  int64_t next_ns = std::numeric_limits<int64_t>::max();
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    Connection* connection = slots_[slot].get();
    if (connection == nullptr || connection->deadline_ns == 0) continue;
    if (connection->deadline_ns <= now) {
      connection->deadline_ns = 0;
      on_deadline(*connection);
    }
    if (connection->fd >= 0 && connection->deadline_ns != 0) next_ns = std::min(next_ns, connection->deadline_ns);
  }
  if (next_ns != std::numeric_limits<int64_t>::max()) deadline_ns_ = std::max(next_ns, now + kTickNs);
}

void Server::on_deadline(Connection& connection) {
  if (connection.has_stalled || connection.is_closing) {
    // A client that reads slowly is waited for, one that hardly reads is not.
    if (connection.num_unsent_bytes() + kMinProgressBytes > connection.num_seen_unsent) {
      lose(connection);
      return;
    }
    connection.num_seen_unsent = connection.num_unsent_bytes();
    set_deadline(connection, limits_.write_stall_s);
  } else if (connection.awaits_body) {
    end_body(connection, BodyState::timed_out);
  } else if (connection.in_head || connection.is_fresh) {
    refuse(connection, refusals_.head_timeout);
  } else {
    close_when_sent(connection);
  }
}

}  // namespace fmo::http
