// qlinear with integers for AVX2: one driver for any number of rows.
//
// R blocks from far-apart parts of the share go side by side (4 streams for one or two rows where 16-bit sums are long,
// else 2): that fills the memory pipeline better than one long stream. All tiles of a block of rows (x stays in L2)
// pass over a block of K of those blocks (codes stay in L1); meanwhile each tile prefetches its part of what comes next
// in each stream. Sums rest in memory between blocks of K. With many tiles nibbles are unpacked to bytes once per block
// of K.
#include "kernels/qlinear/qlinear_tables.h"
#include "kernels/qlinear/qlinear_tile_avx2.h"

namespace fmo {
namespace {

constexpr int64_t kCodeBlockBytes = 8 << 10;   // of one block of 8 outputs: two fill half of L1
constexpr int64_t kRowBlockBytes = 256 << 10;  // x that stays in L2
constexpr int64_t kMaxRowsAtOnce = 256;
constexpr int64_t kMaxTileRows = 6;
constexpr int64_t kUnpackTiles = 6;       // from here on unpacking pays; evenly split, such tiles have 5 or 6 rows
constexpr int64_t kUnpackColumns = 1024;  // of two blocks: half of L1

constexpr int64_t kPrefetchBytes = 2048;  // how far ahead two streams of a single tile are prefetched

using TileFunction = void (*)(const TileJob&);
struct TileTable {
  TileFunction four[3];                     // R = 4, by rows of the tile, up to max_four_rows
  TileFunction two[kMaxTileRows + 1];       // R = 2
  TileFunction one[kMaxTileRows + 1];       // R = 1
  TileFunction unpacked[kMaxTileRows + 1];  // R = 2 on unpacked nibbles
  void (*unpack)(const uint8_t* codes, int64_t num_bytes, uint8_t* bytes);
  int64_t max_four_rows, chunk, bytes_per_8;
};

template <Form FORM, int FLUSH, bool ONE, int R, int C>
constexpr TileFunction tile_or_null() {
  if constexpr (FORM == Form::bytes && (C > 4 || (R == 4 && (FLUSH == 8 || C > 1)))) {
    return nullptr;
  } else {
    return multiply_tile<FORM, false, FLUSH, ONE, R, C>;
  }
}

template <Form FORM, int FLUSH, bool ONE, int C>
constexpr TileFunction unpacked_or_null() {
  if constexpr (FORM == Form::bytes) {
    return nullptr;
  } else {
    return multiply_tile<FORM, true, FLUSH, ONE, 2, C>;
  }
}

template <Form FORM>
constexpr auto unpack_or_null() -> void (*)(const uint8_t*, int64_t, uint8_t*) {
  if constexpr (FORM == Form::bytes) {
    return nullptr;
  } else {
    return unpack_nibbles<FORM>;
  }
}

// Single blocks are rare (the end of a share): they do without ONE.
template <Form FORM, int FLUSH, bool ONE>
constexpr TileTable kTileTable = {
    {nullptr, tile_or_null<FORM, FLUSH, ONE, 4, 1>(), tile_or_null<FORM, FLUSH, ONE, 4, 2>()},
    {nullptr, tile_or_null<FORM, FLUSH, ONE, 2, 1>(), tile_or_null<FORM, FLUSH, ONE, 2, 2>(),
     tile_or_null<FORM, FLUSH, ONE, 2, 3>(), tile_or_null<FORM, FLUSH, ONE, 2, 4>(),
     tile_or_null<FORM, FLUSH, ONE, 2, 5>(), tile_or_null<FORM, FLUSH, ONE, 2, 6>()},
    {nullptr, tile_or_null<FORM, FLUSH, false, 1, 1>(), tile_or_null<FORM, FLUSH, false, 1, 2>(),
     tile_or_null<FORM, FLUSH, false, 1, 3>(), tile_or_null<FORM, FLUSH, false, 1, 4>(),
     tile_or_null<FORM, FLUSH, false, 1, 5>(), tile_or_null<FORM, FLUSH, false, 1, 6>()},
    {nullptr, nullptr, nullptr, nullptr, nullptr, unpacked_or_null<FORM, FLUSH, ONE, 5>(),
     unpacked_or_null<FORM, FLUSH, ONE, 6>()},
    unpack_or_null<FORM>(),
    FORM != Form::bytes ? 2
    : FLUSH > 8         ? 1
                        : 0,
    Tile<FORM, false, FLUSH, ONE, 1, 1>::kChunk,
    kBytesPer8<FORM>};

const TileTable& tile_table(DType dtype, int64_t flush, int64_t group) {
  const bool one = group == 32;
  switch (dtype) {
    case DType::i4:
      if (flush == 64) return kTileTable<Form::i4, 64, false>;
      return one ? kTileTable<Form::i4, 32, true> : kTileTable<Form::i4, 32, false>;
    case DType::u4:
      return one ? kTileTable<Form::u4, 32, true> : kTileTable<Form::u4, 32, false>;
    case DType::e2m1:
      return one ? kTileTable<Form::e2m1, 32, true> : kTileTable<Form::e2m1, 32, false>;
    default:
      return flush == 32 ? kTileTable<Form::bytes, 32, false> : kTileTable<Form::bytes, 8, false>;
  }
}

// Columns per flush, from the bit budget.
int64_t flush_columns(const QuantWeight& w, Act act, int64_t act_group, int64_t num_rows) {
  if (w.dtype == DType::i4) return act_group % 64 == 0 && num_rows > 2 ? 64 : 32;
  if (is_nibble(w.dtype)) return 32;
  const bool fits = w.dtype == DType::i7 && act == Act::i7 && w.lane_sum * 63 <= 32767;
  return fits ? 32 : 8;
}

RowFormat row_format(const QuantWeight& w, Act act, int64_t act_group, int64_t num_rows) {
  const int64_t flush = flush_columns(w, act, act_group, num_rows);
  const int factor = w.dtype == DType::u4 ? -1 : -common_zero(w.dtype);
  return {act == Act::i8 ? 127.0f : 63.0f, act_group, flush, factor, is_nibble(w.dtype) ? 6 : 4};
}

// The scales of 8 outputs.
__m256 load_scales(DType dtype, const char* p) {
  return dtype == DType::f16 ? f16_scales(p) : dtype == DType::f32 ? f32_scales(p) : e8m0_scales(p);
}

// The last step: the scale per channel, the bias, and only outputs that exist.
void store_outputs(__m256 sum, const QuantWeight& w, int64_t block, const float* bias, float* y) {
  const int64_t first = block * kBlockRows, width = std::min(kBlockRows, w.N - first);
  if (w.is_per_channel()) sum = _mm256_mul_ps(sum, load_scales(w.scale_dtype, w.block_scales(block)));
  if (width == kBlockRows) {
    if (bias != nullptr) sum = _mm256_add_ps(sum, _mm256_loadu_ps(bias + first));
    return _mm256_storeu_ps(y + first, sum);
  }
  const __m256i mask = avx2::tail_mask(width);
  if (bias != nullptr) sum = _mm256_add_ps(sum, _mm256_maskload_ps(bias + first, mask));
  _mm256_maskstore_ps(y + first, mask, sum);
}

// What a share of blocks needs; R blocks, `stride` apart, are one pass.
struct Multiply {
  const QuantRows& rows;
  const QuantWeight& w;
  const TileTable& table;
  const float* bias;
  float* y;
  int64_t y_stride;

