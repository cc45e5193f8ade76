// The static partition of work: part `index` of `num_parts` nearly equal ranges of 0 … count.
#pragma once

#include <cstdint>

namespace fmo {

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

inline Range split(int64_t count, int index, int num_parts) {
  const int64_t share = count / num_parts, rest = count % num_parts;
  const int64_t begin = share * index + (index < rest ? index : rest);
  return {begin, begin + share + (index < rest ? 1 : 0)};
}

}  // namespace fmo
