// The KV blocks and what is known of their content: a radix tree over blocks, so that a sequence takes the blocks of a
// prompt's head that anyone has computed before.
//
//   scope ──▶ [tokens 0…15] block 7 ──▶ [tokens 16…31] block 3
//                                  ├──▶ [other tokens] block 9      the parent holds the tokens before
//                                  └──▶ [6 tokens]     block 4      a tail: what ended within a block
//
// A known block has one reference of the tree and one of each sequence that uses it; a sequence that uses a block uses
// all blocks above it. Known blocks without a sequence are kept until their place is needed, the one unused for longest
// first. Sequences give blocks back from the last to the first, so a block always leaves before its parent.
// Only full blocks are used together. Of a block that begins like a sequence goes on, its first cells may be copied
// into a block of the sequence's own: of a tail, or of a full block with other tokens further on. Blocks are found in
// one scope only (one adapter, one tenant). Tokens and parents are compared, not only their hash.
//
// The tree is a few arrays with one entry per block: nothing is allocated after construction. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/block_index.h"
#include "engine/block_pool.h"

namespace fmo {

// Who may share blocks: 128 bits that stand for a tenant's salt and an adapter. Equal scopes share, others never do.
struct CacheScope {
  uint64_t high = 0;
  uint64_t low = 0;
  bool operator==(const CacheScope&) const = default;
};

// The first `num_tokens` cells of `block` hold what follows a known head; less than a whole block.
struct PartialBlock {
  int32_t block = kNoBlock;
  int64_t num_tokens = 0;
};

class PrefixCache {
 public:
  // `hash_seed` changes where things lie in the table, never what is found.
  PrefixCache(int64_t num_blocks, int64_t block_size, uint64_t hash_seed = 0);

  // A block for new content with one reference. Throws std::logic_error when num_available() is 0.
  int32_t allocate();
  void retain(int32_t block);
  void release(int32_t block);

  // Appends the blocks of the longest known head of `tokens` (whole blocks only), without taking references. Returns
  // the block of which most cells hold the tokens that follow; its content is there until its place is given away.
  PartialBlock find(const CacheScope& scope, std::span<const int32_t> tokens, std::vector<int32_t>& blocks) const;
  // From now on `block` is known to hold `tokens` (block_size of them) after `parent`, a known block or kNoBlock. The
  // caller owns a reference to both. If another block is known for the same, the caller's reference to `block` becomes
  // one to that. Returns the block that is known.
  int32_t publish(const CacheScope& scope, int32_t parent, std::span<const int32_t> tokens, int32_t block);
  // The same for a block with fewer tokens that nobody will write to any more. Nothing changes if that much is known.
  void publish_tail(const CacheScope& scope, int32_t parent, std::span<const int32_t> tokens, int32_t block);
  // The block is not found any more, provided that only the caller uses it and nothing follows it; else returns false.
  bool forget(int32_t block);

  int64_t num_blocks() const { return pool_.num_blocks(); }
  int64_t num_available() const { return pool_.num_free() + num_unused_; }  // free, or known and unused
  int64_t num_used() const { return num_blocks() - num_available(); }
  int64_t num_unused() const { return num_unused_; }  // known blocks that no sequence uses
  int64_t num_evictions() const { return num_evictions_; }
  bool is_unused(int32_t block) const { return is_known(block) && pool_.ref_count(block) == 1; }
  bool is_known(int32_t block) const { return nodes_.at(static_cast<size_t>(block)).num_tokens > 0; }
  const CacheScope& scope_of(int32_t block) const { return nodes_.at(static_cast<size_t>(block)).scope; }
  // Throws std::logic_error unless tree, table, list and reference counts agree, where `num_users[b]` sequences use
  // block b. For tests; slow.
  void check_invariants(std::span<const int32_t> num_users) const;

 private:
  struct Node {
    CacheScope scope;
    uint64_t hash = 0;  // of all tokens; 0: of a tail
    int32_t parent = kNoBlock;
    int32_t num_children = 0;
    int32_t older = kNoBlock, newer = kNoBlock;  // neighbours in the list of unused blocks
    int32_t num_tokens = 0;                      // 0: nothing is known of the block
  };

  Node& node(int32_t block) { return nodes_[static_cast<size_t>(block)]; }
  const Node& node(int32_t block) const { return nodes_[static_cast<size_t>(block)]; }
  std::span<const int32_t> tokens_of(int32_t block) const;
  uint64_t hash_of(const CacheScope& scope, int32_t parent, std::span<const int32_t> tokens) const;
  int32_t lookup(const CacheScope& scope, int32_t parent, std::span<const int32_t> tokens, uint64_t hash) const;
  PartialBlock lookup_partial(const CacheScope& scope, int32_t parent, std::span<const int32_t> tokens) const;
  void insert(const CacheScope& scope, int32_t parent, std::span<const int32_t> tokens, int32_t block, uint64_t hash);
  void erase(int32_t block);
  uint64_t hash_of_first(int32_t block) const;
  void append_unused(int32_t block);
  void remove_unused(int32_t block);
  void evict_oldest();

  BlockPool pool_;
  const int64_t block_size_;
  const uint64_t hash_seed_;
  std::vector<Node> nodes_;      // [num_blocks]
  std::vector<int32_t> tokens_;  // [num_blocks, block_size] of known blocks
  BlockIndex by_tokens_;         // full blocks, by the hash of scope, parent and all tokens
  BlockIndex by_first_token_;    // all known blocks, by the hash of scope, parent and first token
  int32_t oldest_ = kNoBlock, newest_ = kNoBlock;
  int64_t num_unused_ = 0;
  int64_t num_evictions_ = 0;
};

}  // namespace fmo