  bool unpacks(int64_t num_tiles) const {
    return table.unpack != nullptr && num_tiles >= kUnpackTiles && rows.format.group <= kUnpackColumns;
  }

  // Columns per block of K: whole groups.
  int64_t columns_at_once(int64_t num_tiles) const {
    const int64_t group = rows.format.group;
    int64_t code_block = num_tiles == 1 ? w.K : kCodeBlockBytes * 8 / table.bytes_per_8;
    if (unpacks(num_tiles)) code_block = kUnpackColumns;
    return std::min(w.K, std::max(code_block / group, int64_t{1}) * group);
  }

  // The tile `rows_of_tile` of x, columns from k0 on, for the block `b` and those `stride` blocks apart.
  TileJob job(Range rows_of_tile, int64_t b, int64_t stride, int64_t k0, int64_t num_columns) const {
    const int64_t group = rows.format.group, group_idx = k0 / group, height = rows_of_tile.size();
    TileJob job{};
    job.codes = w.block(b) + k0 / 8 * table.bytes_per_8;
    job.code_stride = job.next_stride = stride * w.block_bytes();
    const int64_t group_bytes = kBlockRows * w.scale_bytes();
    job.scales = w.is_per_channel() ? nullptr : w.block_scales(b) + group_idx * group_bytes;
    job.scale_stride = stride * w.num_groups() * group_bytes;
    job.scale_dtype = w.scale_dtype;
    job.zero_stride = stride * w.num_groups() * kBlockRows;
    job.zero_step = w.is_per_channel() ? 0 : kBlockRows;
    job.zeros = w.zeros == nullptr ? nullptr : w.block_zeros(b) + group_idx * job.zero_step;
    job.x = rows.codes + rows_of_tile.begin * rows.K + k0 * height;
    job.x_scales = rows.scales + rows_of_tile.begin * rows.num_groups() + group_idx * height;
    job.x_sums = rows.sums + rows_of_tile.begin * rows.num_sums() + k0 / rows.format.sum_columns * height;
    job.num_groups = num_columns / group;
    job.group = group;
    job.is_first = k0 == 0;
    return job;
  }

