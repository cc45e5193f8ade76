#include "executor/ops.h"

namespace fmo {
namespace {

struct OpRow {
  const char* name;
  BindFunction bind;
};

constexpr OpRow kOps[] = {
    {"nn.linear", bind_linear},       {"nn.embedding", bind_embedding},
    {"nn.rms_norm", bind_norm},       {"nn.layer_norm", bind_norm},
    {"nn.add_rms_norm", bind_norm},   {"nn.add_layer_norm", bind_norm},
    {"nn.rope", bind_rope},           {"nn.act_mul", bind_act_mul},
    {"nn.softmax", bind_softmax},     {"attn.paged", bind_attention},
    {"moe.experts", bind_experts},    {"ew.program", bind_pointwise_program},
    {"tensor.copy", bind_copy},       {"tensor.gather", bind_gather},
    {"tensor.scatter", bind_scatter}, {"tensor.gather_rows", bind_gather_rows},
    {"tensor.topk", bind_topk},       {"tensor.matmul", bind_matmul},
    {"tensor.cumsum", bind_cumsum},   {"tensor.full", bind_full},
    {"tensor.iota", bind_iota},       {"reduce.sum", bind_reduce},
    {"reduce.mean", bind_reduce},     {"reduce.max", bind_reduce},
    {"reduce.min", bind_reduce},      {"reduce.argmax", bind_reduce},
};

}  // namespace

BindFunction find_op(const std::string& op) {
  for (const OpRow& row : kOps) {
    if (op == row.name) return row.bind;
  }
  return nullptr;
}

std::vector<std::string> op_names() {
  std::vector<std::string> names;
  for (const OpRow& row : kOps) names.emplace_back(row.name);
  return names;
}

}  // namespace fmo
