// Reference of attention: one row, one key at a time, in the order of the contract.
#include <cmath>

#include "kernels/attention/attention_tables.h"

namespace fmo {
namespace {

float load(const KvLayer& layer, const char* p, int64_t index) {
  if (layer.dtype == DType::f32) return reinterpret_cast<const float*>(p)[index];
  return bf16_to_f32(reinterpret_cast<const bf16_t*>(p)[index]);
}

float score_of(const KvLayer& layer, const AttentionParams& params, const float* q, const char* keys, int64_t slot) {
  float sum = 0.0f;
  for (int64_t d = 0; d < layer.k_head_dim; ++d) sum += q[d] * load(layer, keys, d * kKvBlock + slot);
  sum *= params.scale;
  return params.softcap > 0.0f ? params.softcap * std::tanh(sum / params.softcap) : sum;
}

// One row against the visible keys of one tile.
void attend_tile(const KvLayer& layer, const AttentionParams& params, const AttentionTask& task,
                 const AttentionState& state, int64_t row, int64_t tile_begin) {
  const int64_t position = task.first_position + state.query(row), head = state.head(task, row);
  const Range visible = visible_keys(params, position, tile_begin);
  if (visible.begin >= visible.end) return;
  const float* q = task.q.at(state.query(row), head);
  float* scores = state.scores + row * kKeyTile;
  float top = state.top[row];
  for (int64_t j = visible.begin; j < visible.end; ++j) {
    const int64_t key = tile_begin + j;
    scores[j] = score_of(layer, params, q, layer.k(task.block_table[key / kKvBlock], task.kv_head), key % kKvBlock);
    if (params.slopes != nullptr) scores[j] += params.slopes[head] * static_cast<float>(key - position);
    top = std::max(top, scores[j]);
  }
  const float rescale = std::exp(state.top[row] - top);
  float* sums = state.sums + row * layer.v_padded();
  for (int64_t d = 0; d < layer.v_head_dim; ++d) sums[d] *= rescale;
  float total = 0.0f;
  for (int64_t j = visible.begin; j < visible.end; ++j) {
    const int64_t key = tile_begin + j;
    const float p = std::exp(scores[j] - top);
    const char* values = layer.v(task.block_table[key / kKvBlock], task.kv_head);
    for (int64_t d = 0; d < layer.v_head_dim; ++d)
      sums[d] += p * load(layer, values, (key % kKvBlock) * layer.v_padded() + d);
    total += p;
  }
  state.total[row] = state.total[row] * rescale + total;
  state.top[row] = top;
}

void attend(const KvLayer& layer, const AttentionParams& params, const AttentionTask& task, float* scratch) {
  AttentionState state(layer, params, task, scratch);
  state.start(params, task, layer.v_padded());
  for (int64_t row = 0; row < state.num_rows; ++row) {
    const int64_t position = task.first_position + state.query(row);
    for (int64_t tile = params.first_key(position) / kKeyTile * kKeyTile; tile <= position; tile += kKeyTile) {
      attend_tile(layer, params, task, state, row, tile);
    }
    float* out = task.out + state.query(row) * task.out_row_stride + state.head(task, row) * task.out_head_stride;
    for (int64_t d = 0; d < layer.v_head_dim; ++d) out[d] = state.sums[row * layer.v_padded() + d] / state.total[row];
  }
}

}  // namespace

AttentionKernels attention_kernels_scalar() { return {.append = append_kv, .attend = attend}; }

}  // namespace fmo
