// One bind function per family of ops; `op_table.cpp` maps op names to them.
#pragma once

#include <string>
#include <vector>

#include "executor/binder.h"

namespace fmo {

// Whether an embedding looks up all token ids of the step, in their order: the rows that `Batch::embeddings` may
// replace.
bool reads_token_ids(const CallSpec& call);

using BindFunction = BoundOp (*)(Binder&);

// The bind function of an op, or null when there is no such op.
BindFunction find_op(const std::string& op);
std::vector<std::string> op_names();

BoundOp bind_linear(Binder& binder);
BoundOp bind_experts(Binder& binder);
BoundOp bind_embedding(Binder& binder);
BoundOp bind_norm(Binder& binder);  // all four
BoundOp bind_rope(Binder& binder);
BoundOp bind_act_mul(Binder& binder);
BoundOp bind_softmax(Binder& binder);
BoundOp bind_attention(Binder& binder);
BoundOp bind_pointwise_program(Binder& binder);
BoundOp bind_copy(Binder& binder);
BoundOp bind_gather(Binder& binder);
BoundOp bind_scatter(Binder& binder);
BoundOp bind_gather_rows(Binder& binder);
BoundOp bind_topk(Binder& binder);
BoundOp bind_matmul(Binder& binder);
BoundOp bind_cumsum(Binder& binder);
BoundOp bind_full(Binder& binder);
BoundOp bind_iota(Binder& binder);
BoundOp bind_reduce(Binder& binder);

}  // namespace fmo
