#include "tokenizer/vocabulary.h"

#include <algorithm>
#include <functional>
#include <stdexcept>

namespace fmo {
namespace {

uint32_t hash_of(std::string_view text) { return static_cast<uint32_t>(std::hash<std::string_view>{}(text)); }

}  // namespace

void Vocabulary::add(std::string_view text, int32_t id) {
  if (id < 0 || id > kMaxTokenId) {
    throw std::invalid_argument("token '" + std::string(text) + "' has id " + std::to_string(id) + ", expected 0 to " +
                                std::to_string(kMaxTokenId));
  }
  if (text.size() >= kNoText - texts_.size()) throw std::invalid_argument("the tokens have more than 4 GB of text");
  if (2 * (num_tokens_ + 1) > slots_.size()) grow();
  const uint32_t hash = hash_of(text);
  Slot& slot = slots_[slot_of(text, hash)];
  if (slot.id >= 0 || text_of(id)) {
    throw std::invalid_argument("token '" + std::string(text) + "' with id " + std::to_string(id) +
                                ": the text or the id is there twice");
  }
  const auto index = static_cast<size_t>(id);
  if (index >= entries_.size()) entries_.resize(index + 1);
  entries_[index] = {static_cast<uint32_t>(texts_.size()), static_cast<uint32_t>(text.size())};
  slot = {hash, id, entries_[index]};
  texts_ += text;
  ++num_tokens_;
  max_text_bytes_ = std::max(max_text_bytes_, text.size());
}

std::optional<int32_t> Vocabulary::id_of(std::string_view text) const {
  if (slots_.empty()) return std::nullopt;
  const int32_t id = slots_[slot_of(text, hash_of(text))].id;
  return id < 0 ? std::nullopt : std::optional(id);
}

std::optional<std::string_view> Vocabulary::text_of(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= entries_.size()) return std::nullopt;
  const Entry& entry = entries_[static_cast<size_t>(id)];
  if (entry.num_bytes == kNoText) return std::nullopt;
  return text_at(entry);
}

// Where the text is, or would be.
size_t Vocabulary::slot_of(std::string_view text, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t index = hash & mask;
  while (slots_[index].id >= 0 && (slots_[index].hash != hash || text_at(slots_[index].entry) != text)) {
    index = (index + 1) & mask;
  }
  return index;
}

void Vocabulary::grow() {
  std::vector<Slot> old(std::max<size_t>(1024, 2 * slots_.size()));
  old.swap(slots_);
  const size_t mask = slots_.size() - 1;
  for (const Slot& slot : old) {
    if (slot.id < 0) continue;
    size_t index = slot.hash & mask;
    while (slots_[index].id >= 0) index = (index + 1) & mask;
    slots_[index] = slot;
  }
}

}  // namespace fmo
