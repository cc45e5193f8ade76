#include "tokenizer/words.h"

#include <algorithm>

namespace fmo {
namespace {

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_newline(char c) { return c == '\r' || c == '\n'; }
bool is_other(char c) { return !is_letter(c) && !is_digit(c) && !is_space(c); }

template <typename Class>
size_t run_end(std::string_view text, size_t pos, Class is_member) {
  while (pos < text.size() && is_member(text[pos])) ++pos;
  return pos;
}

// 's|'t|'re|'ve|'m|'ll|'d: where it ends, 0 if there is none.
size_t contraction_end(std::string_view text, size_t pos, bool ignores_case) {
  if (text[pos] != '\'') return 0;
  auto letter = [&](size_t offset) {
    const char c = pos + offset < text.size() ? text[pos + offset] : '\0';
    return ignores_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  const char first = letter(1);
  const char second = letter(2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return pos + 2;
  const bool is_pair =
      (first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l');
  return is_pair ? pos + 3 : 0;
}

// \s+(?!\S)|\s+: white space, but for its last character if a word follows.
size_t space_end(std::string_view text, size_t pos) {
  const size_t end = run_end(text, pos, is_space);
  return end == text.size() || end == pos + 1 ? end : end - 1;
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t gpt2_word_end(std::string_view text, size_t pos) {
  if (const size_t end = contraction_end(text, pos, false)) return end;
  const size_t start = text[pos] == ' ' && pos + 1 < text.size() ? pos + 1 : pos;
  if (is_letter(text[start])) return run_end(text, start, is_letter);
  if (is_digit(text[start])) return run_end(text, start, is_digit);
  if (is_other(text[start])) return run_end(text, start, is_other);
  return space_end(text, pos);
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max_digits}|
// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
size_t llama3_word_end(std::string_view text, size_t pos, size_t max_digits) {
  if (const size_t end = contraction_end(text, pos, true)) return end;
  const char c = text[pos];
  if (is_letter(c)) return run_end(text, pos, is_letter);
  if (is_digit(c)) return std::min(run_end(text, pos, is_digit), pos + max_digits);
  const bool has_next = pos + 1 < text.size();
  if (!is_newline(c) && has_next && is_letter(text[pos + 1])) return run_end(text, pos + 1, is_letter);
  const size_t start = c == ' ' && has_next ? pos + 1 : pos;
  if (is_other(text[start])) return run_end(text, run_end(text, start, is_other), is_newline);
  const std::string_view spaces = text.substr(pos, run_end(text, pos, is_space) - pos);
  const size_t last_newline = spaces.find_last_of("\r\n");
  return last_newline != std::string_view::npos ? pos + last_newline + 1 : space_end(text, pos);
}

}  // namespace

size_t word_end(WordRule rule, std::string_view text, size_t pos) {
  if (rule == WordRule::kGpt2) return gpt2_word_end(text, pos);
  return llama3_word_end(text, pos, rule == WordRule::kLlama3 ? 3 : 1);
}

}  // namespace fmo
