#include "engine/prefix_cache.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>

#include "engine/random.h"

namespace fmo {

PrefixCache::PrefixCache(int64_t num_blocks, int64_t block_size, uint64_t hash_seed)
    : pool_(num_blocks), block_size_(block_size), hash_seed_(hash_seed) {
  if (block_size < 1) {
    throw std::invalid_argument("block_size is " + std::to_string(block_size) + ", expected at least 1");
  }
  nodes_.resize(static_cast<size_t>(num_blocks));
  tokens_.resize(static_cast<size_t>(num_blocks * block_size));
  table_.assign(std::bit_ceil(2 * static_cast<size_t>(num_blocks)), kNoBlock);
}

int32_t PrefixCache::allocate() {
  if (pool_.num_free() == 0 && oldest_ != kNoBlock) evict_oldest();
  return pool_.allocate();
}

void PrefixCache::retain(int32_t block) {
  if (is_unused(block)) remove_unused(block);
  pool_.retain(block);
}

void PrefixCache::release(int32_t block) {
  pool_.release(block);
  if (is_unused(block)) append_unused(block);
}

void PrefixCache::find(const CacheScope& scope, std::span<const int32_t> tokens, std::vector<int32_t>& blocks) const {
  const auto block_size = static_cast<size_t>(block_size_);
  int32_t parent = kNoBlock;
  for (; tokens.size() >= block_size; tokens = tokens.subspan(block_size)) {
    const auto head = tokens.first(block_size);
    parent = lookup(scope, parent, head, hash_of(scope, parent, head));
    if (parent == kNoBlock) return;
    blocks.push_back(parent);
  }
}

int32_t PrefixCache::publish(const CacheScope& scope, int32_t parent, std::span<const int32_t> tokens, int32_t block) {
  const uint64_t hash = hash_of(scope, parent, tokens);
  const int32_t known = lookup(scope, parent, tokens, hash);
  if (known != kNoBlock) {
    retain(known);
    release(block);
    return known;
  }
  Node& added = node(block);
  added.scope = scope;
  added.hash = hash;
  added.parent = parent;
  added.is_known = true;
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + block * block_size_);
  if (parent != kNoBlock) ++node(parent).num_children;
  insert(block);
  pool_.retain(block);
  return block;
}

bool PrefixCache::forget(int32_t block) {
  const Node& known = nodes_.at(static_cast<size_t>(block));
  if (!known.is_known || known.num_children > 0 || pool_.ref_count(block) != 2) return false;
  erase(block);
  pool_.release(block);
  return true;
}

std::span<const int32_t> PrefixCache::tokens_of(int32_t block) const {
  return std::span(tokens_).subspan(static_cast<size_t>(block * block_size_), static_cast<size_t>(block_size_));
}

uint64_t PrefixCache::hash_of(const CacheScope& scope, int32_t parent, std::span<const int32_t> tokens) const {
  uint64_t hash = mix_bits(hash_seed_ ^ scope.high) ^ scope.low;
  hash = mix_bits(hash + static_cast<uint64_t>(parent));
  for (const int32_t token_id : tokens) hash = mix_bits(hash ^ static_cast<uint64_t>(token_id)) + hash_seed_;
  return hash;
}

// kNoBlock: nothing is known of these tokens after this parent.
int32_t PrefixCache::lookup(const CacheScope& scope, int32_t parent, std::span<const int32_t> tokens,
                            uint64_t hash) const {
  const size_t mask = table_.size() - 1;
  for (size_t slot = hash & mask; table_[slot] != kNoBlock; slot = (slot + 1) & mask) {
    const int32_t block = table_[slot];
    const Node& known = node(block);
    if (known.hash == hash && known.parent == parent && known.scope == scope &&
        std::ranges::equal(tokens_of(block), tokens)) {
      return block;
    }
  }
  return kNoBlock;
}

void PrefixCache::insert(int32_t block) {
  const size_t mask = table_.size() - 1;
  size_t slot = node(block).hash & mask;
  while (table_[slot] != kNoBlock) slot = (slot + 1) & mask;
  table_[slot] = block;
}

