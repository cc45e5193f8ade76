// A few token texts with their ids, sorted, in one block of memory: which is the longest token that a text begins with.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fmo {

class TokenTable {
 public:
  explicit TokenTable(std::vector<std::pair<std::string, int32_t>> tokens);

  struct Found {
    int32_t token_id;
    size_t num_bytes;
  };
  std::optional<Found> longest_prefix(std::string_view text) const;
  bool empty() const { return entries_.empty(); }
  // Whether a token begins with this byte.
  bool may_begin(char byte) const { return begins_[static_cast<unsigned char>(byte)]; }

 private:
  struct Entry {
    uint32_t offset;
    uint32_t num_bytes;
    int32_t token_id;
  };
  std::array<bool, 256> begins_{};
  std::string texts_;
  std::vector<Entry> entries_;  // by text
};

}  // namespace fmo
