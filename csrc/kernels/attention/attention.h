// Causal attention of each sequence over its paged KV cache.        contract of attention.cpu.*
//
//   one layer's cache, per block of 16 tokens and KV head (head_bytes), in cells of 32 bits: 1 f32, 2 bf16 or 4 i8
//     K [k_head_dim / pack][16 keys][pack d]       a cell holds neighbouring d of one key: no horizontal sums
//     V [16 / pack][v_head_dim padded to 8][pack keys]         a cell holds neighbouring keys of one d
//     K scales [16] f32, V scales [16] f32         only i8: max|x| / 127 over the head of one token
//
//   append        writes the keys and values of some rows to their slots (bf16, i8: round to nearest even)
//   attend_piece  the state (top, total, sums) of some rows after one piece of the context
//   attend        all pieces of a task, in order; or each piece on its own, then fold_piece in order and finish_row
//
// A task is `num_queries` rows of one sequence × the query heads of one KV head. Score of the key at j for the query at
// i: (q·k)·scale (i8: (q·codes)·key scale·scale), then softcap·tanh(score/softcap), then + slope·(j−i). The query sees
// the keys from max(0, i−window+1, i//chunk·chunk) to i; a sink is one more score whose value is 0.
//
// Order: the context is cut at multiples of kPieceKeys, a piece into tiles of kKeyTile. Within a piece every row does
// an online softmax tile by tile, its sums key by key; the states of the pieces are folded in order. So the bits depend
// neither on what else is in the task nor on which thread did which piece: prefill, chunks and decode agree. A slot
// outside of what a row sees never reaches its sums, even when it holds NaN.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/error.h"
#include "base/split.h"
#include "device/cpu/isa.h"

namespace fmo {

inline constexpr int64_t kKvBlock = 16;     // tokens per block
inline constexpr int64_t kKeyTile = 64;     // keys per step of the online softmax
inline constexpr int64_t kPieceKeys = 512;  // keys per piece: long enough that folding costs nothing beside it

// Query rows × heads of a task; more only when one KV head has more query heads.
inline constexpr int64_t kMaxTaskRows = 96;

struct KvLayer {
  char* data = nullptr;
  DType dtype = DType::f32;  // f32, bf16 or i8
  int64_t num_kv_heads = 0, k_head_dim = 0, v_head_dim = 0;

  int64_t pack() const { return 4 / dtype_bytes(dtype); }  // elements per cell
  int64_t k_padded() const { return round_up(k_head_dim, pack()); }
  int64_t v_padded() const { return round_up(v_head_dim, 8); }
  int64_t k_bytes() const { return k_padded() * kKvBlock * dtype_bytes(dtype); }  // of one block and head
  int64_t v_bytes() const { return v_padded() * kKvBlock * dtype_bytes(dtype); }
  int64_t scale_bytes() const { return dtype == DType::i8 ? kKvBlock * 4 : 0; }  // of K; V has as many
  int64_t head_bytes() const { return k_bytes() + v_bytes() + 2 * scale_bytes(); }
  int64_t block_bytes() const { return num_kv_heads * head_bytes(); }
  char* k(int64_t block, int64_t head) const { return data + block * block_bytes() + head * head_bytes(); }
  char* v(int64_t block, int64_t head) const { return k(block, head) + k_bytes(); }
  float* k_scales(int64_t block, int64_t head) const { return reinterpret_cast<float*>(v(block, head) + v_bytes()); }
  float* v_scales(int64_t block, int64_t head) const { return k_scales(block, head) + kKvBlock; }
  // Element offsets within K and V of one block and head.
  int64_t k_index(int64_t slot, int64_t d) const { return (d / pack() * kKvBlock + slot) * pack() + d % pack(); }
  int64_t v_index(int64_t slot, int64_t d) const { return (slot / pack() * v_padded() + d) * pack() + slot % pack(); }
};

struct AttentionParams {
  int64_t num_q_heads = 0;
  float scale = 1.0f, softcap = 0.0f;  // softcap 0: off
  int64_t window = 0, chunk = 0;       // 0: off
  const float* sinks = nullptr;        // [num_q_heads] or null
  const float* slopes = nullptr;       // [num_q_heads] or null

