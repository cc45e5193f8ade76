// The words that byte-level tokenizers cut an ASCII text into before they merge bytes: the regular expressions of three
// model families, written out by hand for one byte per character.
//
//   "The cat's 12  mats"  gpt2 ─▶ "The" · " cat" · "'s" · " 12" · " " · " mats"
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace fmo {

enum class WordRule : uint8_t { kGpt2, kLlama3, kQwen2 };

// The end of the word that begins at `pos` < text.size(). `text` is ASCII and is not followed by anything.
size_t word_end(WordRule rule, std::string_view text, size_t pos);

}  // namespace fmo
