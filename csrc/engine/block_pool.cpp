#include "engine/block_pool.h"

#include <stdexcept>
#include <string>

namespace fmo {

BlockPool::BlockPool(int64_t num_blocks) {
  if (num_blocks < 1 || num_blocks > INT32_MAX) {
    throw std::invalid_argument("num_blocks is " + std::to_string(num_blocks) + ", expected 1 to 2147483647");
  }
  ref_counts_.assign(static_cast<size_t>(num_blocks), 0);
  free_.reserve(ref_counts_.size());
  for (int64_t block = num_blocks - 1; block >= 0; --block) free_.push_back(static_cast<int32_t>(block));
}

int32_t BlockPool::allocate() {
  if (free_.empty()) throw std::logic_error("block pool: allocate() with no free block");
  const int32_t block = free_.back();
  free_.pop_back();
  ref_counts_[static_cast<size_t>(block)] = 1;
  return block;
}

void BlockPool::retain(int32_t block) { ++owned_count(block); }

void BlockPool::release(int32_t block) {
  if (--owned_count(block) == 0) free_.push_back(block);
}

int32_t& BlockPool::owned_count(int32_t block) {
  if (block < 0 || block >= num_blocks() || ref_counts_[static_cast<size_t>(block)] == 0) {
    throw std::logic_error("block pool: block " + std::to_string(block) + " is not in use");
  }
  return ref_counts_[static_cast<size_t>(block)];
}

}  // namespace fmo
