// Reference of the pointwise functions: libm for all that is not arithmetic.
#include "kernels/pointwise/pointwise_loops.h"

namespace fmo {
namespace {

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

UnaryF32 unary_f32(std::string_view name) {
  static constexpr Named<UnaryF32> table[] = {
      FMO_UNARY(float, "exp", std::exp(x)),
      FMO_UNARY(float, "tanh", std::tanh(x)),
      FMO_UNARY(float, "erf", std::erf(x)),
      FMO_UNARY(float, "sigmoid", sigmoid(x)),
      FMO_UNARY(float, "silu", x* sigmoid(x)),
      FMO_UNARY(float, "gelu", 0.5f * x * (1.0f + std::erf(x * 0.70710678f))),
      FMO_UNARY(float, "gelu_tanh", 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)))),
  };
  const UnaryF32 own = find(table, name);
  return own != nullptr ? own : plain_unary_f32(name);
}

constexpr std::string_view kUnary[] = {"neg",     "abs",   "square", "relu",      "sqrt",     "rsqrt", "floor",
                                       "log",     "log1p", "sin",    "cos",       "exp",      "tanh",  "erf",
                                       "sigmoid", "silu",  "gelu",   "gelu_tanh", "softplus", "not"};
constexpr std::string_view kBinary[] = {"add",     "sub", "mul",       "div",      "minimum",
                                        "maximum", "pow", "floor_div", "remainder"};
constexpr std::string_view kTruth[] = {"eq", "ne", "lt", "le", "gt", "ge", "and", "or"};

template <size_t COUNT>
bool contains(const std::string_view (&names)[COUNT], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

}  // namespace

PointwiseKernels pointwise_kernels_scalar() {
  return {unary_f32, plain_binary_f32, plain_compare_f32, plain_unary_i32, plain_binary_i32};
}

int pointwise_arity(std::string_view name) {
  if (name == "where") return 3;
  if (contains(kUnary, name)) return 1;
  return contains(kBinary, name) || contains(kTruth, name) ? 2 : 0;
}

bool gives_bool(std::string_view name) { return name == "not" || contains(kTruth, name); }

}  // namespace fmo
