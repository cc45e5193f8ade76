#include "tokenizer/byte_pair_encoder.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <queue>
#include <stdexcept>
#include <tuple>

namespace fmo {
namespace {

constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

// Whether the character that ends before `pos`, which is not 0, is surely no white space (of Unicode) and no control
// character.
bool is_visible_before(std::string_view text, size_t pos) {
  const char last = text[pos - 1];
  if (static_cast<unsigned char>(last) < 0x80) return last > ' ' && last < '\x7f';
  const std::string_view before = text.substr(0, pos);
  for (const std::string_view space :
       {"\u0085", "\u00a0", "\u1680", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"}) {
    if (before.ends_with(space)) return false;
  }
  const bool is_quad_to_hair_space = before.size() >= 3 && before.substr(before.size() - 3, 2) == "\xe2\x80" &&
                                     static_cast<unsigned char>(last) <= 0x8a;  // U+2000 to U+200A
  return !is_quad_to_hair_space;
}

// Calls `on_text` and `on_token` with the parts of `text` in order: at each place the longest token, from left to
// right.
template <typename OnText, typename OnToken>
void split_at_tokens(const TokenTable& tokens, std::string_view text, OnText on_text, OnToken on_token) {
  size_t start = 0;
  for (size_t pos = tokens.empty() ? text.size() : 0; pos < text.size();) {
    const auto found = tokens.may_begin(text[pos]) ? tokens.longest_prefix(text.substr(pos)) : std::nullopt;
    if (!found) {
      ++pos;
      continue;
    }
    if (pos > start) on_text(text.substr(start, pos - start));
    on_token(found->token_id);
    start = pos = pos + found->num_bytes;
  }
  if (start < text.size()) on_text(text.substr(start));
}

}  // namespace

BytePairEncoder::BytePairEncoder(BytePairModel model)
    : rule_(model.rule),
      vocabulary_(std::move(model.vocabulary)),
      byte_texts_(std::move(model.byte_texts)),
      ignores_merges_(model.ignores_merges),
      slots_(std::bit_ceil(model.merges.size() * 4 / 3 + 2)) {
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    const auto id = vocabulary_.id_of(byte_texts_[byte]);
    if (!id) throw std::invalid_argument("the vocabulary has no token for byte " + std::to_string(byte));
    byte_ids_[byte] = *id;
  }
  for (size_t rank = 0; rank < model.merges.size(); ++rank) {
    const Merge& merge = model.merges[rank];
    Slot& slot = slots_[slot_of(merge.left, merge.right)];
    // A pair that is listed again: the library that defines the format keeps the last one.
    slot = {merge.left, merge.right, static_cast<int32_t>(rank), merge.merged};
  }
}

void BytePairEncoder::look_for(TokenTable first, TokenTable later) {
  first_tokens_ = std::move(first);
  later_tokens_ = std::move(later);
}

void BytePairEncoder::encode(std::string_view text, const CutOther& cut_other, std::vector<int32_t>& token_ids) {
  auto on_token = [&](int32_t token_id) { token_ids.push_back(token_id); };
  auto on_part = [&](std::string_view part) { encode_words(part, cut_other, token_ids); };
  auto on_text = [&](std::string_view part) { split_at_tokens(later_tokens_, part, on_part, on_token); };
  split_at_tokens(first_tokens_, text, on_text, on_token);
}

void BytePairEncoder::encode_words(std::string_view text, const CutOther& cut_other, std::vector<int32_t>& token_ids) {
  for (size_t start = 0, pos = 0; start < text.size(); start = pos) {
    unsigned char all_bits = 0;
    do {
      all_bits |= static_cast<unsigned char>(text[pos++]);
    } while (pos < text.size() && !(text[pos] == ' ' && is_visible_before(text, pos)));
    const std::string_view piece = text.substr(start, pos - start);
    if (all_bits < 0x80) {
      encode_ascii(piece, token_ids);
    } else {
      encode_other(piece, cut_other, token_ids);
    }
  }
}

void BytePairEncoder::encode_ascii(std::string_view piece, std::vector<int32_t>& token_ids) {
  for (size_t pos = 0; pos < piece.size();) {
    const size_t end = word_end(rule_, piece, pos);
    append_word(piece.substr(pos, end - pos), token_ids);
    pos = end;
  }
}

void BytePairEncoder::encode_other(std::string_view piece, const CutOther& cut_other, std::vector<int32_t>& token_ids) {
  if (const auto known = known_pieces_.find(piece); known != known_pieces_.end()) {
    token_ids.insert(token_ids.end(), known->second.begin(), known->second.end());
    return;
  }
  std::vector<std::string> words;
  cut_other(piece, words);
  const auto num_before = static_cast<std::ptrdiff_t>(token_ids.size());
  for (const std::string& word : words) append_word(word, token_ids);
  if (piece.size() > kMaxPieceBytes) return;
  if (known_pieces_.size() >= kMaxKnownPieces) known_pieces_.clear();  // the common ones are back soon
  known_pieces_.try_emplace(std::string(piece), token_ids.begin() + num_before, token_ids.end());
}

void BytePairEncoder::append_word(std::string_view word, std::vector<int32_t>& token_ids) {
  if (word.size() > KnownWords::kMaxBytes) return append_long_word(word, token_ids);
  const KnownWords::Key key = KnownWords::key_of(word);
  if (const auto known = known_words_.find(key); !known.empty()) {
    for (const int32_t id : known) token_ids.push_back(id);  // one or two, mostly
    return;
  }
  const std::vector<int32_t> ids = ids_of(word);
  token_ids.insert(token_ids.end(), ids.begin(), ids.end());
  known_words_.add(key, ids);
}

void BytePairEncoder::append_long_word(std::string_view word, std::vector<int32_t>& token_ids) {
  auto known = known_long_words_.find(word);
  if (known == known_long_words_.end()) {
    std::vector<int32_t> ids = ids_of(word);
    if (word.size() > kMaxWordBytes) {
      token_ids.insert(token_ids.end(), ids.begin(), ids.end());
      return;
    }
    if (known_long_words_.size() >= kMaxKnownLongWords) known_long_words_.clear();  // indentations are back soon
    known = known_long_words_.emplace(std::string(word), std::move(ids)).first;
  }
  token_ids.insert(token_ids.end(), known->second.begin(), known->second.end());
}

std::vector<int32_t> BytePairEncoder::ids_of(std::string_view word) const {
  if (ignores_merges_) {
    std::string text;
    for (const char c : word) text += byte_texts_[static_cast<unsigned char>(c)];
    if (const auto whole = vocabulary_.id_of(text)) return {*whole};
  }
  std::vector<int32_t> ids;
  ids.reserve(word.size());
  for (const char c : word) ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
  word.size() <= kMaxWordBytes ? merge_short(ids) : merge_long(ids);
  return ids;
}

// Merges the pair of the lowest rank, of several the first, until there is none.
void BytePairEncoder::merge_short(std::vector<int32_t>& ids) const {
  std::array<const Slot*, kMaxWordBytes> merges{};  // of ids[i] and ids[i + 1]
  for (size_t i = 0; i + 1 < ids.size(); ++i) merges[i] = find_merge(ids[i], ids[i + 1]);
  while (ids.size() > 1) {
    size_t best = 0;
    int32_t best_rank = kNoRank;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      if (merges[i] != nullptr && merges[i]->rank < best_rank) {
        best = i;
        best_rank = merges[i]->rank;
      }
    }
    if (best_rank == kNoRank) return;
    ids[best] = merges[best]->merged;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    std::copy(merges.begin() + static_cast<std::ptrdiff_t>(best) + 1,
              merges.begin() + static_cast<std::ptrdiff_t>(ids.size()),
              merges.begin() + static_cast<std::ptrdiff_t>(best));
    if (best > 0) merges[best - 1] = find_merge(ids[best - 1], ids[best]);
    if (best + 1 < ids.size()) merges[best] = find_merge(ids[best], ids[best + 1]);
  }
}

