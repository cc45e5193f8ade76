// moe.experts: tokens are grouped by expert, each expert's two linear layers run on its own tokens only.
//
//   group     pairs (token, slot) sorted by expert, ascending: the rows of an expert follow each other
//   gate_up   hidden [pairs, R] = x[token] · gate_upᵀ (+ bias)         R = 2I or I
//   act       hidden [pairs, I] in place, in the first I columns
//   down      result [pairs, H] = hidden · downᵀ (+ bias)
//   combine   y[token] = Σ over slots ascending of weight · result     so the sum does not depend on the batch
//
// Tokens go through in chunks of kChunkTokens, which bounds the workspace.
#include <algorithm>
#include <numeric>

#include "executor/ops.h"
#include "executor/packed_linear.h"
#include "kernels/pointwise/pointwise.h"

namespace fmo {
namespace {

constexpr int64_t kChunkTokens = 128;

struct Experts {
  const Tensor *x, *ids, *weights, *y;
  PackedLinear gate_up, down;
  int64_t num_experts;
  const float *gate_up_bias, *down_bias;
  int64_t top_k, hidden_size, intermediate_size;
  bool has_gate, is_swiglu_clamped;
  float alpha, limit;
  UnaryF32 act, sigmoid;
  BinaryF32 mul;
};

// The shared workspace, laid out for `max_pairs`.
struct ExpertsWorkspace {
  int32_t *begins, *tokens, *place;  // [E + 1]; [pairs] the token of a row; [pairs] the row of a pair
  float *hidden, *result;
  char* prepared;  // the rows of an expert as its layer wants them, from its first row on
  int64_t prepared_row_bytes;

