// Tokens straight to the clients that stream them, while nothing but the text of a token differs from frame to frame.
//
//   arm(choice, frame)    take(request, sample, token) … take(…)  ─▶  frames of the answer  ─▶  send(): one write each
//                         frame: before · JSON text of the token · after    or    before · text · between · token id ·
//                         after
//
// Armed is what the caller knows to be so: no token needs more than its text. A token without a known text, and
// whatever is not a plain token, is left to the caller; so is all that follows it for the same answer, until the caller
// has written its part and arms again: the frames of an answer are in the order of its tokens. The same holds once a
// client has stalled or left. All of it belongs to the thread of the `Server`, and every stream ends before both.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "http/server.h"

namespace fmo::http {

class TokenStream;

// Choices are of kinds, which differ in the tokens that are plain for them.
class TokenStreams {
 public:
  // From now on the token is plain, and `json` its text, with quotes. Bit k of `kinds`: for choices of kind k.
  void learn(int32_t token_id, std::string_view json, uint32_t kinds);
  // False: it was not taken, and what comes next for this answer will not be. `token_id`: none for all but plain
  // tokens.
  bool take(int64_t engine_request_id, int32_t sample_idx, std::optional<int32_t> token_id);
  // Writes what was taken.
  void send();

 private:
  friend class TokenStream;
  struct Place {
    TokenStream* stream;
    size_t first_choice_idx;
  };
  struct Text {
    uint32_t offset = 0;
    uint32_t num_bytes = 0;
    uint32_t kinds = 0;
  };
  Text text_of(std::optional<int32_t> token_id) const;

  std::string texts_;
  std::vector<Text> text_of_token_;            // in `texts_`
  std::unordered_map<int64_t, Place> places_;  // by engine request
  std::vector<TokenStream*> unsent_;
};

struct TokenFrame {
  std::string before, after;
  std::string between;  // empty: the frame has no token id
  uint32_t kind = 0;    // of the tokens that it is for, below 32
};

// One answer. Its choices are the samples of its engine requests, in order.
class TokenStream {
 public:
  TokenStream(TokenStreams& streams, Server& server, uint64_t request_id, std::span<const int64_t> engine_request_ids,
              int64_t num_samples);
  ~TokenStream();
  TokenStream(const TokenStream&) = delete;
  TokenStream& operator=(const TokenStream&) = delete;

  void arm(size_t choice_idx, TokenFrame frame);
  // (choice, tokens taken since the last call), of those that had any.
  std::vector<std::pair<size_t, int64_t>> take_counts();

 private:
  friend class TokenStreams;
  struct Choice {
    bool is_armed = false;
    int64_t num_taken = 0;
    TokenFrame frame;
  };
  bool take(size_t choice_idx, const TokenStreams::Text& text, int32_t token_id);
  void send();

  TokenStreams& streams_;
  Server& server_;
  const uint64_t request_id_;
  const std::vector<int64_t> engine_request_ids_;
  std::vector<Choice> choices_;
  bool is_armed_ = false;
  std::string unsent_;
};

}  // namespace fmo::http