// The same in n log n steps: a heap of the pairs that can be merged, some of which are gone when their turn comes.
void BytePairEncoder::merge_long(std::vector<int32_t>& ids) const {
  constexpr int32_t kGone = -1;
  using Candidate = std::tuple<int32_t, size_t, const Slot*>;  // rank, left place, merge
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  std::vector<size_t> next(ids.size()), previous(ids.size());
  auto consider = [&](size_t left) {
    if (next[left] == ids.size()) return;
    if (const Slot* merge = find_merge(ids[left], ids[next[left]])) candidates.emplace(merge->rank, left, merge);
  };
  for (size_t i = 0; i < ids.size(); ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;  // of the first: never used
  }
  for (size_t i = 0; i + 1 < ids.size(); ++i) consider(i);
  while (!candidates.empty()) {
    const auto [rank, left, merge] = candidates.top();
    candidates.pop();
    const size_t right = next[left];
    if (right == ids.size() || ids[left] != merge->left || ids[right] != merge->right) continue;
    ids[left] = merge->merged;
    ids[right] = kGone;
    next[left] = next[right];
    if (next[left] < ids.size()) previous[next[left]] = left;
    consider(left);
    if (left > 0) consider(previous[left]);
  }
  std::erase(ids, kGone);
}

const BytePairEncoder::Slot* BytePairEncoder::find_merge(int32_t left, int32_t right) const {
  const Slot& slot = slots_[slot_of(left, right)];
  return slot.left < 0 ? nullptr : &slot;
}

// Where the pair is, or would be.
size_t BytePairEncoder::slot_of(int32_t left, int32_t right) const {
  const uint64_t key = (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
  const size_t mask = slots_.size() - 1;
  size_t index = static_cast<size_t>((key * 0x9E3779B97F4A7C15ULL) >> 32) & mask;
  while (slots_[index].left >= 0 && (slots_[index].left != left || slots_[index].right != right)) {
    index = (index + 1) & mask;
  }
  return index;
}

}  // namespace fmo