  static int64_t lay_out(const Experts& e, int64_t max_pairs, char* base, ExpertsWorkspace* out) {
    int64_t at = 0;
    const auto take = [&](int64_t count) {
      char* p = base == nullptr ? nullptr : base + at;
      at += round_up(checked_mul(count, 4), 64);
      return p;
    };
    ExpertsWorkspace w{};
    w.begins = reinterpret_cast<int32_t*>(take(e.num_experts + 1));
    w.tokens = reinterpret_cast<int32_t*>(take(max_pairs));
    w.place = reinterpret_cast<int32_t*>(take(max_pairs));
    w.hidden = reinterpret_cast<float*>(take(checked_mul(max_pairs, e.gate_up.N())));
    w.result = reinterpret_cast<float*>(take(checked_mul(max_pairs, e.hidden_size)));
    w.prepared_row_bytes = std::max(e.gate_up.rows_bytes(1), e.down.rows_bytes(1));  // of one row: rounded up the most
    w.prepared = take(checked_mul(max_pairs, ceil_div(w.prepared_row_bytes, 4)));
    if (out != nullptr) *out = w;
    return at;
  }
};

// Counting sort of the chunk's pairs by expert; ties keep the order of tokens and slots.
void group_pairs(const Experts& e, const Step& step, Range tokens, const ExpertsWorkspace& w) {
  std::fill_n(w.begins, e.num_experts + 1, 0);
  const auto expert_of = [&](int64_t pair) {
    const int64_t token = tokens.begin + pair / e.top_k, slot = pair % e.top_k;
    return step.checked_index(e.ids->as<int32_t>()[token * e.ids->stride(0) + slot * e.ids->stride(1)], e.num_experts);
  };
  const int64_t num_pairs = tokens.size() * e.top_k;
  for (int64_t pair = 0; pair < num_pairs; ++pair) ++w.begins[expert_of(pair) + 1];
  std::partial_sum(w.begins, w.begins + e.num_experts + 1, w.begins);
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    const int32_t row = w.begins[expert_of(pair)]++;
    w.tokens[row] = static_cast<int32_t>(tokens.begin + pair / e.top_k);
    w.place[pair] = row;
  }
  for (int64_t expert = e.num_experts; expert > 0; --expert) w.begins[expert] = w.begins[expert - 1];
  w.begins[0] = 0;
}

// One linear layer of all used experts: prepares the rows of every expert that wants it, then each thread does its
// units of each expert.
void expert_layer(const Experts& e, const Step& step, int thread, const ExpertsWorkspace& w, const RowSource& x,
                  const PackedLinear& layer, const float* bias, float* y, int64_t y_stride) {
  const auto rows_of = [&](int64_t expert) { return Range{w.begins[expert], w.begins[expert + 1]}; };
  const auto prepared = [&](Range rows) { return w.prepared + rows.begin * w.prepared_row_bytes; };
  for (int64_t expert = 0; expert < e.num_experts; ++expert) {
    const Range rows = rows_of(expert);
    if (rows.size() == 0 || !layer.wants_rows(rows.size())) continue;
    layer.prepare(x.from(rows.begin), rows.size(), prepared(rows), thread, step.num_threads);
  }
  step.barrier();
  const Range units = split(layer.num_units(), thread, step.num_threads);
  for (int64_t expert = 0; expert < e.num_experts; ++expert) {
    const Range rows = rows_of(expert);
    if (rows.size() == 0) continue;
    const float* expert_bias = bias == nullptr ? nullptr : bias + expert * layer.N();
    layer.expert(expert).compute(x.from(rows.begin), rows.size(), prepared(rows), units, expert_bias,
                                 y + rows.begin * y_stride, y_stride);
  }
  step.barrier();
}

// (u + 1) · g · sigmoid(alpha · g), with g and u clamped.
void swiglu_clamped(const Experts& e, float* gate, const float* up) {
  constexpr int64_t kPiece = 256;
  float gates[kPiece];
  for (int64_t begin = 0; begin < e.intermediate_size; begin += kPiece) {
    const int64_t count = std::min(kPiece, e.intermediate_size - begin);
    for (int64_t i = 0; i < count; ++i) {
      gate[begin + i] = std::min(gate[begin + i], e.limit);
      gates[i] = e.alpha * gate[begin + i];
    }
    e.sigmoid(gates, gates, count);
    for (int64_t i = 0; i < count; ++i) {
      const float u = std::clamp(up[begin + i], -e.limit, e.limit);
      gate[begin + i] = (u + 1.0f) * gate[begin + i] * gates[i];
    }
  }
}

void activate(const Experts& e, float* hidden) {
  if (e.is_swiglu_clamped) return swiglu_clamped(e, hidden, hidden + e.intermediate_size);
  e.act(hidden, hidden, e.intermediate_size);
  if (e.has_gate) e.mul(hidden, hidden + e.intermediate_size, hidden, e.intermediate_size);
}

void combine(const Experts& e, Range tokens, Range mine, const ExpertsWorkspace& w) {
  for (int64_t t = mine.begin; t < mine.end; ++t) {
    float* y = e.y->as<float>() + (tokens.begin + t) * e.y->stride(0);
    const float* weights = e.weights->as<float>() + (tokens.begin + t) * e.weights->stride(0);
    std::fill_n(y, e.hidden_size, 0.0f);
    for (int64_t slot = 0; slot < e.top_k; ++slot) {
      const float* row = w.result + w.place[t * e.top_k + slot] * e.hidden_size;
      const float weight = weights[slot * e.weights->stride(1)];
      for (int64_t i = 0; i < e.hidden_size; ++i) y[i] += weight * row[i];
    }
  }
}

void run_experts(const Experts& e, const Step& step, int thread) {
  ExpertsWorkspace w{};
  ExpertsWorkspace::lay_out(e, kChunkTokens * e.top_k, step.shared_workspace, &w);
  for (int64_t begin = 0; begin < e.x->dim(0); begin += kChunkTokens) {
    const Range tokens{begin, std::min(begin + kChunkTokens, e.x->dim(0))};
    if (thread == 0) group_pairs(e, step, tokens, w);
    step.barrier();
    const RowSource x{e.x->as<const float>(), e.x->stride(0), w.tokens};
    expert_layer(e, step, thread, w, x, e.gate_up, e.gate_up_bias, w.hidden, e.gate_up.N());
    const Range pairs = split(tokens.size() * e.top_k, thread, step.num_threads);
    for (int64_t pair = pairs.begin; pair < pairs.end; ++pair) activate(e, w.hidden + pair * e.gate_up.N());
    step.barrier();
    const RowSource hidden{w.hidden, e.gate_up.N(), nullptr};
    expert_layer(e, step, thread, w, hidden, e.down, e.down_bias, w.result, e.hidden_size);
    combine(e, tokens, split(tokens.size(), thread, step.num_threads), w);
    step.barrier();
  }
}

const float* expert_bias(Binder& binder, size_t index, int64_t num_experts, int64_t size) {
  if (!binder.has_input(index)) return nullptr;
  const Tensor* bias = binder.input(index, DType::f32, 2);
  const bool fits = bias->dim(0) == num_experts && bias->dim(1) == size && bias->stride(1) == 1 &&
                    (num_experts == 1 || bias->stride(0) == size) && !bias->has_row_dim();
  binder.require(fits, "bias " + describe(*bias) + " is not dense [" + std::to_string(num_experts) + ", " +
                           std::to_string(size) + "]");
  return bias->as<float>();
}

void bind_activation(Binder& binder, Experts& e) {
  const PointwiseKernels pointwise = pointwise_kernels(binder.isa());
  const std::string act = binder.string_attr("act");
  e.is_swiglu_clamped = act == "swiglu_clamped";
  e.has_gate = binder.bool_attr("has_gate", true);
  e.alpha = static_cast<float>(binder.float_attr("alpha", 0.0));
  e.limit = static_cast<float>(binder.float_attr("limit", 0.0));
  e.act = e.is_swiglu_clamped ? nullptr : pointwise.unary_f32(act);
  e.sigmoid = pointwise.unary_f32("sigmoid");
  e.mul = pointwise.binary_f32("mul");
  binder.require(e.is_swiglu_clamped || e.act != nullptr, "unknown activation '" + act + "'");
  binder.require(!e.is_swiglu_clamped || (e.has_gate && e.limit >= 0.0f),
                 "swiglu_clamped needs a gate and a limit that is not negative");
}

}  // namespace

