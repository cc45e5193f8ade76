// Reads a tokenizer.json of BPE: its vocabulary and its merges, which are nearly all of it, here; the rest as JSON for
// whoever reads settings.
//
//   {"version": …, "model": {"type": "BPE", "vocab": {"a": 0, …}, "merges": [["a", "b"], …]}, …}
//         rest:  the same with "vocab": null, "merges": null            vocab, merges: those two values as they stand
//
// Checked is what is read here only: `rest` may still not be JSON.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/byte_pair_encoder.h"
#include "tokenizer/vocabulary.h"

namespace fmo {

struct TokenizerJson {
  std::string rest;
  std::string_view vocab;  // empty: the model has none
  std::string_view merges;
};

// All of these throw std::invalid_argument for what is not as expected.
TokenizerJson split_tokenizer_json(std::string_view json);
// An object of texts and ids.
Vocabulary read_vocabulary(std::string_view json);
// An array of pairs of texts of the vocabulary, ["a", "b"] or "a b", first the one that wins.
std::vector<Merge> read_merges(std::string_view json, const Vocabulary& vocabulary);

}  // namespace fmo
