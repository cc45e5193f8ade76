// HTTP/1.1 on non-blocking sockets: connections, their requests in order, their answers, and bounds on all of it.
//
//   epoll ─▶ poll(): accept · receive · parse · send what was left · deadlines ─▶ events: request, body, …, gone
//   answer(id, …)  or  begin(id, …) · write(id, …) … write(id, …, last)   ─▶ send, what the kernel does not take waits
//
// One thread, which calls `poll` whenever `fd` is readable; nothing blocks. A connection has one request at a time:
// what comes behind it waits unread, and the answer's end starts it. A head has a size, a number of fields and a time
// to arrive, a body a size and a time, all bodies of the requests in progress a size together; an idle connection is
// closed, as is one that the client half-closes. A client that takes next to nothing of its answer is cut off. One
// connection too many closes the one that is idle longest, or is refused when a request runs on each. What exceeds a
// bound or is not HTTP gets one of `Refusals`, and the end.
#pragma once

#include <array>
#include <cstdint>
#include <ctime>
#include <initializer_list>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "http/chunked_body.h"
#include "http/request_head.h"

namespace fmo::http {

struct Limits {
  int64_t max_header_bytes = 0;
  int64_t max_headers = 0;
  int64_t max_body_bytes = 0;
  int64_t max_bodies_bytes = 0;  // of all requests that are being answered
  int64_t max_connections = 0;
  double header_timeout_s = 0;
  double body_timeout_s = 0;
  double write_stall_s = 0;
  double keep_alive_s = 0;
};

// Whole answers, heads included, after which the connection is closed.
struct Refusals {
  std::string malformed, head_timeout, head_too_large, too_many_connections;
};

enum class BodyState { incomplete, whole, malformed, too_large, too_many, timed_out };

struct Event {
  enum class Kind {
    request,  // `head`; `body` if `body_state` is whole
    body,     // which was awaited: whole in `body`, or what is wrong with it
    resumed,  // the client has taken what made it stalled
    gone,     // nobody is there any more to be answered
  };
  Kind kind;
  uint64_t request_id;
  RequestHead head;
  BodyState body_state = BodyState::incomplete;
  std::string body;
};

struct ConnectionState {
  int64_t num_unsent_bytes;
  bool has_stalled;
};

class Server {
 public:
  // `listener`: listening and non-blocking, in the hands of the caller. Throws std::system_error.
  Server(int listener, const Limits& limits, Refusals refusals);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  int fd() const { return epoll_; }  // readable when `poll` has something to do
  // Does what can be done at once, at most a bounded share of it. The events are in order of their happening.
  std::vector<Event> poll();

  // All of these do nothing for a request whose answer is complete or whose client is gone.
  //
  // The body, or what is wrong with it. Incomplete: an event comes; a client that waits to be asked is asked.
  BodyState take_body(uint64_t request_id, std::string& body);
  // The whole answer. `fields`: further ones, as lines. One that was begun cannot be answered otherwise any more: the
  // connection is cut off.
  void answer(uint64_t request_id, int status, std::string_view content_type, std::string_view body,
              std::string_view fields);
  // The head of an answer in parts; it goes out with the first part.
  void begin(uint64_t request_id, int status, std::string_view fields);
  // The next part. True: the client has stalled, and nothing more should be written before it has resumed.
  bool write(uint64_t request_id, std::string_view data, bool is_last);
  void abort(uint64_t request_id);

  // Takes no more connections or requests and closes the idle ones; an answer in progress is the last one.
  void stop();
  int64_t num_connections() const { return num_connections_; }
  std::vector<ConnectionState> connections() const;

 private:
  // Keys and ids are a serial number and, in the last bits, the slot: they tell a connection from those that had its
  // slot before, and a request from those before it.
  using Idle = std::list<uint64_t>;  // keys
  struct Connection {
    explicit Connection(int64_t max_line_bytes) : chunks(max_line_bytes) {}

