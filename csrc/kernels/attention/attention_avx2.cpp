// Attention for AVX2 + FMA: tile by tile, three phases over all rows of the task.
//
//   scores   R rows × 16·B keys in registers, one FMA chain per score over d        [R·2·B ≤ 12 accumulators]
//   softmax  per row: mask, running maximum, exp, running total, rescale the sums if the maximum rose
//   values   R rows × 8·C dims in registers, one FMA chain per dim over the visible keys; the keys that not all R rows
//            see are added row by row, before and after
//
// The rows of q are packed in tiles [k_padded][R] with R ≤ 6. All rows of a register tile share every load of K and V.
// A task with many rows first unpacks a tile of the cache to f32; few rows (decode) expand the cells in registers and
// prefetch the next tile. Both give the same bits.
#include <immintrin.h>

#include "kernels/attention/attention_tables.h"
#include "kernels/math/vec_avx2.h"

namespace fmo {
namespace {

using avx2::unroll;

constexpr int64_t kRowTile = 6;
constexpr int64_t kUnpackRows = 3 * kRowTile;  // from here on, unpacking a tile pays
constexpr int64_t kTileBlocks = kKeyTile / kKvBlock;
constexpr float kCodeScale = 0x1p-24f;  // `expand` gives the codes of i8 times 2^24

template <class T>
constexpr int kPack = 4 / sizeof(T);

inline Range row_tile_at(int64_t num_rows, int64_t tile) {
  return split(num_rows, static_cast<int>(tile), static_cast<int>(ceil_div(num_rows, kRowTile)));
}

// Where element E of a cell goes to the top byte.
template <int E>
inline __attribute__((always_inline)) __m256i top_byte_shuffle() {
  return _mm256_setr_epi8(-1, -1, -1, E, -1, -1, -1, 4 + E, -1, -1, -1, 8 + E, -1, -1, -1, 12 + E, -1, -1, -1, E, -1,
                          -1, -1, 4 + E, -1, -1, -1, 8 + E, -1, -1, -1, 12 + E);
}

// Element E of eight cells as f32; of i8, times 2^24 (exact).
template <class T, int E>
inline __attribute__((always_inline)) __m256 expand(const char* p) {
  const __m256i cells = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  if constexpr (sizeof(T) == 4) {
    return _mm256_castsi256_ps(cells);
  } else if constexpr (sizeof(T) == 2) {
    return _mm256_castsi256_ps(E == 0 ? _mm256_slli_epi32(cells, 16)
                                      : _mm256_and_si256(cells, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  } else {
    return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(cells, top_byte_shuffle<E>()));
  }
}

// The blocks of one tile, in the cache or unpacked.
struct TileBlocks {
  const char *k[kTileBlocks], *v[kTileBlocks];
  const char *next_k[kTileBlocks], *next_v[kTileBlocks];  // of the next tile, to prefetch
};

// Scores of R rows against B blocks: q·k, unscaled. q [k_padded][R].
template <class T, int R, int B>
__attribute__((noinline)) void score_block(const float* q, const char* const* k, const char* const* next,
                                           int64_t num_cells, float* scores) {
  __m256 sum[R * B * 2];
  unroll<R * B * 2>([&](auto i) { sum[i] = _mm256_setzero_ps(); });
  for (int64_t c = 0; c < num_cells; ++c, q += kPack<T> * R) {
    unroll<B>([&](auto b) __attribute__((always_inline)) {
      if constexpr (R < kRowTile) _mm_prefetch(next[b] + c * 64, _MM_HINT_T0);
      unroll<kPack<T>>([&](auto e) __attribute__((always_inline)) {
        const __m256 k0 = expand<T, e>(k[b] + c * 64), k1 = expand<T, e>(k[b] + c * 64 + 32);
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          const __m256 a = _mm256_broadcast_ss(q + e * R + r);
          avx2::add_product(sum[(r * B + b) * 2], a, k0);
          avx2::add_product(sum[(r * B + b) * 2 + 1], a, k1);
        });
      });
    });
  }
  unroll<R>([&](auto r) {
    unroll<B * 2>([&](auto i) { _mm256_storeu_ps(scores + r * kKeyTile + i * 8, sum[r * B * 2 + i]); });
  });
}

// R rows against blocks begin … end of a tile, B at a time.
template <class T, int R, int B>
void score_rows(const float* q, const TileBlocks& blocks, Range range, int64_t num_cells, float* scores) {
  int64_t b = range.begin;
  for (; b + B <= range.end; b += B)
    score_block<T, R, B>(q, blocks.k + b, blocks.next_k + b, num_cells, scores + b * kKvBlock);
  for (; b < range.end; ++b) score_block<T, R, 1>(q, blocks.k + b, blocks.next_k + b, num_cells, scores + b * kKvBlock);
}

using ScoreFunction = void (*)(const float*, const TileBlocks&, Range, int64_t, float*);
// More accumulators spill: gcc then keeps all of them in memory.
template <class T>
constexpr ScoreFunction kScoreFunctions[kRowTile + 1] = {nullptr,
                                                         score_rows<T, 1, 2>,
                                                         score_rows<T, 2, sizeof(T) == 1 ? 1 : 2>,
                                                         score_rows<T, 3, 1>,
                                                         score_rows<T, 4, 1>,
                                                         score_rows<T, 5, 1>,
                                                         score_rows<T, 6, 1>};

// The keys [begin, end) of one block: sums[r][…] += p[r][j] · V[j][…], C vectors of dims. All cells are whole.
template <class T, int R, int C>
inline __attribute__((always_inline)) void add_cells(__m256 (&sum)[R * C], const float* p, int64_t begin, int64_t end,
                                                     const char* cells, const char* next, int64_t row_bytes) {
  for (int64_t j = begin; j < end; j += kPack<T>, cells += row_bytes, next += row_bytes) {
    if constexpr (R < kRowTile)
      unroll<(C + 1) / 2>([&](auto c) __attribute__((always_inline)) { _mm_prefetch(next + c * 64, _MM_HINT_T0); });
    unroll<kPack<T>>([&](auto e) __attribute__((always_inline)) {
      __m256 value[C];
      unroll<C>([&](auto c) __attribute__((always_inline)) { value[c] = expand<T, e>(cells + c * 32); });
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        const __m256 a = _mm256_broadcast_ss(p + r * kKeyTile + j + e);
        unroll<C>([&](auto c) __attribute__((always_inline)) { avx2::add_product(sum[r * C + c], a, value[c]); });
      });
    });
  }
}

