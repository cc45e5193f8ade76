// Text to token ids for byte-level BPE tokenizers: added tokens, words, merges. What is not ASCII, and words of more
// than kMaxWordBytes, are left to somebody else, piece by piece: a text may be cut between a visible character and
// a space, as no word holds that.
//
//   "<|user|>The café is"  ─▶  id of <|user|> · ids of "The" · encode_other(" café") · ids of " is"
//
// Words that were encoded before are remembered, a bounded number of them. One thread at a time, but for
// `encode_other`, during which another one may call `encode`.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/token_table.h"
#include "tokenizer/words.h"

namespace fmo {

inline constexpr size_t kMaxWordBytes = 64;
inline constexpr size_t kMaxKnownWords = 4096;  // half a MB; merging one takes less than a microsecond

// `left` and `right`, side by side, become `merged`; the earlier merge of a list wins.
struct Merge {
  int32_t left;
  int32_t right;
  int32_t merged;
};

struct BytePairModel {
  WordRule rule = WordRule::kGpt2;
  std::array<int32_t, 256> byte_ids{};
  std::vector<Merge> merges;
  // Words that are tokens whatever the merges say; empty for most tokenizers.
  std::vector<std::pair<std::string, int32_t>> whole_words;
  // Added tokens: those that are looked for first, and those that are looked for in what is left.
  std::vector<std::pair<std::string, int32_t>> first_tokens;
  std::vector<std::pair<std::string, int32_t>> later_tokens;
};

class BytePairEncoder {
 public:
  // Appends the ids of a piece.
  using EncodeOther = std::function<void(std::string_view piece, std::vector<int32_t>& token_ids)>;

  explicit BytePairEncoder(BytePairModel model);

  // Appends the ids of `text`, UTF-8, to `token_ids`. Throws what `encode_other` throws.
  void encode(std::string_view text, const EncodeOther& encode_other, std::vector<int32_t>& token_ids);

  size_t num_known_words() const { return known_words_.size(); }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  struct Slot {
    int32_t left = -1;  // free
    int32_t right = 0;
    int32_t rank = 0;
    int32_t merged = 0;
  };

  void encode_text(std::string_view text, const EncodeOther& encode_other, std::vector<int32_t>& token_ids);
  bool encode_ascii(std::string_view piece, std::vector<int32_t>& token_ids);
  const std::vector<int32_t>& word_ids(std::string_view word);
  void merge_all(std::vector<int32_t>& ids) const;
  const Slot* find_merge(int32_t left, int32_t right) const;
  size_t slot_of(int32_t left, int32_t right) const;

  WordRule rule_;
  std::array<int32_t, 256> byte_ids_;
  TokenTable whole_words_;
  TokenTable first_tokens_;
  TokenTable later_tokens_;
  std::vector<Slot> slots_;  // open addressing, a power of two
  std::unordered_map<std::string, std::vector<int32_t>, Hash, std::equal_to<>> known_words_;
};

}  // namespace fmo