    int fd = -1;  // once it is lost
    uint64_t key = 0;
    uint32_t epoll_events = 0;  // that it is watched for
    bool is_fresh = true;       // no request so far
    bool in_head = false;       // part of a head is there
    bool in_body = false;       // of `head`, wanted or not
    bool has_stalled = false;
    bool reads_no_more = false;
    bool is_closing = false;  // once what is written has gone out
    std::optional<Idle::iterator> idle;
    int64_t deadline_ns = 0;       // 0: none
    int64_t num_seen_unsent = 0;   // bytes, when they were looked at last
    std::string input;             // received, not parsed yet
    size_t num_scanned_bytes = 0;  // of it, which do not hold the end of a head
    std::string output;            // not sent yet, from `num_sent_bytes` on
    size_t num_sent_bytes = 0;

    // The request that is being answered.
    uint64_t request_id = 0;  // 0: none
    RequestHead head;
    ChunkedBody chunks;
    int64_t num_body_bytes_left = 0;
    int64_t num_body_bytes = 0;  // of its body so far
    std::string body;
    BodyState body_state = BodyState::incomplete;
    bool is_new = false;  // not among the events yet
    bool awaits_body = false;
    bool is_begun = false;
    std::string answer_head;  // begun, not sent yet

    int64_t num_unsent_bytes() const { return static_cast<int64_t>(output.size() - num_sent_bytes); }
  };

  uint64_t new_key(uint64_t slot) { return next_serial_++ << kSlotBits | slot; }
  Connection* in_slot_of(uint64_t key) const;
  Connection* answering(uint64_t request_id) const;
  void watch_listener(bool is_watched);
  void accept_some();
  void add(int fd);
  void make_room();
  void lose(Connection& connection);

  void receive(Connection& connection);
  void end_input(Connection& connection);
  void parse_input(Connection& connection);
  std::string_view parsed(Connection& connection, std::string_view data);
  bool parse_head(Connection& connection, std::string_view& data);
  void keep_partial_head(Connection& connection, std::string_view data);
  void start_request(Connection& connection);
  void announce(Connection& connection);
  void feed_body(Connection& connection, std::string_view& data);
  void end_body(Connection& connection, BodyState state);
  void release_body(Connection& connection);
  uint64_t end_request(Connection& connection);

  void send(Connection& connection, std::string_view data);
  void flush(Connection& connection);
  void append_head(Connection& connection, int status, std::initializer_list<std::string_view> fields,
                   std::string& head);
  void finish(Connection& connection);
  void go_on(Connection& connection);
  void refuse(Connection& connection, const std::string& answer);
  void close_when_sent(Connection& connection);
  void watch(Connection& connection);

  void set_deadline(Connection& connection, double seconds);
  void set_alarm(int64_t time_ns);
  void on_alarm();
  void check_deadlines(int64_t now_ns);
  void on_deadline(Connection& connection);
  void set_idle(Connection& connection, bool is_idle);
  std::string_view date();

  static constexpr int kSlotBits = 24;
  const Limits limits_;
  const Refusals refusals_;
  int listener_;
  int epoll_ = -1;
  int alarm_ = -1;            // timerfd: the next deadline, or at once when something waits for `poll`
  int64_t alarm_ns_ = 0;      // 0: not set
  int64_t deadline_ns_ = 0;   // when those of the connections are looked at; 0: none has one
  int64_t accept_at_ns_ = 0;  // while there are too few descriptors; else 0
  bool is_stopping_ = false;

  std::vector<std::unique_ptr<Connection>> slots_;  // null: free
  std::vector<std::unique_ptr<Connection>> lost_;   // until the next `poll`: they may be in use further up
  std::vector<uint32_t> free_slots_;
  int64_t num_connections_ = 0;
  int64_t num_bodies_bytes_ = 0;
  Idle idle_;  // connections without a request, those that are longest so first
  uint64_t next_serial_ = 1;
  std::vector<uint64_t> resumable_;  // keys of connections with input that may be parsed now
  std::vector<Event> events_;

  std::vector<char> receive_buffer_;
  std::string answer_buffer_;
  time_t date_s_ = 0;
  std::array<char, 32> date_{};
};

}  // namespace fmo::http
