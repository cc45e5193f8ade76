// The one error type of the core. It carries the three parts of every message (what happened, where, what to do) and
// stops at the binding. Also the checked arithmetic for all numbers that come from a file.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fmo {

class Error : public std::runtime_error {
 public:
  Error(const std::string& what, const std::string& where, const std::string& hint)
      : std::runtime_error(what + "\nwhere: " + where + "\ntry: " + hint) {}
};

inline constexpr std::string_view kRecompileHint =
    "compile the model again with this version of fmo; if it happens again, report a bug";

// A plan that does not fit together: never the user's mistake, so the hint is always the same.
class PlanError : public Error {
 public:
  PlanError(const std::string& what, const std::string& where) : Error(what, where, std::string(kRecompileHint)) {}
};

inline int64_t checked_mul(int64_t a, int64_t b) {
  int64_t product = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product)) {
    throw PlanError("size " + std::to_string(a) + " × " + std::to_string(b) + " is negative or too large", "plan.json");
  }
  return product;
}

inline int64_t checked_add(int64_t a, int64_t b) {
  int64_t sum = 0;
  if (a < 0 || b < 0 || __builtin_add_overflow(a, b, &sum)) {
    throw PlanError("size " + std::to_string(a) + " + " + std::to_string(b) + " is negative or too large", "plan.json");
  }
  return sum;
}

inline constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
inline constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

}  // namespace fmo
