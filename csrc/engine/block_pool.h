// The KV blocks of the executor as numbered tickets with reference counts. It owns ids only; the memory is the
// executor's.
//
//   free ──allocate──▶ count 1 ──retain──▶ count 2 … ──release──▶ count 0 = free
//
// Releasing or retaining a block that nobody owns is a bug of the engine and throws std::logic_error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fmo {

class BlockPool {
 public:
  explicit BlockPool(int64_t num_blocks);

  int32_t allocate();  // count becomes 1; throws std::logic_error when none is free: ask num_free() first
  void retain(int32_t block);
  void release(int32_t block);

  int64_t num_blocks() const { return static_cast<int64_t>(ref_counts_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_used() const { return num_blocks() - num_free(); }
  int32_t ref_count(int32_t block) const { return ref_counts_.at(static_cast<size_t>(block)); }

 private:
  int32_t& owned_count(int32_t block);

  std::vector<int32_t> ref_counts_;
  std::vector<int32_t> free_;  // a stack: the block freed last is likely still in the CPU's cache
};

}  // namespace fmo
