// Attention for AVX2 + FMA: tile by tile, three phases over all rows of the task.
//
//   scores   R rows × 16·B keys in registers, one FMA chain per score over d        [R·2·B ≤ 12 accumulators]
//   softmax  per row: mask, running maximum, exp, running total, rescale the sums if the maximum rose
//   values   R rows × 8·C dims in registers, one FMA chain per dim over the visible keys;
//            rows that see different keys go one by one
//
// A task with many rows first unpacks a bf16 tile to f32; few rows (decode) read the cache directly. Both give the same
// bits.
#include <immintrin.h>

#include "kernels/attention/attention_tables.h"
#include "kernels/math/vec_avx2.h"

namespace fmo {
namespace {

using avx2::unroll;

constexpr int64_t kRowTile = 6;
constexpr int64_t kUnpackRows = 3 * kRowTile;  // from here on, unpacking a bf16 tile pays
constexpr int64_t kTileBlocks = kKeyTile / kKvBlock;

template <class T>
inline __attribute__((always_inline)) __m256 load8(const T* p) {
  if constexpr (sizeof(T) == 4) {
    return _mm256_loadu_ps(p);
  } else {
    return avx2::load_bf16(p);
  }
}

// The blocks of one tile, in the cache or unpacked; K [k_head_dim][16], V [16][v_padded].
template <class T>
struct TileBlocks {
  const T* k[kTileBlocks];
  const T* v[kTileBlocks];
};

// Scores of R rows against B blocks: q·k, unscaled.
template <class T, int R, int B>
__attribute__((noinline)) void score_block(const float* const* q, const T* const* k, int64_t k_head_dim,
                                           float* scores) {
  __m256 sum[R * B * 2];
  unroll<R * B * 2>([&](auto i) { sum[i] = _mm256_setzero_ps(); });
  for (int64_t d = 0; d < k_head_dim; ++d) {
    unroll<B>([&](auto b) __attribute__((always_inline)) {
      const __m256 k0 = load8(k[b] + d * kKvBlock), k1 = load8(k[b] + d * kKvBlock + 8);
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        const __m256 a = _mm256_broadcast_ss(q[r] + d);
        sum[(r * B + b) * 2] = _mm256_fmadd_ps(a, k0, sum[(r * B + b) * 2]);
        sum[(r * B + b) * 2 + 1] = _mm256_fmadd_ps(a, k1, sum[(r * B + b) * 2 + 1]);
      });
    });
  }
  unroll<R>([&](auto r) {
    unroll<B * 2>([&](auto i) { _mm256_storeu_ps(scores + r * kKeyTile + i * 8, sum[r * B * 2 + i]); });
  });
}

// R rows against blocks begin … end of a tile, B at a time.
template <class T, int R, int B>
void score_rows(const float* const* q, const TileBlocks<T>& blocks, int64_t begin, int64_t end, int64_t k_head_dim,
                float* scores) {
  int64_t b = begin;
  for (; b + B <= end; b += B) score_block<T, R, B>(q, blocks.k + b, k_head_dim, scores + b * kKvBlock);
  for (; b < end; ++b) score_block<T, R, 1>(q, blocks.k + b, k_head_dim, scores + b * kKvBlock);
}

template <class T>
void score_rows_any(int64_t num_rows, const float* const* q, const TileBlocks<T>& blocks, int64_t begin, int64_t end,
                    int64_t k_head_dim, float* scores) {
  switch (num_rows) {
    case 1:
      return score_rows<T, 1, 4>(q, blocks, begin, end, k_head_dim, scores);
    case 2:
      return score_rows<T, 2, 2>(q, blocks, begin, end, k_head_dim, scores);
    case 3:
      return score_rows<T, 3, 2>(q, blocks, begin, end, k_head_dim, scores);
    case 4:
      return score_rows<T, 4, 1>(q, blocks, begin, end, k_head_dim, scores);
    case 5:
      return score_rows<T, 5, 1>(q, blocks, begin, end, k_head_dim, scores);
    default:
      return score_rows<T, 6, 1>(q, blocks, begin, end, k_head_dim, scores);
  }
}