BoundOp bind_experts(Binder& binder) {
  binder.expect_operands(5, 7, 1);
  Experts e{};
  e.x = binder.input(0, DType::f32, 2);
  e.ids = binder.input(1, DType::i32, 2);
  e.weights = binder.input(2, DType::f32, 2);
  int64_t down_experts = 0;
  e.gate_up = PackedLinear::bind(binder, 3, 3, &e.num_experts, 0);
  e.down = PackedLinear::bind(binder, 4, 3, &down_experts, 1);
  e.y = binder.output(0, DType::f32, 2);
  e.top_k = e.ids->dim(1);
  e.hidden_size = e.down.N();
  e.intermediate_size = e.down.K();
  bind_activation(binder, e);
  e.gate_up_bias = expert_bias(binder, 5, e.num_experts, e.gate_up.N());
  e.down_bias = expert_bias(binder, 6, e.num_experts, e.down.N());
  binder.require(binder.bool_attr("has_bias", e.down_bias != nullptr) == (e.down_bias != nullptr),
                 "has_bias disagrees with the operands");
  binder.require_same_dims(*e.ids, *e.weights, "expert_ids and expert_weights");
  binder.require_same_dims(*e.x, *e.y, "x and y");
  binder.require_last_dense(*e.x, "x");
  binder.require_last_dense(*e.y, "y");
  const bool fits = down_experts == e.num_experts && e.gate_up.N() == e.intermediate_size * (e.has_gate ? 2 : 1) &&
                    e.gate_up.K() == e.hidden_size && e.x->row_dim(1) == RowDim::none && e.x->dim(1) == e.hidden_size &&
                    e.x->same_dim(0, *e.ids, 0) && e.top_k > 0 && e.ids->row_dim(1) == RowDim::none &&
                    e.num_experts > 0 && e.gate_up.K() > 0 && e.down.K() > 0;
  binder.require(fits, "x " + describe(*e.x) + ", ids " + describe(*e.ids) + ", gate_up [" +
                           std::to_string(e.num_experts) + ", " + std::to_string(e.gate_up.N()) + ", " +
                           std::to_string(e.gate_up.K()) + "] and down [" + std::to_string(down_experts) + ", " +
                           std::to_string(e.down.N()) + ", " + std::to_string(e.down.K()) + "] do not fit together");
  binder.need_workspace(ExpertsWorkspace::lay_out(e, checked_mul(kChunkTokens, e.top_k), nullptr, nullptr), 0);
  return {"experts.cpu." + e.gate_up.kernel_suffix(),
          [e](const Step& step, int thread) { run_experts(e, step, thread); }};
}

}  // namespace fmo