// sums[r][…] += p[r][j] · V[j][…] for keys that fill whole cells, C vectors of dims from `d` on.
template <class T, int R, int C>
__attribute__((noinline)) void value_block(const float* p, const TileBlocks& blocks, Range keys, int64_t v_padded,
                                           int64_t d, float* sums) {
  __m256 sum[R * C];
  unroll<R * C>([&](auto i) __attribute__((always_inline)) {
    sum[i] = _mm256_loadu_ps(sums + (i / C) * v_padded + d + (i % C) * 8);
  });
  for (int64_t j = keys.begin; j < keys.end;) {
    const int64_t block = j / kKvBlock, end = std::min(keys.end, (block + 1) * kKvBlock);
    const int64_t offset = (j % kKvBlock / kPack<T> * v_padded + d) * 4;
    add_cells<T, R, C>(sum, p, j, end, blocks.v[block] + offset, blocks.next_v[block] + offset, v_padded * 4);
    j = end;
  }
  unroll<R * C>([&](auto i) __attribute__((always_inline)) {
    _mm256_storeu_ps(sums + (i / C) * v_padded + d + (i % C) * 8, sum[i]);
  });
}

// The same for one key in the middle of a cell.
template <class T, int R>
__attribute__((noinline)) void value_key(const float* p, const TileBlocks& blocks, int64_t j, int64_t v_padded,
                                         float* sums) {
  const char* cells = blocks.v[j / kKvBlock] + j % kKvBlock / kPack<T> * v_padded * 4;
  for (int64_t d = 0; d < v_padded; d += 8) {
    __m256 value = _mm256_setzero_ps();
    unroll<kPack<T>>([&](auto e) __attribute__((always_inline)) {
      if (j % kPack<T> == e) value = expand<T, e>(cells + d * 4);
    });
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      float* target = sums + r * v_padded + d;
      const __m256 a = _mm256_broadcast_ss(p + r * kKeyTile + j);
      _mm256_storeu_ps(target, _mm256_fmadd_ps(a, value, _mm256_loadu_ps(target)));
    });
  }
}