// sums[r][…] += p[r][j] · V[j][…] for the visible keys, C vectors of dims from `d` on.
template <class T, int R, int C>
__attribute__((noinline)) void value_block(const float* p, const TileBlocks<T>& blocks, Range visible, int64_t v_padded,
                                           int64_t d, float* sums) {
  __m256 sum[R * C];
  unroll<R * C>([&](auto i) { sum[i] = _mm256_loadu_ps(sums + (i / C) * v_padded + d + (i % C) * 8); });
  for (int64_t j = visible.begin; j < visible.end;) {
    const int64_t block_end = std::min(visible.end, (j / kKvBlock + 1) * kKvBlock);
    const T* v = blocks.v[j / kKvBlock] + (j % kKvBlock) * v_padded + d;
    for (; j < block_end; ++j, v += v_padded) {
      __m256 value[C];
      unroll<C>([&](auto c) __attribute__((always_inline)) { value[c] = load8(v + c * 8); });
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        const __m256 a = _mm256_broadcast_ss(p + r * kKeyTile + j);
        unroll<C>([&](auto c) __attribute__((always_inline)) {
          sum[r * C + c] = _mm256_fmadd_ps(a, value[c], sum[r * C + c]);
        });
      });
    }
  }
  unroll<R * C>([&](auto i) { _mm256_storeu_ps(sums + (i / C) * v_padded + d + (i % C) * 8, sum[i]); });
}

template <class T, int R, int C>
void value_rows(const float* p, const TileBlocks<T>& blocks, Range visible, int64_t v_padded, float* sums) {
  int64_t d = 0;
  for (; d + 8 * C <= v_padded; d += 8 * C) value_block<T, R, C>(p, blocks, visible, v_padded, d, sums);
  for (; d < v_padded; d += 8) value_block<T, R, 1>(p, blocks, visible, v_padded, d, sums);
}

template <class T>
void value_rows_any(int64_t num_rows, const float* p, const TileBlocks<T>& blocks, Range visible, int64_t v_padded,
                    float* sums) {
  switch (num_rows) {
    case 1:
      return value_rows<T, 1, 8>(p, blocks, visible, v_padded, sums);
    case 2:
      return value_rows<T, 2, 4>(p, blocks, visible, v_padded, sums);
    case 3:
      return value_rows<T, 3, 2>(p, blocks, visible, v_padded, sums);
    case 4:
      return value_rows<T, 4, 2>(p, blocks, visible, v_padded, sums);
    case 5:
      return value_rows<T, 5, 2>(p, blocks, visible, v_padded, sums);
    default:
      return value_rows<T, 6, 2>(p, blocks, visible, v_padded, sums);
  }
}

// Turns the scores of one row into weights: exp(score − top). Slots outside of `visible` become 0. Whole vectors of 8
// slots are walked.
void softmax_row(const AttentionParams& params, const AttentionState& state, int64_t row, int64_t head,
                 int64_t key_minus_position, Range visible, int64_t v_padded) {
  float* scores = state.scores + row * kKeyTile;
  const __m256 minus_infinity = avx2::set1(-__builtin_inff());
  const int64_t begin = visible.begin / 8 * 8;
  __m256 highest = minus_infinity;
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int64_t j = begin; j < visible.end; j += 8) {
    __m256 s = _mm256_mul_ps(_mm256_loadu_ps(scores + j), avx2::set1(params.scale));
    if (params.softcap > 0.0f) {
      const __m256 cap = avx2::set1(params.softcap);
      s = _mm256_mul_ps(cap, avx2::tanh(_mm256_div_ps(s, cap)));
    }
    const __m256i index = _mm256_add_epi32(lane, _mm256_set1_epi32(static_cast<int>(j)));
    if (params.slopes != nullptr) {
      const __m256i distance = _mm256_add_epi32(index, _mm256_set1_epi32(static_cast<int>(key_minus_position)));
      s = _mm256_add_ps(s, _mm256_mul_ps(avx2::set1(params.slopes[head]), _mm256_cvtepi32_ps(distance)));
    }
    const __m256i hidden =
        _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(visible.begin)), index),
                        _mm256_cmpgt_epi32(index, _mm256_set1_epi32(static_cast<int>(visible.end - 1))));
    s = _mm256_blendv_ps(s, minus_infinity, _mm256_castsi256_ps(hidden));
    _mm256_storeu_ps(scores + j, s);
    highest = _mm256_max_ps(s, highest);
  }
  const float top = std::max(state.top[row], avx2::horizontal_max(highest));
  __m256 total = _mm256_setzero_ps();
  for (int64_t j = begin; j < visible.end; j += 8) {
    const __m256 p = avx2::exp(_mm256_sub_ps(_mm256_loadu_ps(scores + j), avx2::set1(top)));
    _mm256_storeu_ps(scores + j, p);
    total = _mm256_add_ps(total, p);
  }
  const float rescale = _mm256_cvtss_f32(avx2::exp(avx2::set1(state.top[row] - top)));
  state.total[row] = state.total[row] * rescale + avx2::horizontal_sum(total);
  state.top[row] = top;
  float* sums = state.sums + row * v_padded;
  for (int64_t d = 0; d < v_padded; d += 8)
    _mm256_storeu_ps(sums + d, _mm256_mul_ps(_mm256_loadu_ps(sums + d), avx2::set1(rescale)));
}

