// One linear layer over some rows by the whole thread team: shared by nn.linear and moe.experts.
#pragma once

#include "executor/step.h"
#include "kernels/linear/linear.h"

namespace fmo {

inline constexpr int64_t kMaxPackedRows = 1024;  // bounds the workspace of packed rows; more rows are done in chunks

struct LinearRows {
  RowSource x;
  int64_t num_rows = 0;
  PanelWeight w;
  const float* bias = nullptr;
  float* y = nullptr;
  int64_t y_stride = 0;
};

// Bytes of the shared workspace `packed` for up to `max_rows` rows.
int64_t packed_bytes(int64_t max_rows, int64_t K);

// Every thread of the team calls this with the same job; a barrier must follow before `packed` or y are used by others.
void linear_rows(const LinearKernels& kernels, const LinearRows& job, const Step& step, int thread, float* packed);

}  // namespace fmo
