#include "tokenizer/tokenizer_json.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <stdexcept>

namespace fmo {
namespace {

// Walks through JSON text from left to right.
class Reader {
 public:
  explicit Reader(std::string_view json) : json_(json) {}

  size_t pos() const { return pos_; }
  bool is_at_end() { return next() == '\0' && pos_ >= json_.size(); }

  // The next character that is no white space; '\0' at the end.
  char next() {
    while (pos_ < json_.size() && (json_[pos_] == ' ' || (json_[pos_] >= '\t' && json_[pos_] <= '\r'))) ++pos_;
    return pos_ < json_.size() ? json_[pos_] : '\0';
  }

  void expect(char wanted) {
    if (next() != wanted) fail(std::string("expected '") + wanted + "'");
    ++pos_;
  }

  // Calls `on_item` at each item of an array or object, which must walk over it.
  template <typename OnItem>
  void each(char opening, char closing, OnItem on_item) {
    expect(opening);
    if (next() == closing) {
      ++pos_;
      return;
    }
    for (;;) {
      on_item();
      if (next() == closing) break;
      expect(',');
    }
    ++pos_;
  }

  // A string; without escapes it is part of the JSON text, else in `unescaped`.
  std::string_view string(std::string& unescaped) {
    expect('"');
    const size_t begin = pos_;
    while (pos_ < json_.size() && json_[pos_] != '"' && json_[pos_] != '\\') ++pos_;
    if (pos_ < json_.size() && json_[pos_] == '"') return json_.substr(begin, pos_++ - begin);
    unescaped = json_.substr(begin, pos_ - begin);
    while (pos_ < json_.size() && json_[pos_] != '"') {
      if (json_[pos_] == '\\') {
        append_escape(unescaped);
      } else {
        unescaped += json_[pos_++];
      }
    }
    expect('"');
    return unescaped;
  }

  int32_t integer() {
    next();
    int32_t value = 0;
    const char* begin = json_.data() + pos_;
    const auto [end, error] = std::from_chars(begin, json_.data() + json_.size(), value);
    if (error != std::errc()) fail("expected an id");
    pos_ += static_cast<size_t>(end - begin);
    return value;
  }

  // Over one value of any kind, whose brackets and strings end.
  void skip() {
    const char first = next();
    if (first == '\0') fail("expected a value");
    if (first == '"') return skip_string();
    if (first != '{' && first != '[') return skip_literal();
    for (int64_t depth = 0; pos_ < json_.size();) {
      const char c = json_[pos_];
      if (c == '"') {
        skip_string();
        continue;
      }
      ++pos_;
      depth += (c == '{' || c == '[') - (c == '}' || c == ']');
      if (depth == 0) return;
    }
    fail("a value does not end");
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::invalid_argument("tokenizer.json: " + what + " at byte " + std::to_string(pos_));
  }

  void skip_string() {
    const char* at = json_.data() + pos_ + 1;
    const char* const end = json_.data() + json_.size();
    while (at < end && *at != '"') at += *at == '\\' ? 2 : 1;
    if (at >= end) fail("a string does not end");
    pos_ = static_cast<size_t>(at - json_.data()) + 1;
  }

  // A number, true, false or null.
  void skip_literal() { pos_ = std::min(json_.size(), json_.find_first_of(",]}: \t\r\n\"", pos_ + 1)); }

  void append_escape(std::string& text) {
    constexpr std::string_view kNames = "\"\\/bfnrt";
    constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    const char name = ++pos_ < json_.size() ? json_[pos_++] : '\0';
    if (name == 'u') return append_utf8(code_point(), text);
    const size_t found = kNames.find(name);
    if (name == '\0' || found == std::string_view::npos) fail("unknown escape");
    text += kMeanings[found];
  }

  uint32_t code_point() {
    const uint32_t first = four_digits();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first > 0xDBFF || json_.substr(pos_, 2) != "\\u") fail("half a character");
    pos_ += 2;
    const uint32_t second = four_digits();
    if (second < 0xDC00 || second > 0xDFFF) fail("half a character");
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }

  uint32_t four_digits() {
    uint32_t value = 0;
    const std::string_view digits = json_.substr(pos_, 4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (error != std::errc() || end != digits.data() + 4) fail("expected four digits");
    pos_ += 4;
    return value;
  }

  static void append_utf8(uint32_t code, std::string& text) {
    if (code < 0x80) {
      text += static_cast<char>(code);
      return;
    }
    const int num_more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    constexpr uint32_t kLeads[] = {0, 0xC0, 0xE0, 0xF0};
    text += static_cast<char>(kLeads[num_more] | (code >> (6 * num_more)));
    for (int idx = num_more - 1; idx >= 0; --idx) text += static_cast<char>(0x80 | ((code >> (6 * idx)) & 0x3F));
  }

  std::string_view json_;
  size_t pos_ = 0;
};

}  // namespace

TokenizerJson split_tokenizer_json(std::string_view json) {
  TokenizerJson parts;
  Reader reader(json);
  std::string name;
  size_t num_copied = 0;
  auto take = [&](std::string_view& part) {
    reader.next();
    const size_t begin = reader.pos();
    reader.skip();
    part = json.substr(begin, reader.pos() - begin);
    parts.rest += json.substr(num_copied, begin - num_copied);
    parts.rest += "null";
    num_copied = reader.pos();
  };
  auto on_model_field = [&] {
    const std::string field(reader.string(name));
    reader.expect(':');
    if (field == "vocab") return take(parts.vocab);
    if (field == "merges") return take(parts.merges);
    reader.skip();
  };
  reader.each('{', '}', [&] {
    const std::string field(reader.string(name));
    reader.expect(':');
    if (field == "model" && reader.next() == '{') return reader.each('{', '}', on_model_field);
    reader.skip();
  });
  parts.rest += json.substr(num_copied);
  return parts;
}

Vocabulary read_vocabulary(std::string_view json) {
  Vocabulary vocabulary;
  Reader reader(json);
  std::string unescaped;
  reader.each('{', '}', [&] {
    const std::string_view text = reader.string(unescaped);
    reader.expect(':');
    vocabulary.add(text, reader.integer());
  });
  return vocabulary;
}

std::vector<Merge> read_merges(std::string_view json, const Vocabulary& vocabulary) {
  std::vector<Merge> merges;
  Reader reader(json);
  std::string left_room, right_room, merged;
  auto id_of = [&](std::string_view text) {
    if (const auto id = vocabulary.id_of(text)) return *id;
    throw std::invalid_argument("tokenizer.json: merge " + std::to_string(merges.size()) +
                                " is about a token that the vocabulary does not have: '" + std::string(text) + "'");
  };
  auto add = [&](std::string_view left, std::string_view right) {
    merged.assign(left).append(right);
    merges.push_back({id_of(left), id_of(right), id_of(merged)});
  };
  reader.each('[', ']', [&] {
    if (reader.next() == '[') {
      reader.expect('[');
      const std::string_view left = reader.string(left_room);
      reader.expect(',');
      const std::string_view right = reader.string(right_room);
      reader.expect(']');
      return add(left, right);
    }
    const std::string_view both = reader.string(left_room);
    const size_t space = both.find(' ');
    if (space == std::string_view::npos || both.find(' ', space + 1) != std::string_view::npos) {
      throw std::invalid_argument("tokenizer.json: merge '" + std::string(both) + "' is not two tokens");
    }
    add(both.substr(0, space), both.substr(space + 1));
  });
  return merges;
}

}  // namespace fmo