template <class T>
void attend_tile(const KvLayer& layer, const AttentionParams& params, const AttentionTask& task,
                 const AttentionState& state, const TileBlocks<T>& blocks, int64_t tile_begin) {
  const auto visible_to = [&](int64_t row) {
    return visible_keys(params, task.first_position + state.query(row), tile_begin);
  };
  const int64_t v_padded = layer.v_padded();
  for (int64_t row = 0; row < state.num_rows; row += kRowTile) {
    const int64_t count = std::min(kRowTile, state.num_rows - row);
    const float* q[kRowTile];
    Range seen{kKeyTile, 0};
    bool all_alike = true;
    const Range first = visible_to(row);
    for (int64_t r = 0; r < count; ++r) {
      q[r] = task.q.at(state.query(row + r), state.head(task, row + r));
      const Range visible = visible_to(row + r);
      all_alike = all_alike && visible.begin == first.begin && visible.end == first.end;
      if (visible.begin < visible.end) seen = {std::min(seen.begin, visible.begin), std::max(seen.end, visible.end)};
    }
    if (seen.begin >= seen.end) continue;
    score_rows_any(count, q, blocks, seen.begin / kKvBlock, ceil_div(seen.end, kKvBlock), layer.k_head_dim,
                   state.scores + row * kKeyTile);
    for (int64_t r = row; r < row + count; ++r) {
      const Range visible = visible_to(r);
      if (visible.begin >= visible.end) continue;
      softmax_row(params, state, r, state.head(task, r), tile_begin - (task.first_position + state.query(r)), visible,
                  v_padded);
      if (!all_alike)
        value_rows_any(1, state.scores + r * kKeyTile, blocks, visible, v_padded, state.sums + r * v_padded);
    }
    if (all_alike)
      value_rows_any(count, state.scores + row * kKeyTile, blocks, first, v_padded, state.sums + row * v_padded);
  }
}

// A tile of the cache as f32. Only blocks that hold visible keys are touched.
TileBlocks<float> unpack_tile(const KvLayer& layer, const TileBlocks<bf16_t>& source, int64_t begin, int64_t end,
                              float* tile) {
  TileBlocks<float> result{};
  const int64_t k_count = layer.k_head_dim * kKvBlock, v_count = layer.v_padded() * kKvBlock;
  for (int64_t b = begin; b < end; ++b) {
    float* k = tile + b * (k_count + v_count);
    for (int64_t i = 0; i < k_count; i += 8) _mm256_storeu_ps(k + i, load8(source.k[b] + i));
    for (int64_t i = 0; i < v_count; i += 8) _mm256_storeu_ps(k + k_count + i, load8(source.v[b] + i));
    result.k[b] = k;
    result.v[b] = k + k_count;
  }
  return result;
}

template <class T>
void attend_typed(const KvLayer& layer, const AttentionParams& params, const AttentionTask& task,
                  const AttentionState& state) {
  const int64_t last = task.first_position + task.num_queries - 1;
  const int64_t first = params.first_key(task.first_position);
  for (int64_t tile_begin = first / kKeyTile * kKeyTile; tile_begin <= last; tile_begin += kKeyTile) {
    const int64_t begin = std::max<int64_t>(first - tile_begin, 0) / kKvBlock;
    const int64_t end = std::min(ceil_div(last + 1 - tile_begin, kKvBlock), kTileBlocks);
    TileBlocks<T> blocks{};
    for (int64_t b = begin; b < end; ++b) {
      const int64_t block = task.block_table[tile_begin / kKvBlock + b];
      blocks.k[b] = reinterpret_cast<const T*>(layer.k(block, task.kv_head));
      blocks.v[b] = reinterpret_cast<const T*>(layer.v(block, task.kv_head));
    }
    if constexpr (sizeof(T) == 2) {
      if (state.num_rows >= kUnpackRows) {
        attend_tile(layer, params, task, state, unpack_tile(layer, blocks, begin, end, state.tile), tile_begin);
        continue;
      }
    }
    attend_tile(layer, params, task, state, blocks, tile_begin);
  }
}

void attend(const KvLayer& layer, const AttentionParams& params, const AttentionTask& task, float* scratch) {
  AttentionState state(layer, params, task, scratch);
  state.start(params, task, layer.v_padded());
  if (layer.dtype == DType::bf16) {
    attend_typed<bf16_t>(layer, params, task, state);
  } else {
    attend_typed<float>(layer, params, task, state);
  }
  for (int64_t row = 0; row < state.num_rows; ++row) {
    float* out = task.out + state.query(row) * task.out_row_stride + state.head(task, row) * task.out_head_stride;
    const float* sums = state.sums + row * layer.v_padded();
    for (int64_t d = 0; d < layer.v_head_dim; ++d) out[d] = sums[d] / state.total[row];
  }
}

}  // namespace

AttentionKernels attention_kernels_avx2() { return {.append = append_kv, .attend = attend}; }

}  // namespace fmo