// Takes the block out of tree and table. Later entries of the same run move up, so that no lookup ends too early.
void PrefixCache::erase(int32_t block) {
  const size_t mask = table_.size() - 1;
  size_t hole = node(block).hash & mask;
  while (table_[hole] != block) hole = (hole + 1) & mask;
  for (size_t slot = (hole + 1) & mask; table_[slot] != kNoBlock; slot = (slot + 1) & mask) {
    const size_t home = node(table_[slot]).hash & mask;
    if (((slot - home) & mask) < ((slot - hole) & mask)) continue;  // its home lies after the hole
    table_[hole] = table_[slot];
    hole = slot;
  }
  table_[hole] = kNoBlock;
  Node& gone = node(block);
  if (gone.parent != kNoBlock) --node(gone.parent).num_children;
  gone.is_known = false;
  gone.parent = kNoBlock;
}

void PrefixCache::append_unused(int32_t block) {
  Node& last = node(block);
  last.older = newest_;
  last.newer = kNoBlock;
  (newest_ == kNoBlock ? oldest_ : node(newest_).newer) = block;
  newest_ = block;
  ++num_unused_;
}

void PrefixCache::remove_unused(int32_t block) {
  const Node& removed = node(block);
  (removed.older == kNoBlock ? oldest_ : node(removed.older).newer) = removed.newer;
  (removed.newer == kNoBlock ? newest_ : node(removed.newer).older) = removed.older;
  --num_unused_;
}

void PrefixCache::evict_oldest() {
  const int32_t block = oldest_;
  if (node(block).num_children > 0) throw std::logic_error("prefix cache: a block would leave before its children");
  remove_unused(block);
  erase(block);
  pool_.release(block);
  ++num_evictions_;
}

void PrefixCache::check_invariants(std::span<const int32_t> num_users) const {
  auto require = [](bool holds, const char* what) {
    if (!holds) throw std::logic_error(std::string("prefix cache: ") + what);
  };
  std::vector<int32_t> num_children(nodes_.size(), 0);
  std::vector<bool> is_listed(nodes_.size(), false);
  int64_t num_listed = 0, num_owned = 0, num_known = 0;
  for (int32_t block = oldest_, older = kNoBlock; block != kNoBlock; older = block, block = node(block).newer) {
    require(++num_listed <= num_blocks() && node(block).older == older, "the list of unused blocks is broken");
    require(!is_listed[static_cast<size_t>(block)], "a block is listed twice");
    is_listed[static_cast<size_t>(block)] = true;
    require(node(block).parent == kNoBlock || !is_listed[static_cast<size_t>(node(block).parent)],
            "an unused block would outlive its parent");
  }
  require(num_listed == num_unused_, "the list of unused blocks is not as long as it is counted");
  for (int32_t block = 0; block < num_blocks(); ++block) {
    const Node& known = node(block);
    const int32_t users = num_users[static_cast<size_t>(block)];
    require(pool_.ref_count(block) == users + (known.is_known ? 1 : 0),
            "a block is not owned as often as it is counted");
    require(is_listed[static_cast<size_t>(block)] == (known.is_known && users == 0),
            "the list of unused blocks does not hold exactly those");
    num_owned += pool_.ref_count(block) > 0;
    if (!known.is_known) continue;
    ++num_known;
    require(lookup(known.scope, known.parent, tokens_of(block), known.hash) == block, "a known block is not found");
    if (known.parent == kNoBlock) continue;
    ++num_children[static_cast<size_t>(known.parent)];
    require(node(known.parent).is_known, "a known block hangs on a forgotten one");
    require(node(known.parent).scope == known.scope, "a block hangs on one of another scope");
    require(users <= num_users[static_cast<size_t>(known.parent)], "a block is used without its parent");
  }
  for (size_t block = 0; block < nodes_.size(); ++block) {
    require(num_children[block] == nodes_[block].num_children, "a block has more or fewer children than counted");
  }
  require(num_owned == pool_.num_used(), "the free list does not match the reference counts");
  const auto num_filled = std::ranges::count_if(table_, [](int32_t block) { return block != kNoBlock; });
  require(num_filled == num_known, "the table holds more or fewer blocks than are known");
}

}  // namespace fmo