template <class T, int R, int C>
void value_rows(const float* p, const TileBlocks& blocks, Range visible, int64_t v_padded, float* sums) {
  if (visible.begin >= visible.end) return;
  const int64_t first_cell = std::min(round_up(visible.begin, kPack<T>), visible.end);
  const Range cells{first_cell, std::max(visible.end / kPack<T> * kPack<T>, first_cell)};
  for (int64_t j = visible.begin; j < cells.begin; ++j) value_key<T, R>(p, blocks, j, v_padded, sums);
  if (cells.begin < cells.end) {
    int64_t d = 0;
    for (; d + 8 * C <= v_padded; d += 8 * C) value_block<T, R, C>(p, blocks, cells, v_padded, d, sums);
    for (; d < v_padded; d += 8) value_block<T, R, 1>(p, blocks, cells, v_padded, d, sums);
  }
  for (int64_t j = cells.end; j < visible.end; ++j) value_key<T, R>(p, blocks, j, v_padded, sums);
}

using ValueFunction = void (*)(const float*, const TileBlocks&, Range, int64_t, float*);
template <class T>
constexpr ValueFunction kValueFunctions[kRowTile + 1] = {nullptr,
                                                         value_rows<T, 1, 8>,
                                                         value_rows<T, 2, 4>,
                                                         value_rows<T, 3, 2>,
                                                         value_rows<T, 4, 2>,
                                                         value_rows<T, 5, 2>,
                                                         value_rows<T, 6, 2>};

// What the three phases of one tile share.
struct Tile {
  const KvLayer& layer;
  const AttentionParams& params;
  const AttentionTask& task;
  const RowStates& states;
  const float* q;                                        // packed
  float* scores;                                         // [rows][kKeyTile], then the weights of the values
  const float *k_scales = nullptr, *v_scales = nullptr;  // [kKeyTile]; only i8
  int64_t begin = 0;                                     // position of the first key
  TileBlocks blocks{};

  Range visible(int64_t row) const { return visible_keys(params, task.position(row), begin); }
};

// Eight scores from slot j on, masked.
inline __m256 final_scores(const Tile& tile, int64_t row, Range visible, int64_t j) {
  const AttentionParams& params = tile.params;
  __m256 s = _mm256_loadu_ps(tile.scores + row * kKeyTile + j);
  if (tile.k_scales != nullptr) s = _mm256_mul_ps(s, _mm256_loadu_ps(tile.k_scales + j));
  s = _mm256_mul_ps(s, avx2::set1(params.scale));
  if (params.softcap > 0.0f) {
    const __m256 cap = avx2::set1(params.softcap);
    s = _mm256_mul_ps(cap, avx2::tanh(_mm256_div_ps(s, cap)));
  }
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i index = _mm256_add_epi32(lane, _mm256_set1_epi32(static_cast<int>(j)));
  if (params.slopes != nullptr) {
    const int64_t key_minus_position = tile.begin - tile.task.position(row);
    const __m256i distance = _mm256_add_epi32(index, _mm256_set1_epi32(static_cast<int>(key_minus_position)));
    s = _mm256_add_ps(s, _mm256_mul_ps(avx2::set1(params.slopes[tile.task.head(row)]), _mm256_cvtepi32_ps(distance)));
  }
  if (j >= visible.begin && j + 8 <= visible.end) return s;
  const __m256i hidden =
      _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(visible.begin)), index),
                      _mm256_cmpgt_epi32(index, _mm256_set1_epi32(static_cast<int>(visible.end - 1))));
  return _mm256_blendv_ps(s, avx2::set1(-__builtin_inff()), _mm256_castsi256_ps(hidden));
}

// Turns the scores of one row into weights: exp(score − top), for i8 times the scale of the value. Slots outside of
// `visible` become 0 (or NaN where their scale is). Whole vectors of 8 slots are walked.
void softmax_row(const Tile& tile, int64_t row, Range visible) {
  float* scores = tile.scores + row * kKeyTile;
  const int64_t begin = visible.begin / 8 * 8;
  __m256 highest = avx2::set1(-__builtin_inff());
  for (int64_t j = begin; j < visible.end; j += 8) {
    const __m256 s = final_scores(tile, row, visible, j);
    _mm256_storeu_ps(scores + j, s);
    highest = _mm256_max_ps(s, highest);
  }
  const float old_top = tile.states.top[row], top = std::max(old_top, avx2::horizontal_max(highest));
  __m256 total = _mm256_setzero_ps();
  for (int64_t j = begin; j < visible.end; j += 8) {
    __m256 p = avx2::exp_of_weight(_mm256_sub_ps(_mm256_loadu_ps(scores + j), avx2::set1(top)));
    total = _mm256_add_ps(total, p);
    if (tile.v_scales != nullptr) p = _mm256_mul_ps(p, _mm256_loadu_ps(tile.v_scales + j));
    _mm256_storeu_ps(scores + j, p);
  }
  float before = tile.states.total[row];
  if (top != old_top) {
    const __m256 rescale = avx2::exp_of_weight(avx2::set1(old_top - top));
    before *= _mm256_cvtss_f32(rescale);
    const int64_t v_padded = tile.layer.v_padded();
    float* sums = tile.states.sums + row * v_padded;
    for (int64_t d = 0; d < v_padded; d += 8)
      _mm256_storeu_ps(sums + d, _mm256_mul_ps(_mm256_loadu_ps(sums + d), rescale));
  }
  tile.states.total[row] = before + avx2::horizontal_sum(total);
  tile.states.top[row] = top;
}

