// Reference of attention: one row, one key at a time, in the order of the contract.
#include <cmath>

#include "kernels/attention/attention_tables.h"

namespace fmo {
namespace {

float load(const KvLayer& layer, const char* p, int64_t index) {
  if (layer.dtype == DType::f32) return reinterpret_cast<const float*>(p)[index];
  if (layer.dtype == DType::i8) return reinterpret_cast<const int8_t*>(p)[index];
  return bf16_to_f32(reinterpret_cast<const bf16_t*>(p)[index]);
}

float score_of(const KvLayer& layer, const AttentionParams& params, const float* q, int64_t block, int64_t head,
               int64_t slot) {
  float sum = 0.0f;
  for (int64_t d = 0; d < layer.k_head_dim; ++d)
    sum += q[d] * load(layer, layer.k(block, head), layer.k_index(slot, d));
  if (layer.dtype == DType::i8) sum *= layer.k_scales(block, head)[slot];
  sum *= params.scale;
  return params.softcap > 0.0f ? params.softcap * std::tanh(sum / params.softcap) : sum;
}

// One row against the visible keys of one tile.
void attend_tile(const KvLayer& layer, const AttentionParams& params, const AttentionTask& task,
                 const RowStates& states, int64_t row, int64_t tile_begin) {
  const int64_t position = task.position(row), head = task.head(row);
  const Range visible = visible_keys(params, position, tile_begin);
  if (visible.begin >= visible.end) return;
  const float* q = task.q.at(task.query(row), head);
  float scores[kKeyTile];
  float top = states.top[row];
  for (int64_t j = visible.begin; j < visible.end; ++j) {
    const int64_t key = tile_begin + j;
    scores[j] = score_of(layer, params, q, task.block_table[key / kKvBlock], task.kv_head, key % kKvBlock);
    if (params.slopes != nullptr) scores[j] += params.slopes[head] * static_cast<float>(key - position);
    top = std::max(top, scores[j]);
  }
  const float rescale = std::exp(states.top[row] - top);
  float* sums = states.sums + row * layer.v_padded();
  for (int64_t d = 0; d < layer.v_head_dim; ++d) sums[d] *= rescale;
  float total = 0.0f;
  for (int64_t j = visible.begin; j < visible.end; ++j) {
    const int64_t key = tile_begin + j, block = task.block_table[key / kKvBlock], slot = key % kKvBlock;
    const float p = std::exp(scores[j] - top);
    const float weight = layer.dtype == DType::i8 ? p * layer.v_scales(block, task.kv_head)[slot] : p;
    const char* values = layer.v(block, task.kv_head);
    for (int64_t d = 0; d < layer.v_head_dim; ++d) sums[d] += weight * load(layer, values, layer.v_index(slot, d));
    total += p;
  }
  states.total[row] = states.total[row] * rescale + total;
  states.top[row] = top;
}

void attend_piece(const KvLayer& layer, const AttentionParams& params, const AttentionTask& task, int64_t piece,
                  const RowStates& states, float*) {
  clear_rows(layer, task.num_rows(), states);
  for (int64_t row = 0; row < task.num_rows(); ++row) {
    const int64_t begin = std::max(params.first_key(task.position(row)) / kKeyTile * kKeyTile, piece * kPieceKeys);
    const int64_t end = std::min(task.position(row) + 1, (piece + 1) * kPieceKeys);
    for (int64_t tile = begin; tile < end; tile += kKeyTile) attend_tile(layer, params, task, states, row, tile);
  }
}

}  // namespace

AttentionKernels attention_kernels_scalar() { return {.append = append_kv, .attend_piece = attend_piece}; }

}  // namespace fmo
