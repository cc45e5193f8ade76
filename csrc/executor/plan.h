// A plan as plain values: what plan.json says (docs/artifact-format.md), nothing resolved or checked yet.
// The binding fills these from the parsed JSON; `Executor` checks and binds them.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/dtype.h"

namespace fmo {

// The dims whose sizes are known only at a step.
enum class RowDim : uint8_t { none, num_tokens, num_logits };

struct DimSpec {
  RowDim row_dim = RowDim::none;
  int64_t size = 0;  // when row_dim is none
};

struct ViewSpec {
  enum class Space : uint8_t { buffer, weight, input };
  Space space = Space::buffer;
  int64_t buffer = 0;  // Space::buffer
  std::string name;    // Space::weight and Space::input
  DType dtype = DType::f32;
  std::vector<DimSpec> dims;
  std::optional<std::vector<int64_t>> strides;  // elements; absent: contiguous
  int64_t offset = 0;                           // elements
};

// One operand of an expression of `ew.program`.
struct EwOperand {
  enum class Kind : uint8_t { input, reg, constant };
  Kind kind = Kind::input;
  int64_t index = 0;         // of the input or register
  DType dtype = DType::f32;  // of the constant: f32, i32 or boolean
  double constant = 0.0;
};

struct EwStatement {
  std::string fn;
  std::vector<EwOperand> operands;
};

using Attr = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>>;

// Columns `begin` to `end` of the product of a linear layer are the output of `module` of the checkpoint.
struct SiteSpec {
  std::string module;
  int64_t begin = 0, end = 0;
};

struct CallSpec {
  std::string op;
  std::vector<std::optional<ViewSpec>> inputs;  // absent operands are null
  std::vector<ViewSpec> outputs;
  std::map<std::string, Attr> attrs;
  std::vector<EwStatement> code;  // `ew.program`
  std::vector<SiteSpec> sites;    // `nn.linear`
  int64_t layer = -1;
  std::string source;
};

enum class Layout : uint8_t { row_major, panel16, block8 };

struct FilePlace {
  std::string path;
  int64_t offset = 0;  // bytes
  int64_t num_bytes = 0;
};

// What a block8 weight has beside its codes (docs/quantized-weights.md).
struct QuantSpec {
  int64_t group = 0;  // columns per scale
  DType scale_dtype = DType::f16;
  int64_t lane_sum = kAnyLaneSum;  // i7: what the sum of |code − zero| of a lane does not exceed
  FilePlace scales;
  std::optional<FilePlace> zeros;  // u4 only
};

struct WeightSpec {
  DType dtype = DType::f32;
  Layout layout = Layout::row_major;
  std::vector<int64_t> dims;
  FilePlace place;
  std::optional<QuantSpec> quant;  // layout block8
};

struct BufferSpec {
  RowDim arena = RowDim::none;  // none: the arena "fixed"
  int64_t offset = 0;           // bytes per row
  int64_t row_bytes = 0;
};

struct KvLayerSpec {
  int64_t num_kv_heads = 0, k_head_dim = 0, v_head_dim = 0;
};

struct PlanSpec {
  int64_t vocab_size = 0;    // token ids that the model takes
  int64_t output_width = 0;  // of a row of `logits`: vocab_size, or the hidden size of a model that gives embeddings
  int64_t max_context_len = 0;
  std::vector<KvLayerSpec> kv_layers;
  std::array<int64_t, 3> arena_bytes{};  // indexed by RowDim: bytes per row (fixed: bytes)
  std::vector<BufferSpec> buffers;
  std::map<std::string, WeightSpec> weights;
  std::vector<CallSpec> calls;
  ViewSpec logits;
};

}  // namespace fmo
