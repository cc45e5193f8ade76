// Clients that send mutated requests in pieces, read or do not, and leave at any moment, on the connections of
// csrc/http; the application answers whole, in parts, late, or cuts off. Built with sanitizers, which end the program.
//
//   http_fuzz NUM_ROUNDS        prints what happened; 1 when something is left at the end, or nothing was ever answered
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "http/server.h"

namespace {

using fmo::http::BodyState;
using fmo::http::Event;
using fmo::http::Server;

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
      : server_(listener, {1000, 10, 4000, 20, 0.05, 0.05, 0.05, 0.05}, {"bad", "late", "large", "many"}),
        address_(address) {}

  void round() {
    switch (draw(8)) {
      case 0: connect(); break;
      case 1: if (!clients_.empty() && draw(4) == 0) leave(draw(clients_.size())); break;
      case 2: if (!clients_.empty()) receive(clients_[draw(clients_.size())]); break;
      case 3: if (!requests_.empty()) answer(draw(requests_.size())); break;
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
    std::printf("%ld requests, %ld answered, %ld gone, at most %ld unsent bytes, %ld connections left\n", num_requests_,
                num_answered_, num_gone_, max_unsent_, server_.num_connections());
    return num_answered_ > 0 && num_gone_ > 0 && server_.num_connections() == 0;
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

  void poll() {
    for (const Event& event : server_.poll()) {
      if (event.kind == Event::Kind::request) {
        requests_.push_back(event.request_id);
        ++num_requests_;
      } else if (event.kind == Event::Kind::gone) {
        std::erase(requests_, event.request_id);
        ++num_gone_;
      }
    }
  }

  Server server_;
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
