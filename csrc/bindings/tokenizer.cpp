// `_core.BytePairEncoder`: the encoder of csrc/tokenizer, made from what a tokenizer.json holds.
#include "tokenizer/byte_pair_encoder.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "tokenizer/tokenizer_json.h"

namespace nb = nanobind;

namespace fmo {
namespace {

WordRule rule_named(const std::string& name) {
  if (name == "gpt2") return WordRule::kGpt2;
  if (name == "llama3") return WordRule::kLlama3;
  if (name == "qwen2") return WordRule::kQwen2;
  throw std::invalid_argument("word rule is '" + name + "', expected gpt2, llama3 or qwen2");
}

constexpr size_t kMaxByteChars = 512;  // those that stand for bytes are below

struct Encoder {
  explicit Encoder(BytePairModel model, const std::array<int16_t, kMaxByteChars>& byte_of_char)
      : core(std::move(model)), byte_of(byte_of_char) {}

  // The Python number of a token id; each is made once.
  PyObject* number_of(int32_t token_id) {
    const auto index = static_cast<size_t>(token_id);
    if (index >= numbers.size()) numbers.resize(index + 1);
    if (!numbers[index].is_valid()) numbers[index] = nb::int_(token_id);
    return nb::object(numbers[index]).release().ptr();
  }

  // A word as the pre-tokenizers of the library write it, as bytes.
  std::string bytes_of(const nb::handle& word) const {
    const auto num_chars = static_cast<size_t>(PyUnicode_GET_LENGTH(word.ptr()));
    std::string bytes(num_chars, '\0');
    for (size_t i = 0; i < num_chars; ++i) {
      const Py_UCS4 c = PyUnicode_READ_CHAR(word.ptr(), static_cast<Py_ssize_t>(i));
      if (c >= kMaxByteChars || byte_of[c] < 0) throw std::logic_error("a word has a character that is not a byte");
      bytes[i] = static_cast<char>(byte_of[c]);
    }
    return bytes;
  }

  BytePairEncoder core;
  std::array<int16_t, kMaxByteChars> byte_of;
  std::vector<nb::object> numbers;
};

nb::list encode(Encoder& self, const nb::str& text, const nb::callable& cut_other, bool finds_added_tokens) {
  Py_ssize_t num_bytes = 0;
  const char* bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &num_bytes);
  if (bytes == nullptr) throw nb::python_error();
  std::vector<int32_t> token_ids;
  token_ids.reserve(static_cast<size_t>(num_bytes) / 2 + 8);
  auto cut = [&](std::string_view piece, std::vector<std::string>& words) {
    for (const nb::handle word : cut_other(nb::str(piece.data(), piece.size()))) words.push_back(self.bytes_of(word));
  };
  const std::string_view view(bytes, static_cast<size_t>(num_bytes));
  finds_added_tokens ? self.core.encode(view, cut, token_ids) : self.core.encode_words(view, cut, token_ids);
  PyObject* result = PyList_New(static_cast<Py_ssize_t>(token_ids.size()));
  if (result == nullptr) throw nb::python_error();
  for (size_t i = 0; i < token_ids.size(); ++i) {
    PyList_SET_ITEM(result, static_cast<Py_ssize_t>(i), self.number_of(token_ids[i]));
  }
  return nb::steal<nb::list>(result);
}

using Tokens = std::vector<std::pair<std::string, int32_t>>;

void make_encoder(Encoder* self, const std::string& rule, const nb::bytes& vocab, const nb::bytes& merges,
                  const std::vector<std::string>& byte_texts, bool ignores_merges) {
  BytePairModel model;
  model.rule = rule_named(rule);
  if (byte_texts.size() != model.byte_texts.size()) {
    throw std::invalid_argument(std::to_string(byte_texts.size()) + " bytes have a text, expected 256");
  }
  std::array<int16_t, kMaxByteChars> byte_of{};
  byte_of.fill(-1);
  for (size_t byte = 0; byte < byte_texts.size(); ++byte) {
    const nb::str text(byte_texts[byte].data(), byte_texts[byte].size());
    byte_of.at(PyUnicode_READ_CHAR(text.ptr(), 0)) = static_cast<int16_t>(byte);
    model.byte_texts[byte] = byte_texts[byte];
  }
  model.ignores_merges = ignores_merges;
  const nb::gil_scoped_release release;  // these are nearly all of the time
  model.vocabulary = read_vocabulary({vocab.c_str(), vocab.size()});
  model.merges = read_merges({merges.c_str(), merges.size()}, model.vocabulary);
  new (self) Encoder(std::move(model), byte_of);
}

nb::object text_of(const Encoder& self, int64_t token_id) {
  if (token_id < 0 || token_id > kMaxTokenId) return nb::none();
  const auto text = self.core.vocabulary().text_of(static_cast<int32_t>(token_id));
  return text ? nb::object(nb::str(text->data(), text->size())) : nb::none();
}

nb::object id_of(const Encoder& self, const std::string& text) {
  const auto id = self.core.vocabulary().id_of(text);
  return id ? nb::object(nb::int_(*id)) : nb::none();
}

nb::tuple split_json(const nb::bytes& json) {
  const TokenizerJson parts = [&] {
    const nb::gil_scoped_release release;
    return split_tokenizer_json({json.c_str(), json.size()});
  }();
  auto bytes_of = [](std::string_view part) { return nb::bytes(part.data(), part.size()); };
  return nb::make_tuple(bytes_of(parts.rest), bytes_of(parts.vocab), bytes_of(parts.merges));
}

}  // namespace

