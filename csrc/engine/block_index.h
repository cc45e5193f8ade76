// Blocks by a hash: chains of numbers in a few arrays of fixed size. Several blocks may have the same hash, and blocks
// of other hashes may stand in the same chain: the caller compares. Newest first.
//
//   for (int32_t block = index.first(hash); block != kNoBlock; block = index.after(block)) …
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fmo {

inline constexpr int32_t kNoBlock = -1;

class BlockIndex {
 public:
  explicit BlockIndex(int64_t num_blocks)
      : heads_(std::bit_ceil(static_cast<size_t>(num_blocks)), kNoBlock), links_(static_cast<size_t>(num_blocks)) {}

  int32_t first(uint64_t hash) const { return heads_[hash & (heads_.size() - 1)]; }
  int32_t after(int32_t block) const { return links_[static_cast<size_t>(block)].next; }

  void insert(uint64_t hash, int32_t block) {
    int32_t& head = heads_[hash & (heads_.size() - 1)];
    if (head != kNoBlock) links_[static_cast<size_t>(head)].previous = block;
    links_[static_cast<size_t>(block)] = {kNoBlock, head};
    head = block;
  }

  void erase(uint64_t hash, int32_t block) {
    const Link link = links_[static_cast<size_t>(block)];
    (link.previous == kNoBlock ? heads_[hash & (heads_.size() - 1)] : links_[static_cast<size_t>(link.previous)].next) =
        link.next;
    if (link.next != kNoBlock) links_[static_cast<size_t>(link.next)].previous = link.previous;
  }

  int64_t num_filled() const {  // for tests; slow
    int64_t count = 0;
    for (int32_t block : heads_) {
      for (; block != kNoBlock; block = after(block)) ++count;
    }
    return count;
  }

 private:
  struct Link {
    int32_t previous = kNoBlock, next = kNoBlock;
  };
  std::vector<int32_t> heads_;  // a power of two
  std::vector<Link> links_;     // by block
};

}  // namespace fmo
