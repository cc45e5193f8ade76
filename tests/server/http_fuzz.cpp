// Clients that send mutated requests in pieces, read or do not, and leave at any moment, on the connections of
// csrc/http; the application answers whole, in parts, late, or cuts off, and streams tokens. Built with sanitizers, which
// end the program.
//
//   http_fuzz NUM_ROUNDS        prints what happened; 1 when something is left at the end, or nothing was ever answered
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "http/server.h"
#include "http/token_streams.h"

namespace {

using fmo::http::BodyState;
using fmo::http::Event;
using fmo::http::Server;
using fmo::http::TokenStream;
using fmo::http::TokenStreams;

const std::vector<std::string> kPieces = {
    "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "POST /a%20b?c HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello",
    "POST /c HTTP/1.1\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n",
    "5\r\nhello\r\n",
    "0\r\nx: y\r\n\r\n",
    "HEAD http://x/y HTTP/1.0\r\nconnection: close\r\n\r\n",
    "\r\n",
    "%",
    ":",
    "content-length: 99999999999999999999\r\n",
    std::string("\0\xff", 2),
    std::string(3000, 'x'),
};

class Fuzz {
 public:
  explicit Fuzz(int listener, const sockaddr_in& address)
      : server_(listener, {1000, 10, 4000, 40'000, 20, 0.05, 0.05, 0.05, 0.05}, {"bad", "late", "large", "many"}),
        address_(address) {
    for (int32_t token_id = 0; token_id < kNumPlainTokens; ++token_id) tokens_.learn(token_id, "\"text\"", 1 + draw(4));
  }

  void round() {
    switch (draw(10)) {
      case 0: connect(); break;
      case 1: if (!clients_.empty() && draw(4) == 0) leave(draw(clients_.size())); break;
      case 2: if (!clients_.empty()) receive(clients_[draw(clients_.size())]); break;
      case 3: if (!requests_.empty()) answer(draw(requests_.size())); break;
      case 4: if (!requests_.empty()) stream(requests_[draw(requests_.size())]); break;
      case 5: step(); break;
      default: if (!clients_.empty()) send(clients_[draw(clients_.size())]);
    }
    poll();
    for (const auto& state : server_.connections()) max_unsent_ = std::max(max_unsent_, state.num_unsent_bytes);
  }

  // Whether all that happens has happened, and nothing is left when the clients are gone.
  bool end() {
    while (!clients_.empty()) leave(0);
    for (int i = 0; i < 200 && server_.num_connections() > 0; ++i) {
      ::usleep(2000);
      poll();
    }
    std::printf("%ld requests, %ld answered, %ld gone, at most %ld unsent bytes, %ld connections left, %ld tokens\n",
                num_requests_, num_answered_, num_gone_, max_unsent_, server_.num_connections(), num_taken_);
    const bool is_used = num_answered_ > 0 && num_gone_ > 0 && num_taken_ > 0;
    return is_used && num_counted_ == num_taken_ && server_.num_connections() == 0;
  }

 private:
  size_t draw(size_t below) { return std::uniform_int_distribution<size_t>(0, below - 1)(random_); }

  void connect() {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    const int small = 4096;
    ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    ::connect(fd, reinterpret_cast<const sockaddr*>(&address_), sizeof address_);
    clients_.push_back(fd);
  }

  void leave(size_t client) {
    if (draw(2) == 0) {
      const linger hard{1, 0};
      ::setsockopt(clients_[client], SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    }
    ::close(clients_[client]);
    clients_.erase(clients_.begin() + static_cast<std::ptrdiff_t>(client));
  }

  void send(int fd) {
    std::string data;
    for (size_t i = 0, num = 1 + draw(4); i < num; ++i) data += kPieces[draw(draw(2) == 0 ? 6 : kPieces.size())];
    if (draw(4) == 0) data[draw(data.size())] = static_cast<char>(draw(256));
    if (draw(3) == 0) data.resize(draw(data.size()));
    ::send(fd, data.data(), data.size(), MSG_NOSIGNAL);
  }

  static void receive(int fd) {
    std::vector<char> buffer(100'000);
    ::recv(fd, buffer.data(), buffer.size(), 0);
  }

  void answer(size_t idx) {
    const uint64_t id = requests_[idx];
    std::string body;
    const bool is_over = draw(3) != 0;
    switch (draw(5)) {
      case 0: server_.begin(id, 200, "x: y\r\n"); break;
      case 1: server_.write(id, std::string(draw(50'000), 'a'), is_over); break;
      case 2: server_.abort(id); break;
      case 3: server_.take_body(id, body); break;
      default: server_.answer(id, 200, "text/plain", std::string(draw(200'000), 'b'), "");
    }
    if (!is_over) return;
    server_.answer(id, 503, "text/plain", "", "connection: close\r\n");
    requests_.erase(requests_.begin() + static_cast<std::ptrdiff_t>(idx));
    ++num_answered_;
  }

  // One more engine request with two samples for an answer that is in progress, or no more tokens for it.
  void stream(uint64_t id) {
    const auto [found, is_new] = streams_.try_emplace(id);
    if (!is_new && draw(4) == 0) {
      streams_.erase(found);
      return;
    }
    if (is_new) {
      const std::vector<int64_t> engine_ids{next_engine_id_++, next_engine_id_++};
      found->second = std::make_unique<TokenStream>(tokens_, server_, id, engine_ids, 2);
    }
    server_.begin(id, 200, "");
    found->second->arm(draw(4), {"before", "after", draw(2) == 0 ? "between" : "", static_cast<uint32_t>(draw(2))});
  }

  // Tokens of any request, also of those that are over.
  void step() {
    for (size_t i = 0, num = draw(200); i < num; ++i) {
      const auto engine_id = static_cast<int64_t>(draw(static_cast<size_t>(next_engine_id_) + 1));
      const auto token_id = static_cast<int32_t>(draw(kNumPlainTokens + 1));
      const auto plain = draw(50) == 0 ? std::nullopt : std::optional(token_id);
      num_taken_ += tokens_.take(engine_id, static_cast<int32_t>(draw(2)), plain) ? 1 : 0;
    }
    tokens_.send();
    for (const auto& [id, stream] : streams_) {
      for (const auto& [choice_idx, num] : stream->take_counts()) num_counted_ += num;
    }
  }

  void poll() {
    for (const Event& event : server_.poll()) {
      if (event.kind == Event::Kind::request) {
        requests_.push_back(event.request_id);
        ++num_requests_;
      } else if (event.kind == Event::Kind::gone) {
        std::erase(requests_, event.request_id);
        if (draw(2) == 0) streams_.erase(event.request_id);  // the application may hear of it later
        ++num_gone_;
      }
    }
  }

  static constexpr int32_t kNumPlainTokens = 50;
  Server server_;
  TokenStreams tokens_;
  std::map<uint64_t, std::unique_ptr<TokenStream>> streams_;
  int64_t next_engine_id_ = 1, num_taken_ = 0, num_counted_ = 0;
  sockaddr_in address_;
  std::mt19937_64 random_{1};
  std::vector<int> clients_;
  std::vector<uint64_t> requests_;
  int64_t num_requests_ = 0, num_answered_ = 0, num_gone_ = 0, max_unsent_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const int num_rounds = argc > 1 ? std::atoi(argv[1]) : 1000;
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (::bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(listener, 100) != 0 ||
      ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    std::perror("listen");
    return 2;
  }
  Fuzz fuzz(listener, address);
  for (int i = 0; i < num_rounds; ++i) fuzz.round();
  const bool is_good = fuzz.end();
  ::close(listener);
  return is_good ? 0 : 1;
}
