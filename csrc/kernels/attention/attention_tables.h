// The tables of attention kernels by instruction set; `attention_kernels` chooses one. What both share: `append` and
// the order of the tiles.
#pragma once

#include <algorithm>

#include "kernels/attention/attention.h"

namespace fmo {

void append_kv(const KvLayer& layer, const HeadRows& k, const HeadRows& v, int64_t num_rows, int64_t first_position,
               const int32_t* block_table);

AttentionKernels attention_kernels_scalar();
AttentionKernels attention_kernels_avx2();

// The state of a task in scratch: row = query · heads_per_kv_head + head in the group.
struct AttentionState {
  int64_t group, num_rows;             // query heads per KV head, rows
  float *scores, *sums, *top, *total;  // [rows][kKeyTile], [rows][v_padded], [rows], [rows]
  float* tile;                         // a tile of keys and values as f32

  AttentionState(const KvLayer& layer, const AttentionParams& params, const AttentionTask& task, float* scratch)
      : group(params.num_q_heads / layer.num_kv_heads), num_rows(task.num_queries * group) {
    scores = scratch;
    sums = scores + num_rows * kKeyTile;
    top = sums + num_rows * layer.v_padded();
    total = top + num_rows;
    tile = total + num_rows + (16 - (num_rows * 2) % 16) % 16;
  }
  int64_t query(int64_t row) const { return row / group; }
  int64_t head(const AttentionTask& task, int64_t row) const { return task.kv_head * group + row % group; }

  // A sink is a score that is there before the first key, with value 0.
  void start(const AttentionParams& params, const AttentionTask& task, int64_t v_padded) {
    std::fill_n(sums, num_rows * v_padded, 0.0f);
    for (int64_t row = 0; row < num_rows; ++row) {
      const bool has_sink = params.sinks != nullptr;
      top[row] = has_sink ? params.sinks[head(task, row)] : -__builtin_inff();
      total[row] = has_sink ? 1.0f : 0.0f;
    }
  }
};

// The keys of the tile at `tile_begin` that a query sees, relative to the tile; empty when begin ≥ end.
inline Range visible_keys(const AttentionParams& params, int64_t position, int64_t tile_begin) {
  const int64_t begin = std::max<int64_t>(params.first_key(position) - tile_begin, 0);
  return {begin, std::min(position + 1 - tile_begin, kKeyTile)};
}

}  // namespace fmo
