#include "executor/packed_linear.h"

#include <algorithm>

namespace fmo {
namespace {

constexpr int64_t kIntegerGroup = 32;         // columns: act_group of integers is a multiple
constexpr int64_t kShareBytes = 128 << 10;    // of codes: the start of a share is not prefetched
constexpr int64_t kMaxIntegerGroup = 131072;  // 128 · 127 · 131072 still fits in 31 bits

Act parse_act(const Binder& binder, const std::string& name) {
  for (Act act : {Act::f32, Act::i8, Act::i7, Act::e4m3}) {
    if (name == act_name(act)) return act;
  }
  binder.fail("act_dtype '" + name + "' is none of f32, i8, i7, e4m3");
}

// The bit budget of docs/quantized-weights.md.
bool may_multiply(DType weight, Act act) {
  if (!is_integer(act)) return true;
  if (is_nibble(weight)) return act == Act::i8;
  return weight == DType::i7 || (weight == DType::i8 && act == Act::i7);
}

}  // namespace

PackedLinear PackedLinear::bind(Binder& binder, size_t index, int rank, int64_t* num_experts, size_t matrix) {
  PackedLinear layer;
  layer.isa_ = binder.isa();
  layer.linear_ = &linear_kernels(binder.isa());
  layer.integers_ = &quant_kernels(binder.isa());
  layer.floats_ = &quant_float_kernels(binder.isa());
  if (!binder.is_block8(index)) {
    layer.panels_ = binder.panels(index, rank, num_experts, &layer.expert_bytes_);
  } else {
    layer.quant_ = binder.quant_weight(index, rank, num_experts);
    layer.bind_act(binder, index, matrix);
  }
  return layer;
}

void PackedLinear::bind_act(Binder& binder, size_t index, size_t matrix) {
  const std::string name = "input " + std::to_string(index) + " (" + dtype_name(quant_.dtype) + ")";
  act_ = parse_act(binder, binder.string_attr("act_dtype"));
  if (binder.has_attr("act_group")) {
    const bool is_list = binder.is_list_attr("act_group");
    const std::vector<int64_t> groups =
        is_list ? binder.ints_attr("act_group") : std::vector<int64_t>{binder.int_attr("act_group")};
    binder.require(matrix < groups.size(), "act_group has " + std::to_string(groups.size()) + " entries, expected 2");
    act_group_ = groups[matrix];
  }
  require_legal_act(binder, name);
  if (!binder.storage().quantize_activations()) act_ = Act::f32;
  kind_ = is_integer(act_) ? Kind::integers : Kind::floats;
}

void PackedLinear::require_legal_act(const Binder& binder, const std::string& name) const {
  binder.require(may_multiply(quant_.dtype, act_),
                 name + " with act_dtype " + act_name(act_) + " could overflow the integers of the kernels");
  if (!is_integer(act_)) return;
  const std::string group = "act_group " + std::to_string(act_group_);
  binder.require(
      act_group_ > 0 && act_group_ % kIntegerGroup == 0 && quant_.K % act_group_ == 0,
      group + " must be a multiple of 32 that divides the " + std::to_string(quant_.K) + " columns of " + name);
  binder.require(act_group_ <= kMaxIntegerGroup, group + " is above 131072: its sums could overflow");
  binder.require(quant_.is_per_channel() || act_group_ == quant_.group,
                 group + " differs from the group " + std::to_string(quant_.group) + " of " + name);
}

PackedLinear PackedLinear::expert(int64_t index) const {
  PackedLinear one = *this;
  if (kind_ == Kind::panels) {
    one.panels_.data = static_cast<const char*>(panels_.data) + index * expert_bytes_;
  } else {
    one.quant_ = quant_.expert(index);
  }
  return one;
}

std::vector<std::string> PackedLinear::kernel_suffixes(Isa isa) {
  std::vector<std::string> suffixes;
  const std::string first = isa_name(isa) + std::string(".");
  for (DType dtype : {DType::f32, DType::bf16}) suffixes.push_back(first + dtype_name(dtype));
  for (DType dtype : {DType::i4, DType::u4, DType::e2m1, DType::i7, DType::i8, DType::e4m3}) {
    for (Act act : {Act::f32, Act::i8, Act::i7, Act::e4m3}) {
      if (may_multiply(dtype, act)) suffixes.push_back(first + dtype_name(dtype) + "x" + act_name(act));
    }
  }
  return suffixes;
}

std::string PackedLinear::kernel_suffix() const {
  const std::string isa = isa_name(isa_);
  if (kind_ == Kind::panels) return isa + "." + dtype_name(panels_.dtype);
  return isa + "." + dtype_name(quant_.dtype) + "x" + act_name(act_);
}

int64_t PackedLinear::min_share() const {
  if (kind_ != Kind::integers) return 8;
  return std::clamp<int64_t>(kShareBytes / quant_.block_bytes(), 16, 32);
}

bool PackedLinear::is_few(int64_t num_rows) const {
  return num_rows <= (kind_ == Kind::panels ? linear_->max_gemv_rows(panels_.dtype) : floats_->max_gemv_rows(quant_));
}

bool PackedLinear::wants_rows(int64_t num_rows) const {
  return kind_ == Kind::integers || act_ == Act::e4m3 || !is_few(num_rows);
}

QuantRows PackedLinear::quant_rows(char* rows, int64_t num_rows) const {
  QuantRows result;
  QuantRows::lay_out(integers_->row_format(quant_, act_, act_group_, num_rows), num_rows, K(), rows, &result);
  return result;
}

int64_t PackedLinear::rows_bytes(int64_t num_rows) const {
  if (kind_ == Kind::integers) {
    return QuantRows::lay_out(integers_->row_format(quant_, act_, act_group_, num_rows), num_rows, K(), nullptr,
                              nullptr);
  }
  const int64_t packed = round_up(checked_mul(num_rows, checked_mul(K(), 4)), 64);
  return act_ == Act::e4m3 ? checked_mul(packed, 2) : packed;
}

// Rows rounded to e4m3 lie behind the packed ones.
RowSource PackedLinear::rounded(char* rows, int64_t num_rows) const {
  return {reinterpret_cast<const float*>(rows + round_up(num_rows * K() * 4, 64)), K(), nullptr};
}

void PackedLinear::prepare(const RowSource& x, int64_t num_rows, char* rows, int part, int num_parts) const {
  if (kind_ == Kind::integers) {
    const QuantRows target = quant_rows(rows, num_rows);
    return integers_->quantize(x, target, split(target.num_units(), part, num_parts));
  }
  const Range tiles = split(num_row_tiles(num_rows), part, num_parts);
  if (tiles.size() == 0) return;
  RowSource source = x;
  if (act_ == Act::e4m3) {
    const Range mine{row_tile(num_rows, tiles.begin).begin, row_tile(num_rows, tiles.end - 1).end};
    source = rounded(rows, num_rows);
    floats_->round_e4m3(x, K(), mine, const_cast<float*>(source.row(mine.begin)));
  }
  if (!is_few(num_rows)) linear_->pack(source, num_rows, K(), tiles, reinterpret_cast<float*>(rows));
}

void PackedLinear::compute(const RowSource& x, int64_t num_rows, const char* rows, Range units, const float* bias,
                           float* y, int64_t y_stride) const {
  char* const mutable_rows = const_cast<char*>(rows);
  if (kind_ == Kind::integers)
    return integers_->multiply(quant_rows(mutable_rows, num_rows), quant_, units, bias, y, y_stride);
  const float* packed = reinterpret_cast<const float*>(rows);
  if (kind_ == Kind::panels) {
    if (is_few(num_rows)) return linear_->gemv(x, num_rows, panels_, units, bias, y, y_stride);
    return linear_->gemm(packed, num_rows, panels_, units, bias, y, y_stride);
  }
  if (!is_few(num_rows)) return floats_->gemm(packed, num_rows, quant_, units, bias, y, y_stride);
  floats_->gemv(act_ == Act::e4m3 ? rounded(mutable_rows, num_rows) : x, num_rows, quant_, units, bias, y, y_stride);
}

}  // namespace fmo
