// Short words with their token ids, in memory of a fixed size: sets of four, in which a new word takes the place of the
// oldest one. So no choice of words makes a look-up slow.
//
//   word "cat"  ─▶  key: bytes 0 to 7 | bytes 8 to 14, number of bytes  ─▶  set  ─▶  up to 7 ids
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace fmo {

class KnownWords {
 public:
  static constexpr size_t kMaxBytes = 15;
  static constexpr size_t kMaxIds = 7;
  static constexpr size_t kMaxWords = 4096;  // 0.2 MB; merging a word takes less than a microsecond

  struct Key {
    uint64_t low = 0;
    uint64_t high = 0;  // 0 in no word's key: the number of bytes is in it
    bool operator==(const Key&) const = default;
  };

  // Of a word of 1 to kMaxBytes bytes; different words have different keys.
  static Key key_of(std::string_view word) {
    const size_t num_bytes = word.size();
    const char* bytes = word.data();
    Key key;
    if (num_bytes > 8) {
      key.low = load<uint64_t>(bytes);
      key.high = load<uint64_t>(bytes + num_bytes - 8) >> (8 * (16 - num_bytes));
    } else if (num_bytes >= 4) {
      key.low = load<uint32_t>(bytes) | uint64_t{load<uint32_t>(bytes + num_bytes - 4)} << (8 * (num_bytes - 4));
    } else {
      const size_t middle = num_bytes / 2;
      key.low = uint64_t{byte_at(bytes)} | uint64_t{byte_at(bytes + middle)} << (8 * middle) |
                uint64_t{byte_at(bytes + num_bytes - 1)} << (8 * (num_bytes - 1));
    }
    key.high |= static_cast<uint64_t>(num_bytes) << 56;
    return key;
  }

  // Empty: the word is not known.
  std::span<const int32_t> find(const Key& key) const {
    const size_t first = set_of(key) * kNumWays;
    for (size_t entry = first; entry < first + kNumWays; ++entry) {
      if (keys_[entry] == key) return {ids_[entry].ids.data(), ids_[entry].num_ids};
    }
    return {};
  }

  // For a word that is not known. Words of more than kMaxIds tokens are not remembered.
  void add(const Key& key, std::span<const int32_t> ids) {
    if (ids.size() > kMaxIds) return;
    const size_t set = set_of(key);
    const size_t entry = set * kNumWays + oldest_[set]++ % kNumWays;
    keys_[entry] = key;
    ids_[entry].num_ids = static_cast<uint32_t>(ids.size());
    std::copy(ids.begin(), ids.end(), ids_[entry].ids.begin());
  }

  size_t size() const { return keys_.size() - static_cast<size_t>(std::count(keys_.begin(), keys_.end(), Key{})); }

 private:
  static constexpr size_t kNumWays = 4;
  static constexpr size_t kNumSets = kMaxWords / kNumWays;
  struct Ids {
    uint32_t num_ids = 0;
    std::array<int32_t, kMaxIds> ids{};
  };

  template <typename T>
  static T load(const char* bytes) {
    static_assert(std::endian::native == std::endian::little);
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
  }
  static uint8_t byte_at(const char* byte) { return static_cast<uint8_t>(*byte); }
  static size_t set_of(const Key& key) {
    const uint64_t mixed = (key.low ^ std::rotl(key.high, 23)) * 0x9E3779B97F4A7C15ULL;
    return static_cast<size_t>((mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93ULL >> 54) % kNumSets;
  }

  std::vector<Key> keys_ = std::vector<Key>(kMaxWords);
  std::vector<Ids> ids_ = std::vector<Ids>(kMaxWords);
  std::vector<uint8_t> oldest_ = std::vector<uint8_t>(kNumSets);
};

}  // namespace fmo