void bind_tokenizer(nb::module_& m) {
  m.def("split_tokenizer_json", &split_json, nb::arg("json"),
        "(rest, vocab, merges) of a tokenizer.json: the two values of its model as they stand, b\"\" where there is "
        "none, and everything else. Raises ValueError.");
  nb::class_<Encoder>(m, "BytePairEncoder",
                      "Text to token ids for byte-level BPE; see csrc/tokenizer/byte_pair_encoder.h. It keeps the GIL.")
      .def("__init__", &make_encoder, nb::arg("rule"), nb::arg("vocab"), nb::arg("merges"), nb::kw_only(),
           nb::arg("byte_texts"), nb::arg("ignores_merges"),
           "`rule`: gpt2, llama3 or qwen2. `vocab`, `merges`: JSON. `byte_texts`: how the vocabulary writes each byte. "
           "`ignores_merges`: a word that is a token stays whole. Raises ValueError.")
      .def(
          "look_for",
          [](Encoder& self, Tokens first, Tokens later) {
            self.core.look_for(TokenTable(std::move(first)), TokenTable(std::move(later)));
          },
          nb::arg("first"), nb::arg("later"),
          "Added tokens: those that are looked for first, and those that are looked for in what is left.")
      .def("encode", &encode, nb::arg("text"), nb::arg("cut_other"), nb::arg("finds_added_tokens"),
           "Token ids of `text`; `cut_other(piece)` gives the words of the pieces that are not ASCII, in the "
           "characters of `byte_texts`.")
      .def("text_of", &text_of, nb::arg("token_id"), "The text of a token of the vocabulary; None: it has none.")
      .def("id_of", &id_of, nb::arg("text"), "The id of a token of the vocabulary; None: there is none.")
      .def_prop_ro("num_tokens", [](const Encoder& self) { return self.core.vocabulary().size(); })
      .def_prop_ro("max_token_id", [](const Encoder& self) { return self.core.vocabulary().max_id(); })
      .def_prop_ro("max_text_bytes", [](const Encoder& self) { return self.core.vocabulary().max_text_bytes(); })
      .def_prop_ro("num_known_words", [](const Encoder& self) { return self.core.num_known_words(); })
      .def_prop_ro("num_known_pieces", [](const Encoder& self) { return self.core.num_known_pieces(); });
}

}  // namespace fmo