template <class T>
void score_phase(const Tile& tile) {
  const int64_t num_rows = tile.task.num_rows(), k_padded = tile.layer.k_padded();
  for (int64_t t = 0; t < ceil_div(num_rows, kRowTile); ++t) {
    const Range rows = row_tile_at(num_rows, t);
    Range seen{kKeyTile, 0};
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const Range visible = tile.visible(r);
      if (visible.begin < visible.end) seen = {std::min(seen.begin, visible.begin), std::max(seen.end, visible.end)};
    }
    if (seen.begin >= seen.end) continue;
    const Range blocks{seen.begin / kKvBlock, ceil_div(seen.end, kKvBlock)};
    kScoreFunctions<T>[rows.size()](tile.q + rows.begin * k_padded, tile.blocks, blocks, k_padded / kPack<T>,
                                    tile.scores + rows.begin * kKeyTile);
  }
}

template <class T>
void value_phase(const Tile& tile) {
  const int64_t num_rows = tile.task.num_rows(), v_padded = tile.layer.v_padded();
  const auto add = [&](int64_t first_row, int64_t count, Range keys) {
    kValueFunctions<T>[count](tile.scores + first_row * kKeyTile, tile.blocks, keys, v_padded,
                              tile.states.sums + first_row * v_padded);
  };
  for (int64_t t = 0; t < ceil_div(num_rows, kRowTile); ++t) {
    const Range rows = row_tile_at(num_rows, t);
    Range shared{0, kKeyTile};
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const Range visible = tile.visible(r);
      shared = {std::max(shared.begin, visible.begin), std::min(shared.end, visible.end)};
    }
    if (shared.begin >= shared.end) {
      for (int64_t r = rows.begin; r < rows.end; ++r) add(r, 1, tile.visible(r));
      continue;
    }
    for (int64_t r = rows.begin; r < rows.end; ++r) add(r, 1, {tile.visible(r).begin, shared.begin});
    add(rows.begin, rows.size(), shared);
    for (int64_t r = rows.begin; r < rows.end; ++r) add(r, 1, {shared.end, tile.visible(r).end});
  }
}

template <class T>
void attend_tile(const Tile& tile) {
  score_phase<T>(tile);
  for (int64_t row = 0; row < tile.task.num_rows(); ++row) {
    const Range visible = tile.visible(row);
    if (visible.begin < visible.end) softmax_row(tile, row, visible);
  }
  value_phase<T>(tile);
}

// Cells to f32: `num_groups` times a row of `width` cells becomes pack rows of `width` values.
template <class T>
void unpack_cells(const char* cells, int64_t num_groups, int64_t width, float* out) {
  for (int64_t g = 0; g < num_groups; ++g, cells += width * 4, out += width * kPack<T>) {
    for (int64_t i = 0; i < width; i += 8)
      unroll<kPack<T>>([&](auto e) { _mm256_storeu_ps(out + e * width + i, expand<T, e>(cells + i * 4)); });
  }
}

// A tile of the cache as f32. Only blocks that hold visible keys are touched.
template <class T>
TileBlocks unpack_tile(const KvLayer& layer, const TileBlocks& source, Range range, float* memory) {
  TileBlocks result{};
  const int64_t k_count = layer.k_padded() * kKvBlock, v_count = layer.v_padded() * kKvBlock;
  for (int64_t b = range.begin; b < range.end; ++b) {
    float* k = memory + b * (k_count + v_count);
    unpack_cells<T>(source.k[b], layer.k_padded() / kPack<T>, kKvBlock, k);
    unpack_cells<T>(source.v[b], kKvBlock / kPack<T>, layer.v_padded(), k + k_count);
    result.k[b] = result.next_k[b] = reinterpret_cast<const char*>(k);
    result.v[b] = result.next_v[b] = reinterpret_cast<const char*>(k + k_count);
  }
  return result;
}

