#include "kernels/attention/attention.h"

#include "kernels/attention/attention_tables.h"

namespace fmo {
namespace {

template <class T, T (*CONVERT)(float)>
void append_typed(const KvLayer& layer, const HeadRows& k, const HeadRows& v, int64_t num_rows, int64_t first_position,
                  const int32_t* block_table) {
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t position = first_position + row, slot = position % kKvBlock;
    const int64_t block = block_table[position / kKvBlock];
    for (int64_t head = 0; head < layer.num_kv_heads; ++head) {
      T* keys = reinterpret_cast<T*>(layer.k(block, head));
      const float* key = k.at(row, head);
      for (int64_t d = 0; d < layer.k_head_dim; ++d) keys[d * kKvBlock + slot] = CONVERT(key[d]);
      T* values = reinterpret_cast<T*>(layer.v(block, head)) + slot * layer.v_padded();
      const float* value = v.at(row, head);
      for (int64_t d = 0; d < layer.v_head_dim; ++d) values[d] = CONVERT(value[d]);
      std::fill(values + layer.v_head_dim, values + layer.v_padded(), T{});
    }
  }
}

float identity(float value) { return value; }

}  // namespace

void append_kv(const KvLayer& layer, const HeadRows& k, const HeadRows& v, int64_t num_rows, int64_t first_position,
               const int32_t* block_table) {
  const auto typed = layer.dtype == DType::bf16 ? append_typed<bf16_t, f32_to_bf16> : append_typed<float, identity>;
  typed(layer, k, v, num_rows, first_position, block_table);
}

const AttentionKernels& attention_kernels(Isa isa) {
  static const AttentionKernels scalar = attention_kernels_scalar(), avx2 = attention_kernels_avx2();
  return isa == Isa::avx2 ? avx2 : scalar;
}

}  // namespace fmo
