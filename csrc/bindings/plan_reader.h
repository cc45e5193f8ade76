// Parsed plan.json (a Python dict) to `PlanSpec`. Types and keys are checked here, everything about content in the
// executor.
#pragma once

#include <nanobind/nanobind.h>

#include "executor/plan.h"

namespace fmo {

// `weights`: name → (path, offset in bytes, number of bytes), one entry for each weight of the plan. Throws PlanError.
PlanSpec read_plan(nanobind::dict plan, nanobind::dict weights);

}  // namespace fmo
