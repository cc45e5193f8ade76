// One step's input: a ragged batch of token rows, packed without padding.
//
//   seq 0         seq 1   seq 2            cu_seqlens = {0, 5, 6, 9}
//   [t t t t t]   [t]     [t t t]          row r of sequence s holds position
//                                          context_lens[s] + (r - cu_seqlens[s])
//
// Block b of `block_tables[s]` holds positions 16*b … 16*b+15 of sequence s; entries beyond the last position of the
// step are not read. The batch owns nothing: every pointer must stay valid until `Executor::forward` returns.
#pragma once

#include <cstdint>

namespace fmo {

inline constexpr int32_t kBlockSize = 16;  // tokens per KV block

struct Batch {
  int32_t num_tokens = 0;
  int32_t num_seqs = 0;
  int32_t num_logits = 0;                 // rows of which the logits are wanted; may be 0
  const int32_t* input_ids = nullptr;     // [num_tokens]
  const int32_t* position_ids = nullptr;  // [num_tokens]
  const int32_t* cu_seqlens = nullptr;    // [num_seqs + 1], starts at 0, ends at num_tokens, strictly rising
  const int32_t* context_lens = nullptr;  // [num_seqs] tokens already in the KV cache
  const int32_t* block_tables = nullptr;  // [num_seqs, block_table_stride]
  int32_t block_table_stride = 0;
  const int32_t* logit_rows = nullptr;     // [num_logits] rows of this batch, in the order of the logits
  const int32_t* adapter_slots = nullptr;  // [num_seqs] slot of each sequence's adapter or -1; null: nobody has one
  // [num_tokens] of each row the vector that stands in place of its token's, or null; null: no row has one.
  const float* const* embeddings = nullptr;
};

}  // namespace fmo
