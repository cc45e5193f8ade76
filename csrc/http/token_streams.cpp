#include "http/token_streams.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <stdexcept>

namespace fmo::http {

void TokenStreams::learn(int32_t token_id, std::string_view json, uint32_t kinds) {
  if (token_id < 0) throw std::invalid_argument("token id is " + std::to_string(token_id) + ", expected at least 0");
  const auto index = static_cast<size_t>(token_id);
  if (index >= text_of_token_.size()) text_of_token_.resize(index + 1);
  Text& text = text_of_token_[index];
  text.kinds = kinds;
  if (std::string_view(texts_).substr(text.offset, text.num_bytes) == json) return;
  text.offset = static_cast<uint32_t>(texts_.size());
  text.num_bytes = static_cast<uint32_t>(json.size());
  texts_ += json;
}

TokenStreams::Text TokenStreams::text_of(std::optional<int32_t> token_id) const {
  if (!token_id || static_cast<size_t>(*token_id) >= text_of_token_.size()) return {};  // a negative one is large
  return text_of_token_[static_cast<size_t>(*token_id)];
}

bool TokenStreams::take(int64_t engine_request_id, int32_t sample_idx, std::optional<int32_t> token_id) {
  const auto place = places_.find(engine_request_id);
  if (place == places_.end()) return false;
  const size_t choice_idx = place->second.first_choice_idx + static_cast<size_t>(sample_idx);
  return place->second.stream->take(choice_idx, text_of(token_id), token_id.value_or(0));
}

void TokenStreams::send() {
  for (TokenStream* stream : unsent_) stream->send();
  unsent_.clear();
}

TokenStream::TokenStream(TokenStreams& streams, Server& server, uint64_t request_id,
                         std::span<const int64_t> engine_request_ids, int64_t num_samples)
    : streams_(streams),
      server_(server),
      request_id_(request_id),
      engine_request_ids_(engine_request_ids.begin(), engine_request_ids.end()),
      choices_(engine_request_ids.size() * static_cast<size_t>(num_samples)) {
  size_t first_choice_idx = 0;
  for (const int64_t id : engine_request_ids_) {
    streams_.places_[id] = {this, first_choice_idx};
    first_choice_idx += static_cast<size_t>(num_samples);
  }
}

TokenStream::~TokenStream() {
  for (const int64_t id : engine_request_ids_) streams_.places_.erase(id);
  std::erase(streams_.unsent_, this);
}

void TokenStream::arm(size_t choice_idx, TokenFrame frame) {
  if (frame.kind >= 32) throw std::invalid_argument("kind is " + std::to_string(frame.kind) + ", expected below 32");
  Choice& choice = choices_.at(choice_idx);
  choice.frame = std::move(frame);
  choice.is_armed = is_armed_ = true;
}

bool TokenStream::take(size_t choice_idx, const TokenStreams::Text& text, int32_t token_id) {
  Choice& choice = choices_.at(choice_idx);
  if (!is_armed_ || !choice.is_armed || (text.kinds >> choice.frame.kind & 1) == 0) {
    is_armed_ = choice.is_armed = false;
    return false;
  }
  if (unsent_.empty()) streams_.unsent_.push_back(this);
  unsent_.append(choice.frame.before).append(streams_.texts_, text.offset, text.num_bytes);
  if (!choice.frame.between.empty()) {
    std::array<char, 12> digits{};
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), token_id);
    unsent_.append(choice.frame.between).append(digits.data(), end.ptr);
  }
  unsent_ += choice.frame.after;
  ++choice.num_taken;
  return true;
}

void TokenStream::send() {
  if (server_.write(request_id_, unsent_, false))
    is_armed_ = false;  // who writes next is told that the client has stalled
  unsent_.clear();
}

std::vector<std::pair<size_t, int64_t>> TokenStream::take_counts() {
  std::vector<std::pair<size_t, int64_t>> counts;
  for (size_t i = 0; i < choices_.size(); ++i) {
    if (const int64_t num_taken = std::exchange(choices_[i].num_taken, 0); num_taken > 0)
      counts.emplace_back(i, num_taken);
  }
  return counts;
}

}  // namespace fmo::http
