// Text to token ids for byte-level BPE tokenizers: added tokens, words, merges. What is not ASCII is cut into words by
// somebody else, piece by piece: a text may be cut between a visible character and a space, as no word holds that.
//
//   "<|user|>The café is"  ─▶  id of <|user|> · ids of "The" · ids of cut_other(" café") · ids of " is"
//
// Words and pieces that were encoded before are remembered, a bounded number of them. One thread at a time, but
// for `cut_other`, during which another one may call `encode`.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/known_words.h"
#include "tokenizer/token_table.h"
#include "tokenizer/vocabulary.h"
#include "tokenizer/words.h"

namespace fmo {

inline constexpr size_t kMaxWordBytes = 64;
inline constexpr size_t kMaxKnownLongWords = 1024;  // 0.2 MB; indentations, mostly
inline constexpr size_t kMaxKnownPieces = 16384;    // less than 10 MB
inline constexpr size_t kMaxPieceBytes = 96;

// `left` and `right`, side by side, become `merged`; the earlier merge of a list wins.
struct Merge {
  int32_t left;
  int32_t right;
  int32_t merged;
};

struct BytePairModel {
  WordRule rule = WordRule::kGpt2;
  Vocabulary vocabulary;
  std::array<std::string, 256> byte_texts;  // in the vocabulary, which writes all bytes so
  std::vector<Merge> merges;
  bool ignores_merges = false;  // of words that are tokens
};

class BytePairEncoder {
 public:
  // Appends the words of a piece, as bytes.
  using CutOther = std::function<void(std::string_view piece, std::vector<std::string>& words)>;

  // Throws std::invalid_argument: the vocabulary lacks a byte.
  explicit BytePairEncoder(BytePairModel model);

  // Added tokens: those that are looked for first, and those that are looked for in what is left.
  void look_for(TokenTable first, TokenTable later);
  // Appends the ids of `text`, UTF-8, to `token_ids`. Throws what `cut_other` throws.
  void encode(std::string_view text, const CutOther& cut_other, std::vector<int32_t>& token_ids);
  // The same, but no added token is looked for.
  void encode_words(std::string_view text, const CutOther& cut_other, std::vector<int32_t>& token_ids);

  const Vocabulary& vocabulary() const { return vocabulary_; }
  size_t num_known_words() const { return known_words_.size() + known_long_words_.size(); }
  size_t num_known_pieces() const { return known_pieces_.size(); }

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

  using KnownIds = std::unordered_map<std::string, std::vector<int32_t>, Hash, std::equal_to<>>;

  void encode_ascii(std::string_view piece, std::vector<int32_t>& token_ids);
  void encode_other(std::string_view piece, const CutOther& cut_other, std::vector<int32_t>& token_ids);
  void append_word(std::string_view word, std::vector<int32_t>& token_ids);
  void append_long_word(std::string_view word, std::vector<int32_t>& token_ids);
  std::vector<int32_t> ids_of(std::string_view word) const;
  void merge_short(std::vector<int32_t>& ids) const;
  void merge_long(std::vector<int32_t>& ids) const;
  const Slot* find_merge(int32_t left, int32_t right) const;
  size_t slot_of(int32_t left, int32_t right) const;

  WordRule rule_;
  Vocabulary vocabulary_;
  std::array<std::string, 256> byte_texts_;
  std::array<int32_t, 256> byte_ids_{};
  bool ignores_merges_;
  TokenTable first_tokens_{{}};
  TokenTable later_tokens_{{}};
  std::vector<Slot> slots_;  // open addressing, a power of two
  KnownWords known_words_;
  KnownIds known_long_words_;
  KnownIds known_pieces_;
};

}  // namespace fmo
