// Token texts by id, and ids by text, in two blocks of memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fmo {

inline constexpr int32_t kMaxTokenId = (1 << 22) - 1;  // far above any model's; bounds the table by id

class Vocabulary {
 public:
  // Throws std::invalid_argument: the id is out of range or has a text already, or the text has an id; too much text.
  void add(std::string_view text, int32_t id);
  std::optional<int32_t> id_of(std::string_view text) const;
  std::optional<std::string_view> text_of(int32_t id) const;

  size_t size() const { return num_tokens_; }
  int32_t max_id() const { return static_cast<int32_t>(entries_.size()) - 1; }
  size_t max_text_bytes() const { return max_text_bytes_; }

 private:
  struct Entry {
    uint32_t offset = 0;
    uint32_t num_bytes = kNoText;
  };
  struct Slot {
    uint32_t hash = 0;
    int32_t id = -1;  // free
    Entry entry;      // of that id, at hand
  };
  static constexpr uint32_t kNoText = UINT32_MAX;

  std::string_view text_at(const Entry& entry) const { return {texts_.data() + entry.offset, entry.num_bytes}; }
  size_t slot_of(std::string_view text, uint32_t hash) const;
  void grow();

  std::string texts_;
  std::vector<Entry> entries_;  // by id
  std::vector<Slot> slots_;     // open addressing, a power of two, at most half full
  size_t num_tokens_ = 0;
  size_t max_text_bytes_ = 0;
};

}  // namespace fmo
