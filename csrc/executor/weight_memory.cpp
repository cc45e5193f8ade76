#include "executor/weight_memory.h"

#include "kernels/linear/linear.h"
#include "kernels/qlinear/qlinear.h"

namespace fmo {
namespace {

std::string shown(const std::vector<int64_t>& dims) {
  std::string text;
  for (int64_t dim : dims) text += (text.empty() ? "[" : ", ") + std::to_string(dim);
  return text + "]";
}

// Rows of a packed weight, padded to whole panels or blocks, experts included.
int64_t padded_rows(const WeightSpec& spec, int64_t multiple, const std::string& layout, const std::string& where) {
  const size_t rank = spec.dims.size();
  if (rank != 2 && rank != 3)
    throw PlanError("a " + layout + " weight has " + std::to_string(rank) + " dims, expected 2 or 3", where);
  const int64_t lead = rank == 3 ? spec.dims[0] : 1;
  return checked_mul(lead, checked_mul(ceil_div(spec.dims[rank - 2], multiple), multiple));
}

WeightBytes panel16_bytes(const WeightSpec& spec, const std::string& where) {
  if (spec.dtype != DType::f32 && spec.dtype != DType::bf16)
    throw PlanError(std::string("a panel16 weight is ") + dtype_name(spec.dtype) + ", expected f32 or bf16", where);
  const int64_t rows = padded_rows(spec, kPanelRows, "panel16", where);
  return {checked_mul(checked_mul(rows, spec.dims.back()), dtype_bytes(spec.dtype)), 0, 0};
}

WeightBytes block8_bytes(const WeightSpec& spec, const std::string& where) {
  const QuantSpec& quant = *spec.quant;
  const int64_t rows = padded_rows(spec, kBlockRows, "block8", where), K = spec.dims.back();
  const int64_t multiple = is_nibble(spec.dtype) ? 8 : 4;
  if (spec.dtype == DType::e8m0) throw PlanError("e8m0 is a dtype of scales, not of weights", where);
  if (K < 1 || K % multiple != 0) {
    throw PlanError(std::string("the columns of ") + dtype_name(spec.dtype) + " " + shown(spec.dims) +
                        " are no multiple of " + std::to_string(multiple),
                    where);
  }
  if (quant.group < 1 || K % quant.group != 0) {
    throw PlanError("the group " + std::to_string(quant.group) + " does not divide the columns of " + shown(spec.dims),
                    where);
  }
  if (quant.scale_dtype != DType::f16 && quant.scale_dtype != DType::f32 && quant.scale_dtype != DType::e8m0)
    throw PlanError(std::string("the scales are ") + dtype_name(quant.scale_dtype) + ", expected f16, f32 or e8m0",
                    where);
  const int64_t codes = checked_mul(rows, K), scales = checked_mul(rows, K / quant.group);
  return {is_nibble(spec.dtype) ? codes / 2 : codes, checked_mul(scales, dtype_bytes(quant.scale_dtype)),
          spec.dtype == DType::u4 ? scales : 0};
}

}  // namespace

WeightBytes weight_bytes(const WeightSpec& spec, const std::string& where) {
  for (int64_t dim : spec.dims) {
    if (dim < 0) throw PlanError("the dims " + shown(spec.dims) + " are negative", where);
  }
  if (spec.layout == Layout::panel16) return panel16_bytes(spec, where);
  if (spec.layout == Layout::block8) return block8_bytes(spec, where);
  int64_t count = 1;
  for (int64_t dim : spec.dims) count = checked_mul(count, dim);
  return {checked_mul(count, dtype_bytes(spec.dtype)), 0, 0};
}

}  // namespace fmo
