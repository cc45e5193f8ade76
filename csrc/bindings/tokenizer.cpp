// `_core.BytePairEncoder`: the encoder of csrc/tokenizer, made from what a tokenizer.json holds.
#include "tokenizer/byte_pair_encoder.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <unordered_map>

#include "bindings/bindings.h"

namespace nb = nanobind;

namespace fmo {
namespace {

WordRule rule_named(const std::string& name) {
  if (name == "gpt2") return WordRule::kGpt2;
  if (name == "llama3") return WordRule::kLlama3;
  if (name == "qwen2") return WordRule::kQwen2;
  throw std::invalid_argument("word rule is '" + name + "', expected gpt2, llama3 or qwen2");
}

int32_t id_of(const nb::dict& vocab, const nb::handle& token) {
  PyObject* found = PyDict_GetItemWithError(vocab.ptr(), token.ptr());
  if (found == nullptr) throw std::invalid_argument("the vocabulary has no '" + nb::cast<std::string>(token) + "'");
  return nb::cast<int32_t>(nb::handle(found));
}

// `merges`: pairs of token texts, first the one that wins.
std::vector<Merge> read_merges(const nb::dict& vocab, const nb::list& merges) {
  std::vector<Merge> result;
  result.reserve(merges.size());
  for (const nb::handle pair : merges) {
    const nb::object left = pair[0];
    const nb::object right = pair[1];
    const nb::object merged = left + right;
    result.push_back({id_of(vocab, left), id_of(vocab, right), id_of(vocab, merged)});
  }
  return result;
}

// The token texts of `vocab` as the bytes that they stand for, but for those that are too long to be asked for.
std::vector<std::pair<std::string, int32_t>> words_of(const nb::dict& vocab,
                                                      const std::vector<nb::object>& byte_texts) {
  std::unordered_map<Py_UCS4, char> byte_of;
  for (size_t byte = 0; byte < byte_texts.size(); ++byte) {
    byte_of[PyUnicode_READ_CHAR(byte_texts[byte].ptr(), 0)] = static_cast<char>(byte);
  }
  std::vector<std::pair<std::string, int32_t>> words;
  for (const auto& [token, id] : vocab) {
    const auto num_chars = static_cast<size_t>(PyUnicode_GET_LENGTH(token.ptr()));
    if (num_chars == 0 || num_chars > kMaxWordBytes) continue;
    std::string word;
    for (size_t i = 0; i < num_chars; ++i) {
      const auto byte = byte_of.find(PyUnicode_READ_CHAR(token.ptr(), static_cast<Py_ssize_t>(i)));
      if (byte != byte_of.end()) word += byte->second;
    }
    if (word.size() == num_chars) words.emplace_back(std::move(word), nb::cast<int32_t>(id));
  }
  return words;
}

struct Encoder {
  explicit Encoder(BytePairModel model) : core(std::move(model)) {}

  // The Python number of a token id; each is made once.
  PyObject* number_of(int32_t token_id) {
    const auto index = static_cast<size_t>(token_id);
    if (index >= numbers.size()) numbers.resize(index + 1);
    if (!numbers[index].is_valid()) numbers[index] = nb::int_(token_id);
    return nb::object(numbers[index]).release().ptr();
  }

  BytePairEncoder core;
  std::vector<nb::object> numbers;
};

nb::list encode(Encoder& self, const nb::str& text, const nb::callable& encode_other) {
  Py_ssize_t num_bytes = 0;
  const char* bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &num_bytes);
  if (bytes == nullptr) throw nb::python_error();
  std::vector<int32_t> token_ids;
  token_ids.reserve(static_cast<size_t>(num_bytes) / 2 + 8);
  self.core.encode(
      {bytes, static_cast<size_t>(num_bytes)},
      [&](std::string_view piece, std::vector<int32_t>& ids) {
        for (const nb::handle id : encode_other(nb::str(piece.data(), piece.size())))
          ids.push_back(nb::cast<int32_t>(id));
      },
      token_ids);
  PyObject* result = PyList_New(static_cast<Py_ssize_t>(token_ids.size()));
  if (result == nullptr) throw nb::python_error();
  for (size_t i = 0; i < token_ids.size(); ++i) {
    PyList_SET_ITEM(result, static_cast<Py_ssize_t>(i), self.number_of(token_ids[i]));
  }
  return nb::steal<nb::list>(result);
}

}  // namespace

void bind_tokenizer(nb::module_& m) {
  using Tokens = std::vector<std::pair<std::string, int32_t>>;
  nb::class_<Encoder>(m, "BytePairEncoder",
                      "Text to token ids for byte-level BPE; see csrc/tokenizer/byte_pair_encoder.h. It keeps the GIL.")
      .def(
          "__init__",
          [](Encoder* self, const std::string& rule, const nb::dict& vocab, const nb::list& merges,
             const std::vector<nb::object>& byte_texts, bool ignores_merges, Tokens first_tokens, Tokens later_tokens) {
            BytePairModel model;
            model.rule = rule_named(rule);
            if (byte_texts.size() != 256) {
              throw std::invalid_argument(std::to_string(byte_texts.size()) + " bytes have a token, expected 256");
            }
            for (size_t byte = 0; byte < 256; ++byte) model.byte_ids[byte] = id_of(vocab, byte_texts[byte]);
            model.merges = read_merges(vocab, merges);
            if (ignores_merges) model.whole_words = words_of(vocab, byte_texts);
            model.first_tokens = std::move(first_tokens);
            model.later_tokens = std::move(later_tokens);
            new (self) Encoder(std::move(model));
          },
          nb::arg("rule"), nb::arg("vocab"), nb::arg("merges"), nb::kw_only(), nb::arg("byte_texts"),
          nb::arg("ignores_merges"), nb::arg("first_tokens"), nb::arg("later_tokens"),
          "`rule`: gpt2, llama3 or qwen2. `merges`: pairs of texts of `vocab`. `byte_texts`: the token of each byte. "
          "`ignores_merges`: a word that is a token stays whole. Added tokens, the first ones looked for before the "
          "others.")
      .def("encode", &encode, nb::arg("text"), nb::arg("encode_other"),
           "Token ids of `text`; `encode_other(piece)` gives those of the pieces that are not ASCII.")
      .def_prop_ro("num_known_words", [](const Encoder& self) { return self.core.num_known_words(); });
}

}  // namespace fmo
