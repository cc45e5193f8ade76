// A linear layer whose weight is packed (panel16 or block8), with the kernels of its layout: what nn.linear and
// moe.experts share.
//
//   PackedLinear layer = PackedLinear::bind(binder, 1, 2);
//   if (layer.wants_rows(num_rows)) layer.prepare(x, num_rows, rows, part, num_parts);     // by every part; then a
//   barrier layer.compute(x, num_rows, rows, units, bias, y, y_stride);                            // for shares of
//   num_units()
//
// `rows` is workspace of rows_bytes(num_rows): the rows of x as the kernel wants them (packed, rounded or as integers),
// written once and read by all threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/split.h"
#include "executor/binder.h"
#include "kernels/linear/linear.h"
#include "kernels/qlinear/qlinear.h"

namespace fmo {

class PackedLinear {
 public:
  PackedLinear() = default;
  // Input `index` of the call; `rank` 3: experts first. `matrix`: which of the call's packed matrices it is, where
  // act_group is a list. Throws PlanError.
  static PackedLinear bind(Binder& binder, size_t index, int rank, int64_t* num_experts = nullptr, size_t matrix = 0);

  int64_t N() const { return kind_ == Kind::panels ? panels_.N : quant_.N; }
  bool is_f32() const { return kind_ == Kind::panels && panels_.dtype == DType::f32; }
  int64_t K() const { return kind_ == Kind::panels ? panels_.K : quant_.K; }
  PackedLinear expert(int64_t index) const;
  std::string kernel_suffix() const;                         // e.g. avx2.bf16, avx2.i4xi8
  static std::vector<std::string> kernel_suffixes(Isa isa);  // all there are

  bool wants_rows(int64_t num_rows) const;
  int64_t rows_bytes(int64_t num_rows) const;  // grows with num_rows
  void prepare(const RowSource& x, int64_t num_rows, char* rows, int part, int num_parts) const;

  int64_t num_units() const { return kind_ == Kind::integers ? quant_.num_blocks() : ceil_div(N(), kPanelRows); }
  int64_t min_share() const;  // units: several for each stream of a gemv, and long enough to get going
  void compute(const RowSource& x, int64_t num_rows, const char* rows, Range units, const float* bias, float* y,
               int64_t y_stride) const;

 private:
  enum class Kind : uint8_t { panels, integers, floats };

  void bind_act(Binder& binder, size_t index, size_t matrix);
  void require_legal_act(const Binder& binder, const std::string& name) const;
  bool is_few(int64_t num_rows) const;
  RowSource rounded(char* rows, int64_t num_rows) const;
  QuantRows quant_rows(char* rows, int64_t num_rows) const;

  Kind kind_ = Kind::panels;
  Isa isa_ = Isa::scalar;
  PanelWeight panels_;
  int64_t expert_bytes_ = 0;
  QuantWeight quant_;
  Act act_ = Act::f32;
  int64_t act_group_ = 0;
  const LinearKernels* linear_ = nullptr;
  const QuantKernels* integers_ = nullptr;
  const QuantFloatKernels* floats_ = nullptr;
};

}  // namespace fmo