  int64_t first_key(int64_t position) const {
    int64_t first = 0;
    if (window > 0 && position - window + 1 > first) first = position - window + 1;
    if (chunk > 0 && position / chunk * chunk > first) first = position / chunk * chunk;
    return first;
  }
};

// Heads of one row follow each other at `head_stride`; elements of a head are contiguous.
struct HeadRows {
  const float* data = nullptr;
  int64_t row_stride = 0, head_stride = 0;
  const float* at(int64_t row, int64_t head) const { return data + row * row_stride + head * head_stride; }
};

// Row r of a task is query r / group, head r % group of the KV head's group.
struct AttentionTask {
  HeadRows q;            // row 0 is the first query of the task
  float* out = nullptr;  // row 0
  int64_t out_row_stride = 0, out_head_stride = 0;
  int64_t num_queries = 0, first_position = 0;
  int64_t kv_head = 0, group = 1;        // query heads per KV head
  const int32_t* block_table = nullptr;  // of the sequence

  int64_t num_rows() const { return num_queries * group; }
  int64_t query(int64_t row) const { return row / group; }
  int64_t head(int64_t row) const { return kv_head * group + row % group; }
  int64_t position(int64_t row) const { return first_position + query(row); }
  int64_t last_position() const { return first_position + num_queries - 1; }
};

// The online softmax of the rows of a task: highest score, sum of exp(score − top), and the same sum of the values.
struct RowStates {
  float *top = nullptr, *total = nullptr;  // [rows]
  float* sums = nullptr;                   // [rows][v_padded]

  static int64_t floats(const KvLayer& layer, int64_t num_rows) {
    return num_rows * layer.v_padded() + round_up(num_rows * 2, 16);
  }
  static RowStates in(float* memory, const KvLayer& layer, int64_t num_rows) {
    float* top = memory + num_rows * layer.v_padded();
    return {top, top + num_rows, memory};
  }
};

// The pieces that the rows of a task see.
inline Range task_pieces(const AttentionParams& params, const AttentionTask& task) {
  return {params.first_key(task.first_position) / kPieceKeys, task.last_position() / kPieceKeys + 1};
}

// Floats of scratch that `attend` and `attend_piece` need, for `task_rows` rows.
inline int64_t attention_scratch_floats(const KvLayer& layer, int64_t task_rows) {
  const int64_t k_padded = round_up(layer.k_head_dim, 4);
  const int64_t tile = kKeyTile * (k_padded + layer.v_padded() + 2);
  return task_rows * (k_padded + kKeyTile) + 2 * RowStates::floats(layer, task_rows) + tile + 64;
}

// Queries per task, so that query rows × heads fill a task.
inline int64_t queries_per_task(int64_t heads_per_kv_head) {
  return heads_per_kv_head >= kMaxTaskRows ? 1 : kMaxTaskRows / heads_per_kv_head;
}

struct AttentionKernels {
  // Row r of `k` and `v` is the token at `first_position + r`.
  void (*append)(const KvLayer& layer, const HeadRows& k, const HeadRows& v, int64_t num_rows, int64_t first_position,
                 const int32_t* block_table) = nullptr;
  // Sets `states` to what the rows have after the keys of one piece. A row that sees none of them has total 0.
  void (*attend_piece)(const KvLayer& layer, const AttentionParams& params, const AttentionTask& task, int64_t piece,
                       const RowStates& states, float* scratch) = nullptr;
};

const AttentionKernels& attention_kernels(Isa isa);

// The states before the first piece. A sink is a score that is there before the first key, with value 0.
void start_rows(const KvLayer& layer, const AttentionParams& params, const AttentionTask& task,
                const RowStates& running);
void fold_piece(const KvLayer& layer, const AttentionTask& task, const RowStates& piece, const RowStates& running);
void finish_rows(const KvLayer& layer, const AttentionTask& task, const RowStates& running);

// All pieces of a task.
void attend(const AttentionKernels& kernels, const KvLayer& layer, const AttentionParams& params,
            const AttentionTask& task, float* scratch);

}  // namespace fmo
