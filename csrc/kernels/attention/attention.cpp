#include "kernels/attention/attention.h"

#include <cmath>

#include "kernels/attention/attention_tables.h"

namespace fmo {
namespace {

constexpr float kTiny = 0x1p-100f;  // a head whose values are all below has the scale 0: 127/x would overflow

// The largest magnitude of a head, NaN if it holds a NaN or an infinity.
float magnitude(const float* x, int64_t count) {
  float largest = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) return __builtin_nanf("");
    largest = std::max(largest, std::fabs(x[i]));
  }
  return largest;
}

// How the values of one head of one token become elements of the cache.
template <class T>
struct Rounding;

template <>
struct Rounding<float> {
  Rounding(const float*, int64_t) {}
  float operator()(float value) const { return value; }
};

template <>
struct Rounding<bf16_t> {
  Rounding(const float*, int64_t) {}
  bf16_t operator()(float value) const { return f32_to_bf16(value); }
};

template <>
struct Rounding<int8_t> {
  float scale = 0.0f, inverse = 0.0f;
  Rounding(const float* x, int64_t count) {
    const float largest = magnitude(x, count);
    if (largest < kTiny) return;  // all codes 0
    scale = largest / 127.0f;
    if (std::isfinite(largest)) inverse = 127.0f / largest;  // else all codes 0 with the scale NaN
  }
  int8_t operator()(float value) const {
    constexpr float kShift = 0x1.8p23f;  // adding it leaves no bits below 1: rounds to nearest even
    return inverse == 0.0f ? int8_t{0} : static_cast<int8_t>(value * inverse + kShift - kShift);
  }
};

template <class T>
void append_typed(const KvLayer& layer, const HeadRows& k, const HeadRows& v, int64_t num_rows, int64_t first_position,
                  const int32_t* block_table) {
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t position = first_position + row, slot = position % kKvBlock;
    const int64_t block = block_table[position / kKvBlock];
    for (int64_t head = 0; head < layer.num_kv_heads; ++head) {
      T *keys = reinterpret_cast<T*>(layer.k(block, head)), *values = reinterpret_cast<T*>(layer.v(block, head));
      const float *key = k.at(row, head), *value = v.at(row, head);
      const Rounding<T> round_key(key, layer.k_head_dim), round_value(value, layer.v_head_dim);
      for (int64_t d = 0; d < layer.k_padded(); ++d)
        keys[layer.k_index(slot, d)] = d < layer.k_head_dim ? round_key(key[d]) : T{};
      for (int64_t d = 0; d < layer.v_padded(); ++d)
        values[layer.v_index(slot, d)] = d < layer.v_head_dim ? round_value(value[d]) : T{};
      if constexpr (std::is_same_v<T, int8_t>) {
        layer.k_scales(block, head)[slot] = round_key.scale;
        layer.v_scales(block, head)[slot] = round_value.scale;
      }
    }
  }
}

}  // namespace

void append_kv(const KvLayer& layer, const HeadRows& k, const HeadRows& v, int64_t num_rows, int64_t first_position,
               const int32_t* block_table) {
  auto* typed = append_typed<float>;
  if (layer.dtype == DType::bf16) typed = append_typed<bf16_t>;
  if (layer.dtype == DType::i8) typed = append_typed<int8_t>;
  typed(layer, k, v, num_rows, first_position, block_table);
}

void start_rows(const KvLayer& layer, const AttentionParams& params, const AttentionTask& task,
                const RowStates& running) {
  clear_rows(layer, task.num_rows(), running);
  if (params.sinks == nullptr) return;
  for (int64_t row = 0; row < task.num_rows(); ++row) {
    running.top[row] = params.sinks[task.head(row)];
    running.total[row] = 1.0f;
  }
}

void fold_piece(const KvLayer& layer, const AttentionTask& task, const RowStates& piece, const RowStates& running) {
  const int64_t v_padded = layer.v_padded();
  for (int64_t row = 0; row < task.num_rows(); ++row) {
    if (piece.total[row] == 0.0f) continue;  // nothing seen
    const float top = std::max(running.top[row], piece.top[row]);
    const float old_part = std::exp(running.top[row] - top), new_part = std::exp(piece.top[row] - top);
    running.top[row] = top;
    running.total[row] = running.total[row] * old_part + piece.total[row] * new_part;
    float* sums = running.sums + row * v_padded;
    const float* added = piece.sums + row * v_padded;
    for (int64_t d = 0; d < v_padded; ++d) sums[d] = sums[d] * old_part + added[d] * new_part;
  }
}

void finish_rows(const KvLayer& layer, const AttentionTask& task, const RowStates& running) {
  for (int64_t row = 0; row < task.num_rows(); ++row) {
    float* out = task.out + task.query(row) * task.out_row_stride + task.head(row) * task.out_head_stride;
    const float* sums = running.sums + row * layer.v_padded();
    const float inverse = 1.0f / running.total[row];
    for (int64_t d = 0; d < layer.v_head_dim; ++d) out[d] = sums[d] * inverse;
  }
}

void attend(const AttentionKernels& kernels, const KvLayer& layer, const AttentionParams& params,
            const AttentionTask& task, float* scratch) {
  const int64_t num_rows = task.num_rows(), state_floats = RowStates::floats(layer, num_rows);
  const RowStates running = RowStates::in(scratch, layer, num_rows);
  const RowStates state = RowStates::in(scratch + state_floats, layer, num_rows);
  const Range pieces = task_pieces(params, task);
  start_rows(layer, params, task, running);
  for (int64_t piece = pieces.begin; piece < pieces.end; ++piece) {
    kernels.attend_piece(layer, params, task, piece, state, scratch + 2 * state_floats);
    fold_piece(layer, task, state, running);
  }
  finish_rows(layer, task, running);
}

const AttentionKernels& attention_kernels(Isa isa) {
  static const AttentionKernels scalar = attention_kernels_scalar(), avx2 = attention_kernels_avx2();
  return isa == Isa::avx2 ? avx2 : scalar;
}

}  // namespace fmo
