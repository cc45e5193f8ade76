// When a sample ends: after each new token the first rule that holds gives the reason.
//
//   end-of-sequence or stop token → stop      output ends with a stop sequence → stop      token or context limit →
//   length
//
// Stop strings are the text layer's; it cancels the sample.
#pragma once

#include <cstddef>
#include <span>

#include "engine/sequence.h"

namespace fmo {

// FinishReason::none while the sample goes on. Looks at the last token of `sequence`, which must be an output token.
FinishReason stop_reason(const Sequence& sequence);

inline bool ends_with(std::span<const int32_t> tokens, std::span<const int32_t> tail) {
  if (tokens.size() < tail.size()) return false;
  const auto last = tokens.last(tail.size());
  for (size_t idx = 0; idx < tail.size(); ++idx) {
    if (last[idx] != tail[idx]) return false;
  }
  return true;
}

}  // namespace fmo
