// Embedding, norms, rope, gated activation and softmax: the glue between views and row kernels. Work is split by rows
// over the threads.
#include <algorithm>
#include <limits>

#include "executor/ops.h"
#include "kernels/linear/linear.h"
#include "kernels/norm/norm.h"
#include "kernels/pointwise/pointwise.h"
#include "kernels/rope/rope.h"

namespace fmo {
namespace {

float stored_value(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::f32) return static_cast<const float*>(data)[index];
  const uint16_t half = static_cast<const uint16_t*>(data)[index];
  return dtype == DType::bf16 ? bf16_to_f32(half) : f16_to_f32(half);
}

// Where the rows of an embedding table are; `step` is the distance between the values of a row.
struct EmbeddingTable {
  const char* data = nullptr;
  DType dtype = DType::f32;
  int64_t num_rows = 0, width = 0;
  bool is_panel16 = false, is_block8 = false;
  int64_t row_stride = 0;
  QuantWeight quant{};  // block8

  // panel16: value k of row n is in panel n/16 at k·16 + lane; bf16 interleaves rows i and i+8
  // (docs/artifact-format.md).
  void copy_row(int64_t row, float* y) const {
    if (is_block8) return dequantize_row(quant, row, y);
    int64_t first = row * row_stride, step = 1;
    if (is_panel16) {
      const int64_t lane = row % kPanelRows;
      first = row / kPanelRows * kPanelRows * width + (dtype == DType::f32 ? lane : 2 * (lane % 8) + lane / 8);
      step = kPanelRows;
    }
    for (int64_t k = 0; k < width; ++k) y[k] = stored_value(data, dtype, first + k * step);
  }
};

EmbeddingTable embedding_table(Binder& binder) {
  if (binder.is_panel16(0)) {
    const PanelWeight w = binder.panels(0, 2);
    return {static_cast<const char*>(w.data), w.dtype, w.N, w.K, true};
  }
  if (binder.is_block8(0)) {
    const QuantWeight w = binder.quant_weight(0, 2);
    return {nullptr, w.dtype, w.N, w.K, false, true, 0, w};
  }
  const Tensor* table = binder.table(0);
  const bool is_float = table->dtype == DType::f32 || table->dtype == DType::bf16 || table->dtype == DType::f16;
  binder.require(is_float && !table->has_row_dim(),
                 "the table " + describe(*table) + " must hold a fixed number of f32, bf16 or f16 rows");
  binder.require_last_dense(*table, "the table");
  return {table->data, table->dtype, table->dim(0), table->dim(1), false, false, table->stride(0)};
}

}  // namespace

bool reads_token_ids(const CallSpec& call) {
  if (call.op != "nn.embedding" || call.inputs.size() != 2 || !call.inputs[1].has_value()) return false;
  const ViewSpec& ids = *call.inputs[1];
  return ids.space == ViewSpec::Space::input && ids.name == "input_ids" && ids.offset == 0 &&
         (!ids.strides.has_value() || ids.strides->back() == 1);
}

BoundOp bind_embedding(Binder& binder) {
  binder.expect_operands(2, 2, 1);
  const EmbeddingTable table = embedding_table(binder);
  const Tensor* ids = binder.input(1, DType::i32);
  const Tensor* y = binder.output(0);
  binder.require_last_dense(*y, "y");
  bool fits = y->rank == ids->rank + 1 && y->row_dim(y->rank - 1) == RowDim::none &&
              y->dim(y->rank - 1) == table.width && table.num_rows > 0;
  for (int axis = 0; fits && axis < ids->rank; ++axis) fits = ids->same_dim(axis, *y, axis);
  binder.require(
      fits, "ids " + describe(*ids) + " and rows of " + std::to_string(table.width) + " do not give " + describe(*y));
  const bool reads_tokens = reads_token_ids(binder.call());
  return {std::string("embedding.cpu.") + dtype_name(table.dtype), [=](const Step& step, int thread) {
            const float* const* given = reads_tokens ? step.batch->embeddings : nullptr;
            const Range mine = split(ids->count(), thread, step.num_threads);
            for (int64_t i = mine.begin; i < mine.end; ++i) {
              float* y_row = y->as<float>() + y->offset(i, 0, ids->rank);
              if (given != nullptr && given[i] != nullptr) {
                std::copy_n(given[i], table.width, y_row);
                continue;
              }
              const int64_t row = step.checked_index(ids->as<int32_t>()[ids->offset(i)], table.num_rows);
              table.copy_row(row, y_row);
            }
          }};
}

