// Causal attention of each sequence over its paged KV cache.        contract of attention.cpu.*
//
//   one layer's cache, per block of 16 tokens (block_bytes):
//     [num_kv_heads] K [k_head_dim][16]                a d-slice holds 16 keys: no horizontal sums
//     [num_kv_heads] V [16][v_head_dim_padded]         a key holds its values, rounded up to 8
//
//   append  writes the keys and values of some rows to their slots (bf16: round to nearest even)
//   attend  one task: `num_queries` rows of one sequence × the query heads of one KV head
//
// score = q·k·scale, then softcap·tanh(score/softcap), then + slope·(j−i). The query at position i sees the keys from
// max(0, i−window+1, i//chunk·chunk) to i; a sink is one more score whose value is 0. Keys are read in tiles of
// kKeyTile at fixed positions; each query row does the same operations in the same order (online softmax, tile by tile,
// key by key) whatever else is in the task: same bits for prefill, chunks and decode. A slot outside of what a row sees
// never reaches its sums, even when it holds NaN.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/error.h"
#include "base/split.h"
#include "device/cpu/isa.h"

namespace fmo {

inline constexpr int64_t kKvBlock = 16;  // tokens per block
inline constexpr int64_t kKeyTile = 64;  // keys per step of the online softmax

// Query rows × heads of a task; more only when one KV head has more query heads.
inline constexpr int64_t kMaxTaskRows = 64;

struct KvLayer {
  char* data = nullptr;
  DType dtype = DType::f32;  // f32 or bf16
  int64_t num_kv_heads = 0, k_head_dim = 0, v_head_dim = 0;

  int64_t v_padded() const { return round_up(v_head_dim, 8); }
  int64_t k_bytes() const { return k_head_dim * kKvBlock * dtype_bytes(dtype); }  // of one block and head
  int64_t v_bytes() const { return v_padded() * kKvBlock * dtype_bytes(dtype); }
  int64_t block_bytes() const { return num_kv_heads * (k_bytes() + v_bytes()); }
  char* k(int64_t block, int64_t head) const { return data + block * block_bytes() + head * k_bytes(); }
  char* v(int64_t block, int64_t head) const {
    return data + block * block_bytes() + num_kv_heads * k_bytes() + head * v_bytes();
  }
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

struct AttentionTask {
  HeadRows q;            // row 0 is the first query of the task
  float* out = nullptr;  // row 0
  int64_t out_row_stride = 0, out_head_stride = 0;
  int64_t num_queries = 0, first_position = 0;
  int64_t kv_head = 0;
  const int32_t* block_table = nullptr;  // of the sequence
};

// Floats of scratch that `attend` needs, for `task_rows` = queries × heads per KV head.
inline int64_t attention_scratch_floats(const KvLayer& layer, int64_t task_rows) {
  const int64_t tile = kKeyTile * (layer.k_head_dim + layer.v_padded());
  return task_rows * (kKeyTile + layer.v_padded() + 2) + tile + 64;
}

// Queries per task, so that query rows × heads fill a task.
inline int64_t queries_per_task(int64_t heads_per_kv_head) {
  return heads_per_kv_head >= kMaxTaskRows ? 1 : kMaxTaskRows / heads_per_kv_head;
}

struct AttentionKernels {
  // Row r of `k` and `v` is the token at `first_position + r`.
  void (*append)(const KvLayer& layer, const HeadRows& k, const HeadRows& v, int64_t num_rows, int64_t first_position,
                 const int32_t* block_table) = nullptr;
  void (*attend)(const KvLayer& layer, const AttentionParams& params, const AttentionTask& task,
                 float* scratch) = nullptr;
};

const AttentionKernels& attention_kernels(Isa isa);

}  // namespace fmo
