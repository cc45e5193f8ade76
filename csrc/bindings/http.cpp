// `_core.HttpServer`, `_core.TokenStreams`: csrc/http for Python. They keep the GIL: no call waits for anything.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "bindings/bindings.h"
#include "http/server.h"
#include "http/token_streams.h"

namespace nb = nanobind;

namespace fmo {
namespace {

using http::BodyState;
using http::Event;

std::string_view view(const nb::bytes& bytes) { return {static_cast<const char*>(bytes.data()), bytes.size()}; }

nb::object bytes_of(const std::string& data) { return nb::bytes(data.data(), data.size()); }

// Bytes if it is whole, None if it may still come, else the word for what is wrong.
nb::object body_object(BodyState state, const std::string& body) {
  switch (state) {
    case BodyState::whole:
      return bytes_of(body);
    case BodyState::incomplete:
      return nb::none();
    case BodyState::malformed:
      return nb::str("malformed");
    case BodyState::too_large:
      return nb::str("too_large");
    case BodyState::too_many:
      return nb::str("too_many");
    case BodyState::timed_out:
      return nb::str("timed_out");
  }
  return nb::none();
}

nb::object text_of(const std::string& bytes) {
  const auto num_bytes = static_cast<Py_ssize_t>(bytes.size());
  return nb::steal<nb::object>(PyUnicode_DecodeUTF8(bytes.data(), num_bytes, "replace"));
}

nb::tuple event_tuple(const Event& event) {
  switch (event.kind) {
    case Event::Kind::request:
      return nb::make_tuple(
          "request", event.request_id,
          nb::make_tuple(nb::str(event.head.method.data(), event.head.method.size()), text_of(event.head.path),
                         bytes_of(event.head.fields), body_object(event.body_state, event.body)));
    case Event::Kind::body:
      return nb::make_tuple("body", event.request_id, body_object(event.body_state, event.body));
    case Event::Kind::resumed:
      return nb::make_tuple("resumed", event.request_id, nb::none());
    case Event::Kind::gone:
      return nb::make_tuple("gone", event.request_id, nb::none());
  }
  return {};
}

nb::list poll(http::Server& self) {
  nb::list result;
  for (const Event& event : self.poll()) result.append(event_tuple(event));
  return result;
}

// `fields`: "\nname:value\nname:value\n"; neither has line feeds, no name a colon.
nb::object header_value(const nb::bytes& fields, const nb::bytes& name) {
  const std::string_view lines = view(fields);
  const std::string_view wanted = view(name);
  for (size_t start = 0; start + 1 < lines.size();) {
    const std::string_view line = lines.substr(start + 1, lines.find('\n', start + 1) - start - 1);
    if (line.size() > wanted.size() && line[wanted.size()] == ':' && line.starts_with(wanted)) {
      return nb::bytes(line.data() + wanted.size() + 1, line.size() - wanted.size() - 1);
    }
    start += 1 + line.size();
  }
  return nb::none();
}

http::Limits limits_from_python(const nb::handle& object) {
  auto integer = [&](const char* name) { return nb::cast<int64_t>(object.attr(name)); };
  auto seconds = [&](const char* name) { return nb::cast<double>(object.attr(name)); };
  return {integer("max_header_bytes"), integer("max_headers"),     integer("max_body_bytes"),
          integer("max_bodies_bytes"), integer("max_connections"), seconds("header_timeout_s"),
          seconds("body_timeout_s"),   seconds("write_stall_s"),   seconds("keep_alive_s")};
}

http::Refusals refusals_from_python(const nb::dict& answers) {
  auto answer = [&](int status) { return std::string(view(nb::cast<nb::bytes>(answers[nb::int_(status)]))); };
  return {answer(400), answer(408), answer(431), answer(503)};
}

using TokenOfSample = std::tuple<int64_t, int32_t, std::optional<int32_t>>;

std::vector<size_t> serve(http::TokenStreams& self, const std::vector<TokenOfSample>& events) {
  std::vector<size_t> left;
  for (size_t i = 0; i < events.size(); ++i) {
    const auto& [request_id, sample_idx, token_id] = events[i];
    if (!self.take(request_id, sample_idx, token_id)) left.push_back(i);
  }
  self.send();
  return left;
}

void bind_token_streams(nb::module_& m) {
  nb::class_<http::TokenStreams>(m, "TokenStreams",
                                 "Tokens straight to the clients that stream them; csrc/http/token_streams.h says how. "
                                 "An engine's `take_events` serves them.")
      .def(nb::init<>())
      .def(
          "learn",
          [](http::TokenStreams& self, int32_t token_id, const nb::bytes& json, uint32_t kinds) {
            self.learn(token_id, view(json), kinds);
          },
          nb::arg("token_id"), nb::arg("json"), nb::arg("kinds"),
          "From now on the token is plain, and `json` its text, with quotes. Bit k of `kinds`: for choices of kind k.")
      .def("serve", &serve, nb::arg("events"),
           "What `take_events` does, for an engine in Python. `events`: [(request id, sample, token id, or None for "
           "what "
           "is not a plain token), ...]. The indices of those that were not taken.");

  nb::class_<http::TokenStream>(m, "TokenStream", "One answer; it gets tokens until it is deleted.")
      .def(
          "__init__",
          [](http::TokenStream* self, http::TokenStreams& streams, http::Server& server, uint64_t request_id,
             const std::vector<int64_t>& engine_request_ids, int64_t num_samples) {
            new (self) http::TokenStream(streams, server, request_id, engine_request_ids, num_samples);
          },
          nb::arg("streams"), nb::arg("server"), nb::arg("request_id"), nb::arg("engine_request_ids"),
          nb::arg("num_samples"), nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
      .def(
          "arm",
          [](http::TokenStream& self, size_t choice_idx, const nb::bytes& before, const nb::bytes& after,
             const nb::bytes& between, uint32_t kind) {
            self.arm(choice_idx,
                     {std::string(view(before)), std::string(view(after)), std::string(view(between)), kind});
          },
          nb::arg("choice_idx"), nb::arg("before"), nb::arg("after"), nb::arg("between") = nb::bytes("", 0),
          nb::arg("kind") = 0,
          "The next tokens of a choice are written as before + text + after, or before + text + between + token id + "
          "after.")
      .def("take_counts", &http::TokenStream::take_counts,
           "[(choice, number of tokens taken since the last call), ...] of those that had any.");
}

}  // namespace

void bind_http(nb::module_& m) {
  bind_token_streams(m);
  m.def("header_value", &header_value, "The value of the first of the fields of a request with this lower-case name.");
  nb::class_<http::Server>(m, "HttpServer", "Connections, requests and answers; csrc/http/server.h says how.")
      .def(
          "__init__",
          [](http::Server* self, int listener, const nb::handle& limits, const nb::dict& refusals) {
            new (self) http::Server(listener, limits_from_python(limits), refusals_from_python(refusals));
          },
          nb::arg("listener"), nb::arg("limits"), nb::arg("refusals"),
          "`listener`: descriptor of a listening, non-blocking socket. `refusals`: whole answers by status.")
      .def_prop_ro("fd", &http::Server::fd, "Readable when `poll` has something to do.")
      .def(
          "poll", &poll,
          "[(kind, request id, value), ...]: 'request' with (method, path, fields, body), 'body' with an awaited body, "
          "'resumed', 'gone'. A body is bytes, None while it is incomplete, or a word for what is wrong with it.")
      .def(
          "take_body",
          [](http::Server& self, uint64_t request_id) {
            std::string body;
            const BodyState state = self.take_body(request_id, body);
            return body_object(state, body);
          },
          nb::arg("request_id"), "The body as in the events; None: an event comes.")
      .def(
          "answer",
          [](http::Server& self, uint64_t request_id, int status, const nb::bytes& content_type, const nb::bytes& body,
             const nb::bytes& fields) {
            self.answer(request_id, status, view(content_type), view(body), view(fields));
          },
          nb::arg("request_id"), nb::arg("status"), nb::arg("content_type"), nb::arg("body"), nb::arg("fields"),
          "The whole answer. `fields`: further ones, each as a line.")
      .def(
          "begin",
          [](http::Server& self, uint64_t request_id, int status, const nb::bytes& fields) {
            self.begin(request_id, status, view(fields));
          },
          nb::arg("request_id"), nb::arg("status"), nb::arg("fields"), "The head of an answer in parts.")
      .def(
          "write",
          [](http::Server& self, uint64_t request_id, const nb::bytes& data, bool is_last) {
            return self.write(request_id, view(data), is_last);
          },
          nb::arg("request_id"), nb::arg("data"), nb::arg("is_last"), "The next part. True: the client has stalled.")
      .def("abort", &http::Server::abort, nb::arg("request_id"), "Cuts the connection off.")
      .def("stop", &http::Server::stop, "No more connections and requests; idle connections are closed.")
      .def_prop_ro("num_connections", &http::Server::num_connections)
      .def(
          "connections",
          [](const http::Server& self) {
            std::vector<std::pair<int64_t, bool>> states;
            for (const auto& state : self.connections()) states.emplace_back(state.num_unsent_bytes, state.has_stalled);
            return states;
          },
          "Of each: bytes that are not sent yet, and whether it has stalled.");
}

}  // namespace fmo
