// The tables of attention kernels by instruction set; `attention_kernels` chooses one. What both share: `append` and
// the keys that a row sees.
#pragma once

#include <algorithm>

#include "kernels/attention/attention.h"

namespace fmo {

void append_kv(const KvLayer& layer, const HeadRows& k, const HeadRows& v, int64_t num_rows, int64_t first_position,
               const int32_t* block_table);

AttentionKernels attention_kernels_scalar();
AttentionKernels attention_kernels_avx2();

inline void clear_rows(const KvLayer& layer, int64_t num_rows, const RowStates& states) {
  std::fill_n(states.sums, num_rows * layer.v_padded(), 0.0f);
  std::fill_n(states.top, num_rows, -__builtin_inff());
  std::fill_n(states.total, num_rows, 0.0f);
}

// The keys of the tile at `tile_begin` that a query sees, relative to the tile; empty when begin ≥ end.
inline Range visible_keys(const AttentionParams& params, int64_t position, int64_t tile_begin) {
  const int64_t begin = std::max<int64_t>(params.first_key(position) - tile_begin, 0);
  return {begin, std::min(position + 1 - tile_begin, kKeyTile)};
}

}  // namespace fmo