// The blocks of the tile at `tile_begin` that hold keys before `end`; those of the next tile, where there is one.
Range find_blocks(const KvLayer& layer, const AttentionTask& task, int64_t tile_begin, int64_t first, int64_t end,
                  TileBlocks& blocks) {
  const Range range{std::max<int64_t>(first - tile_begin, 0) / kKvBlock,
                    std::min(ceil_div(end - tile_begin, kKvBlock), kTileBlocks)};
  const int64_t last_block = ceil_div(task.last_position() + 1, kKvBlock) - 1;
  for (int64_t b = range.begin; b < range.end; ++b) {
    const int64_t index = tile_begin / kKvBlock + b;
    const int64_t block = task.block_table[index], next = task.block_table[std::min(index + kTileBlocks, last_block)];
    blocks.k[b] = layer.k(block, task.kv_head);
    blocks.v[b] = layer.v(block, task.kv_head);
    blocks.next_k[b] = layer.k(next, task.kv_head);
    blocks.next_v[b] = layer.v(next, task.kv_head);
  }
  return range;
}

// The scales of a tile in one piece, those of K with the factor of `expand`.
void copy_scales(const KvLayer& layer, const AttentionTask& task, int64_t tile_begin, Range range, float* scales) {
  for (int64_t b = range.begin; b < range.end; ++b) {
    const int64_t block = task.block_table[tile_begin / kKvBlock + b];
    for (int64_t slot = 0; slot < kKvBlock; ++slot) {
      scales[b * kKvBlock + slot] = layer.k_scales(block, task.kv_head)[slot] * kCodeScale;
      scales[kKeyTile + b * kKvBlock + slot] = layer.v_scales(block, task.kv_head)[slot] * kCodeScale;
    }
  }
}

void pack_queries(const KvLayer& layer, const AttentionTask& task, float* packed) {
  const int64_t num_rows = task.num_rows(), k_padded = layer.k_padded();
  for (int64_t t = 0; t < ceil_div(num_rows, kRowTile); ++t) {
    const Range rows = row_tile_at(num_rows, t);
    float* tile = packed + rows.begin * k_padded;
    for (int64_t r = 0; r < rows.size(); ++r) {
      const int64_t row = rows.begin + r;
      const float* q = task.q.at(task.query(row), task.head(row));
      for (int64_t d = 0; d < k_padded; ++d) tile[d * rows.size() + r] = d < layer.k_head_dim ? q[d] : 0.0f;
    }
  }
}

template <class T>
void attend_typed(const KvLayer& layer, const AttentionParams& params, const AttentionTask& task, int64_t piece,
                  const RowStates& states, float* scratch) {
  const int64_t num_rows = task.num_rows();
  float* q = scratch;
  float* scores = q + num_rows * layer.k_padded();
  float* scales = scores + num_rows * kKeyTile;
  float* unpacked = scales + 2 * kKeyTile;
  pack_queries(layer, task, q);
  const int64_t first = std::max(params.first_key(task.first_position), piece * kPieceKeys);
  const int64_t end = std::min(task.last_position() + 1, (piece + 1) * kPieceKeys);
  for (int64_t begin = first / kKeyTile * kKeyTile; begin < end; begin += kKeyTile) {
    Tile tile{layer, params, task, states, q, scores};
    tile.begin = begin;
    const Range range = find_blocks(layer, task, begin, first, end, tile.blocks);
    if constexpr (sizeof(T) == 1) {
      copy_scales(layer, task, begin, range, scales);
      tile.k_scales = scales;
      tile.v_scales = scales + kKeyTile;
    }
    if (sizeof(T) < 4 && num_rows >= kUnpackRows) {
      tile.blocks = unpack_tile<T>(layer, tile.blocks, range, unpacked);
      attend_tile<float>(tile);
    } else {
      attend_tile<T>(tile);
    }
  }
}

void attend_piece(const KvLayer& layer, const AttentionParams& params, const AttentionTask& task, int64_t piece,
                  const RowStates& states, float* scratch) {
  clear_rows(layer, task.num_rows(), states);
  auto* typed = attend_typed<float>;
  if (layer.dtype == DType::bf16) typed = attend_typed<bf16_t>;
  if (layer.dtype == DType::i8) typed = attend_typed<int8_t>;
  typed(layer, params, task, piece, states, scratch);
}

}  // namespace

AttentionKernels attention_kernels_avx2() { return {.append = append_kv, .attend_piece = attend_piece}; }

}  // namespace fmo
