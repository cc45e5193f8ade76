// How many bytes the tensors of a weight have, from its dims, dtype and layout. Checks that they go together.
#pragma once

#include <cstdint>
#include <string>

#include "executor/plan.h"

namespace fmo {

struct WeightBytes {
  int64_t data = 0;               // values, or the codes of block8
  int64_t scales = 0, zeros = 0;  // block8
};

// Throws PlanError.
WeightBytes weight_bytes(const WeightSpec& spec, const std::string& where);

}  // namespace fmo