BoundOp bind_norm(Binder& binder) {
  const std::string& op = binder.call().op;
  const bool has_residual = op == "nn.add_rms_norm" || op == "nn.add_layer_norm";
  const bool is_rms = op == "nn.rms_norm" || op == "nn.add_rms_norm";
  const size_t num_data = has_residual ? 2 : 1;
  binder.expect_operands(num_data, num_data + (is_rms ? 1 : 2), num_data);
  const Tensor* x = binder.input(0);
  const Tensor* residual = has_residual ? binder.input(1) : nullptr;
  const Tensor* sum = has_residual ? binder.output(0) : nullptr;
  const Tensor* y = binder.output(num_data - 1);
  for (const Tensor* t : {x, residual, sum, y}) {
    if (t == nullptr) continue;
    binder.require_same_dims(*x, *t, "x and the other operands");
    binder.require_last_dense(*t, "every operand");
  }
  const int last = x->rank - 1;
  binder.require(x->row_dim(last) == RowDim::none && x->dim(last) > 0,
                 "x is " + describe(*x) + ", its last dim must be fixed");
  NormRow row;
  row.H = x->dim(last);
  row.eps = static_cast<float>(binder.float_attr("eps"));
  row.w = binder.vector(num_data, row.H);
  row.b = is_rms ? nullptr : binder.vector(num_data + 1, row.H);
  const NormKernels kernels = norm_kernels(binder.isa());
  const auto kernel = is_rms ? kernels.rms : kernels.layer;
  return {op.substr(3) + ".cpu." + isa_name(binder.isa()), [=](const Step& step, int thread) {
            const Range mine = split(x->count(0, last), thread, step.num_threads);
            NormRow r = row;
            for (int64_t i = mine.begin; i < mine.end; ++i) {
              r.x = x->as<float>() + x->offset(i, 0, last);
              r.residual = residual == nullptr ? nullptr : residual->as<float>() + residual->offset(i, 0, last);
              r.sum = sum == nullptr ? nullptr : sum->as<float>() + sum->offset(i, 0, last);
              r.y = y->as<float>() + y->offset(i, 0, last);
              kernel(r);
            }
          }};
}

BoundOp bind_rope(Binder& binder) {
  binder.expect_operands(3, 3, 1);
  const Tensor *x = binder.input(0, DType::f32, 3), *cos = binder.input(1, DType::f32, 2),
               *sin = binder.input(2, DType::f32, 2);
  const Tensor* y = binder.output(0, DType::f32, 3);
  const std::string style = binder.string_attr("style");
  RopeParams params;
  params.rotary_dim = binder.int_attr("rotary_dim");
  params.offset = binder.int_attr("offset", 0);
  params.head_dim = x->dim(2);
  params.style = style == "half"          ? RopeStyle::half
                 : style == "interleaved" ? RopeStyle::interleaved
                                          : RopeStyle::interleaved_to_half;
  binder.require(style == "half" || style == "interleaved" || style == "interleaved_to_half",
                 "unknown rope style '" + style + "'");
  binder.require_same_dims(*x, *y, "x and y");
  for (const Tensor* t : {x, cos, sin, y}) binder.require_last_dense(*t, "every operand");
  const bool fits = params.rotary_dim > 0 && params.rotary_dim % 2 == 0 && params.offset >= 0 &&
                    params.head_dim >= params.rotary_dim && params.offset <= params.head_dim - params.rotary_dim &&
                    x->row_dim(2) == RowDim::none && x->row_dim(1) == RowDim::none;
  binder.require(fits, "rotary_dim " + std::to_string(params.rotary_dim) + " at offset " +
                           std::to_string(params.offset) + " does not fit x " + describe(*x));
  binder.require_same_dims(*cos, *sin, "cos and sin");
  binder.require(cos->same_dim(0, *x, 0) && cos->row_dim(1) == RowDim::none && cos->dim(1) == params.rotary_dim / 2,
                 "cos " + describe(*cos) + " does not fit x " + describe(*x) + " with rotary_dim " +
                     std::to_string(params.rotary_dim));
  return {"rope.cpu", [=](const Step& step, int thread) {
            const Range mine = split(x->dim(0) * x->dim(1), thread, step.num_threads);
            for (int64_t i = mine.begin; i < mine.end; ++i) {
              const int64_t token = i / x->dim(1);
              rope_head(params, x->as<float>() + x->offset(i, 0, 2), cos->as<float>() + token * cos->stride(0),
                        sin->as<float>() + token * sin->stride(0), y->as<float>() + y->offset(i, 0, 2));
            }
          }};
}