  void finish(Range rows_of_tile, int64_t b, int64_t stride, int num_streams, const float* sums) const {
    for (int64_t r = rows_of_tile.begin; r < rows_of_tile.end; ++r) {
      for (int stream = 0; stream < num_streams; ++stream, sums += 8)
        store_outputs(_mm256_load_ps(sums), w, b + stream * stride, bias, y + r * y_stride);
    }
  }

  // All tiles against R blocks.
  template <int R>
  void pass(int64_t b, int64_t stride, Range tiles, const TileFunction* functions) const {
    alignas(64) float sums[R > 2 ? 2 * 8 * R : kMaxRowsAtOnce * 8 * R];
    alignas(64) uint8_t bytes[R == 2 ? 2 * 8 * kUnpackColumns : 1];
    const bool unpacked = R == 2 && unpacks(tiles.size());
    if (unpacked) functions = table.unpacked;
    const int64_t at_once = columns_at_once(tiles.size()), first_row = rows.row_tile(tiles.begin).begin;
    for (int64_t k0 = 0; k0 < w.K; k0 += at_once) {
      const int64_t num_columns = std::min(at_once, w.K - k0), num_bytes = num_columns / 8 * table.bytes_per_8;
      const int64_t slice = num_bytes / tiles.size();
      for (int64_t r = 0; unpacked && r < R; ++r) {
        table.unpack(w.block(b + r * stride) + k0 / 8 * table.bytes_per_8, num_bytes, bytes + r * 8 * num_columns);
      }
      for (int64_t t = tiles.begin; t < tiles.end; ++t) {
        const Range tile = rows.row_tile(t);
        TileJob tile_job = job(tile, b, stride, k0, num_columns);
        tile_job.sums = at_once == w.K ? sums : sums + (tile.begin - first_row) * R * 8;
        const int64_t ahead = tiles.size() == 1 ? kPrefetchBytes : num_bytes + (t - tiles.begin) * slice;
        tile_job.next = reinterpret_cast<const char*>(tile_job.codes) + ahead;
        if (unpacked) {
          tile_job.codes = bytes;
          tile_job.code_stride = 8 * num_columns;
        }
        tile_job.next_step = table.chunk / 8 * table.bytes_per_8 / tiles.size();
        functions[tile.size()](tile_job);
        if (k0 + num_columns == w.K) finish(tile, b, stride, R, tile_job.sums);
      }
    }
  }

  template <int R>
  void streams(Range range, Range tiles, const TileFunction* functions) const {
    const int64_t share = range.size() / R;
    for (int64_t i = 0; i < share; ++i) pass<R>(range.begin + i, share, tiles, functions);
    for (int64_t b = range.begin + share * R; b < range.end; ++b) pass<1>(b, 0, tiles, table.one);
  }
};

void multiply(const QuantRows& rows, const QuantWeight& w, Range blocks, const float* bias, float* y,
              int64_t y_stride) {
  const TileTable& table = tile_table(w.dtype, rows.format.sum_columns, rows.format.group);
  const Multiply job{rows, w, table, bias, y, y_stride};
  if (rows.num_rows <= table.max_four_rows) return job.streams<4>(blocks, {0, 1}, table.four);
  const int64_t max_rows = std::clamp(kRowBlockBytes / w.K, 8 * kMaxTileRows, kMaxRowsAtOnce);
  const int num_parts = static_cast<int>(ceil_div(rows.num_tiles(), max_rows / rows.format.tile_rows));
  for (int part = 0; part < num_parts; ++part)
    job.streams<2>(blocks, split(rows.num_tiles(), part, num_parts), table.two);
}

}  // namespace

QuantKernels quant_kernels_avx2() { return {row_format, quantize_rows_avx2, multiply}; }

}  // namespace fmo
