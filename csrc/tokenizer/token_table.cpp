#include "tokenizer/token_table.h"

#include <algorithm>

namespace fmo {

TokenTable::TokenTable(std::vector<std::pair<std::string, int32_t>> tokens) {
  std::sort(tokens.begin(), tokens.end());
  entries_.reserve(tokens.size());
  for (const auto& [text, token_id] : tokens) {
    entries_.push_back({static_cast<uint32_t>(texts_.size()), static_cast<uint32_t>(text.size()), token_id});
    texts_ += text;
    if (!text.empty()) begins_[static_cast<unsigned char>(text[0])] = true;
  }
}

// One byte after the other narrows the range of tokens that begin like `text`; the shortest of a range is its first.
std::optional<TokenTable::Found> TokenTable::longest_prefix(std::string_view text) const {
  std::optional<Found> longest;
  auto low = entries_.begin();
  auto high = entries_.end();
  for (size_t pos = 0; pos < text.size() && low != high; ++pos) {
    const auto byte = static_cast<unsigned char>(text[pos]);
    auto byte_of = [this, pos](const Entry& entry) {
      return entry.num_bytes > pos ? static_cast<unsigned char>(texts_[entry.offset + pos]) : -1;
    };
    low = std::partition_point(low, high, [&](const Entry& entry) { return byte_of(entry) < byte; });
    high = std::partition_point(low, high, [&](const Entry& entry) { return byte_of(entry) == byte; });
    if (low != high && low->num_bytes == pos + 1) longest = Found{low->token_id, pos + 1};
  }
  return longest;
}

}  // namespace fmo