BoundOp bind_act_mul(Binder& binder) {
  binder.expect_operands(2, 2, 1);
  const Tensor *gate = binder.input(0), *up = binder.input(1), *y = binder.output(0);
  binder.require_same_dims(*gate, *up, "gate and up");
  binder.require_same_dims(*gate, *y, "gate and y");
  for (const Tensor* t : {gate, up, y}) binder.require_last_dense(*t, "every operand");
  const PointwiseKernels pointwise = pointwise_kernels(binder.isa());
  const UnaryF32 act = pointwise.unary_f32(binder.string_attr("act"));
  const BinaryF32 mul = pointwise.binary_f32("mul");
  binder.require(act != nullptr, "unknown activation '" + binder.string_attr("act") + "'");
  return {std::string("act_mul.cpu.") + isa_name(binder.isa()), [=](const Step& step, int thread) {
            constexpr int64_t kPiece = 256;
            float activated[kPiece];
            const int last = y->rank - 1;
            const int64_t width = y->dim(last), pieces = ceil_div(width, kPiece);
            const Range mine = split(y->count(0, last) * pieces, thread, step.num_threads);
            for (int64_t i = mine.begin; i < mine.end; ++i) {
              const int64_t row = i / pieces, begin = i % pieces * kPiece, count = std::min(kPiece, width - begin);
              act(gate->as<float>() + gate->offset(row, 0, last) + begin, activated, count);
              mul(activated, up->as<float>() + up->offset(row, 0, last) + begin,
                  y->as<float>() + y->offset(row, 0, last) + begin, count);
            }
          }};
}

// One line of the softmax: gathered, exp(x − max), divided by the sum taken in index order.
BoundOp bind_softmax(Binder& binder) {
  binder.expect_operands(1, 1, 1);
  const Tensor *x = binder.input(0), *y = binder.output(0);
  binder.require_same_dims(*x, *y, "x and y");
  const int axis = binder.axis_attr("dim", x->rank);
  binder.require(x->row_dim(axis) == RowDim::none && x->dim(axis) > 0,
                 "softmax over the rows of the batch: " + describe(*x));
  binder.need_workspace(0, checked_mul(x->dim(axis), 4));
  const UnaryF32 exp = pointwise_kernels(binder.isa()).unary_f32("exp");
  return {std::string("softmax.cpu.") + isa_name(binder.isa()), [=](const Step& step, int thread) {
            float* line = reinterpret_cast<float*>(step.thread_workspace(thread));
            const int64_t size = x->dim(axis);
            const Range mine = split(x->count_without(axis), thread, step.num_threads);
            for (int64_t i = mine.begin; i < mine.end; ++i) {
              const float* source = x->as<float>() + x->offset_without(axis, i);
              float* target = y->as<float>() + y->offset_without(axis, i);
              float top = -std::numeric_limits<float>::infinity(), sum = 0.0f;
              for (int64_t j = 0; j < size; ++j) top = std::max(top, source[j * x->stride(axis)]);
              for (int64_t j = 0; j < size; ++j) line[j] = source[j * x->stride(axis)] - top;
              exp(line, line, size);
              for (int64_t j = 0; j < size; ++j) sum += line[j];
              for (int64_t j = 0; j < size; ++j) target[j * y->stride(axis)] = line[j] / sum;
            }
          }};
}

}  // namespace fmo
