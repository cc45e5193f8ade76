#include "engine/prefix_cache.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "engine/random.h"

namespace fmo {

namespace {

constexpr int64_t kMaxCompared = 128;  // blocks with an equal first token: bounds the time of a search

// How many tokens both begin with.
int64_t common_len(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::ranges::mismatch(a, b).in1 - a.begin();
}

}  // namespace

PrefixCache::PrefixCache(int64_t num_blocks, int64_t block_size, uint64_t hash_seed)
    : pool_(num_blocks),
      block_size_(block_size),
      hash_seed_(hash_seed),
      by_tokens_(num_blocks),
      by_first_token_(num_blocks) {
  if (block_size < 1) {
    throw std::invalid_argument("block_size is " + std::to_string(block_size) + ", expected at least 1");
  }
  nodes_.resize(static_cast<size_t>(num_blocks));
  tokens_.resize(static_cast<size_t>(num_blocks * block_size));
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

PartialBlock PrefixCache::find(const CacheScope& scope, std::span<const int32_t> tokens,
                               std::vector<int32_t>& blocks) const {
  const auto block_size = static_cast<size_t>(block_size_);
  int32_t parent = kNoBlock;
  for (; tokens.size() >= block_size; tokens = tokens.subspan(block_size)) {
    const auto head = tokens.first(block_size);
    const int32_t block = lookup(scope, parent, head, hash_of(scope, parent, head));
    if (block == kNoBlock) break;
    blocks.push_back(parent = block);
  }
  return lookup_partial(scope, parent, tokens);
}

int32_t PrefixCache::publish(const CacheScope& scope, int32_t parent, std::span<const int32_t> tokens, int32_t block) {
  const uint64_t hash = hash_of(scope, parent, tokens);
  const int32_t known = lookup(scope, parent, tokens, hash);
  if (known == kNoBlock) {
    insert(scope, parent, tokens, block, hash);
    return block;
  }
  retain(known);
  release(block);
  return known;
}

void PrefixCache::publish_tail(const CacheScope& scope, int32_t parent, std::span<const int32_t> tokens,
                               int32_t block) {
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  if (lookup_partial(scope, parent, tokens).num_tokens < num_tokens) insert(scope, parent, tokens, block, 0);
}

bool PrefixCache::forget(int32_t block) {
  if (!is_known(block) || node(block).num_children > 0 || pool_.ref_count(block) != 2) return false;
  erase(block);
  pool_.release(block);
  return true;
}

std::span<const int32_t> PrefixCache::tokens_of(int32_t block) const {
  return std::span(tokens_).subspan(static_cast<size_t>(block * block_size_),
                                    static_cast<size_t>(node(block).num_tokens));
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
  for (int32_t block = by_tokens_.first(hash); block != kNoBlock; block = by_tokens_.after(block)) {
    const Node& known = node(block);
    if (known.hash == hash && known.parent == parent && known.scope == scope &&
        std::ranges::equal(tokens_of(block), tokens)) {
      return block;
    }
  }
  return kNoBlock;
}

// Among the newest blocks that go on like `tokens` for at least one token, the one that does so for longest.
PartialBlock PrefixCache::lookup_partial(const CacheScope& scope, int32_t parent,
                                         std::span<const int32_t> tokens) const {
  PartialBlock best;
  if (tokens.empty()) return best;
  const auto num_wanted = std::min(static_cast<int64_t>(tokens.size()), block_size_ - 1);
  int64_t num_left = kMaxCompared;
  for (int32_t block = by_first_token_.first(hash_of(scope, parent, tokens.first(1)));
       block != kNoBlock && best.num_tokens < num_wanted && num_left-- > 0; block = by_first_token_.after(block)) {
    const Node& known = node(block);
    if (known.parent != parent || !(known.scope == scope)) continue;
    const int64_t num_tokens = std::min(common_len(tokens_of(block), tokens), num_wanted);
    if (num_tokens > best.num_tokens) best = {block, num_tokens};
  }
  return best;
}

void PrefixCache::insert(const CacheScope& scope, int32_t parent, std::span<const int32_t> tokens, int32_t block,
                         uint64_t hash) {
  Node& added = node(block);
  added.scope = scope;
  added.hash = hash;
  added.parent = parent;
  added.num_tokens = static_cast<int32_t>(tokens.size());
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + block * block_size_);
  if (parent != kNoBlock) ++node(parent).num_children;
  if (added.num_tokens == block_size_) by_tokens_.insert(hash, block);
  by_first_token_.insert(hash_of_first(block), block);
  pool_.retain(block);
}

void PrefixCache::erase(int32_t block) {
  Node& gone = node(block);
  if (gone.num_tokens == block_size_) by_tokens_.erase(gone.hash, block);
  by_first_token_.erase(hash_of_first(block), block);
  if (gone.parent != kNoBlock) --node(gone.parent).num_children;
  gone.num_tokens = 0;
  gone.parent = kNoBlock;
}

uint64_t PrefixCache::hash_of_first(int32_t block) const {
  return hash_of(node(block).scope, node(block).parent, tokens_of(block).first(1));
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
  int64_t num_listed = 0, num_owned = 0, num_known = 0, num_full = 0;
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
    require(pool_.ref_count(block) == users + (is_known(block) ? 1 : 0),
            "a block is not owned as often as it is counted");
    require(is_listed[static_cast<size_t>(block)] == (is_known(block) && users == 0),
            "the list of unused blocks does not hold exactly those");
    num_owned += pool_.ref_count(block) > 0;
    if (!is_known(block)) continue;
    ++num_known;
    if (known.num_tokens == block_size_) {
      ++num_full;
      require(lookup(known.scope, known.parent, tokens_of(block), known.hash) == block, "a full block is not found");
    } else {
      require(users == 0 && known.num_children == 0, "a tail is used, or something follows it");
    }
    if (known.parent == kNoBlock) continue;
    ++num_children[static_cast<size_t>(known.parent)];
    require(node(known.parent).num_tokens == block_size_, "a known block hangs on one that is not full or forgotten");
    require(node(known.parent).scope == known.scope, "a block hangs on one of another scope");
    require(users <= num_users[static_cast<size_t>(known.parent)], "a block is used without its parent");
  }
  for (size_t block = 0; block < nodes_.size(); ++block) {
    require(num_children[block] == nodes_[block].num_children, "a block has more or fewer children than counted");
  }
  require(num_owned == pool_.num_used(), "the free list does not match the reference counts");
  require(by_tokens_.num_filled() == num_full && by_first_token_.num_filled() == num_known,
          "an index holds more or fewer blocks than are known");
}

}  // namespace fmo
