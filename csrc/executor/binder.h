// Turns the views of one call into checked tensors. An op's bind function asks it for operands, attributes and
// workspace, and returns a closure that runs the call; everything that can be wrong with a plan is found here, before
// the first step.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "device/cpu/isa.h"
#include "executor/plan.h"
#include "executor/step.h"
#include "executor/tensor.h"
#include "kernels/attention/attention.h"
#include "kernels/linear/linear.h"
#include "kernels/qlinear/qlinear.h"

namespace fmo {

class LoraCall;

// Runs one call; every thread of the team calls it. The executor puts a barrier after it.
using Runner = std::function<void(const Step&, int thread)>;

struct BoundOp {
  std::string kernel;  // as in kernel_names()
  Runner run;
};

// The tensors of a weight; scales and zeros of block8 only.
struct WeightPointers {
  const char* data = nullptr;
  const char* scales = nullptr;
  const char* zeros = nullptr;
};

// Where operands live; owned by the executor.
class Storage {
 public:
  virtual ~Storage() = default;
  virtual Tensor resolve(const ViewSpec& view, const std::string& where, bool keep_16_bit) = 0;
  virtual const WeightSpec& weight_spec(const std::string& name, const std::string& where) const = 0;
  virtual const WeightPointers& weight_pointers_of(const std::string& name) const = 0;
  virtual bool quantize_activations() const = 0;
  virtual LoraCall* lora_call(const CallSpec& call, int64_t N, int64_t K, RowDim row_dim, DType dtype,
                              const std::string& where) = 0;
  virtual int64_t max_rows(RowDim row_dim) const = 0;
  virtual int64_t max_context_len() const = 0;
  virtual int64_t num_kv_layers() const = 0;
  virtual const KvLayer& kv_layer(int64_t index) const = 0;
};

struct Workspace {
  int64_t shared_bytes = 0, thread_bytes = 0;
};

class Binder {
 public:
  // `tensors` keeps the operands at fixed addresses; their row dims are set before every step.
  Binder(const CallSpec& call, Storage& storage, Isa isa, int num_threads,
         std::vector<std::unique_ptr<Tensor>>& tensors);

  const CallSpec& call() const { return call_; }
  const std::string& where() const { return where_; }
  Isa isa() const { return isa_; }
  int num_threads() const { return num_threads_; }
  const Storage& storage() const { return storage_; }

  // Operands. `rank` 0: any. f32 unless told otherwise; 16-bit weights arrive widened to f32.
  const Tensor* input(size_t index, DType dtype = DType::f32, int rank = 0);
  const Tensor* input_any(size_t index);                                               // any of f32, i32, bool
  const Tensor* optional_input(size_t index, DType dtype = DType::f32, int rank = 0);  // null when absent
  const Tensor* output(size_t index, DType dtype = DType::f32, int rank = 0);
  const Tensor* output_any(size_t index);
  const Tensor* table(size_t index);                  // row_major, 16-bit storage kept
  const float* vector(size_t index, int64_t length);  // f32 [length], dense; null when absent
  void expect_operands(size_t min_inputs, size_t max_inputs, size_t num_outputs) const;
  bool has_input(size_t index) const { return index < call_.inputs.size() && call_.inputs[index].has_value(); }
  bool is_panel16(size_t index) const;

  // A panel16 weight with `rank` dims (3: experts first). `expert_bytes` is the distance between experts.
  PanelWeight panels(size_t index, int rank, int64_t* num_experts = nullptr, int64_t* expert_bytes = nullptr);

  // A block8 weight with `rank` dims (3: experts first, see QuantWeight::expert).
  bool is_block8(size_t index) const;
  QuantWeight quant_weight(size_t index, int rank, int64_t* num_experts = nullptr);

  // The adapters of this call, a linear layer [N, K]; null when no adapter can change it.
  const LoraCall* lora_call(int64_t N, int64_t K, RowDim row_dim, DType dtype) {
    return storage_.lora_call(call_, N, K, row_dim, dtype, where_);
  }

  // Attributes. The forms with a default take an absent attribute; kinds must match (an integer serves as a float).
  int64_t int_attr(const std::string& name) const;
  int64_t int_attr(const std::string& name, int64_t fallback) const;
  double float_attr(const std::string& name) const;
  double float_attr(const std::string& name, double fallback) const;
  bool bool_attr(const std::string& name, bool fallback) const;
  std::string string_attr(const std::string& name) const;
  std::vector<int64_t> ints_attr(const std::string& name) const;
  bool has_attr(const std::string& name) const { return find_attr(name) != nullptr; }
  bool is_list_attr(const std::string& name) const;
  int axis_attr(const std::string& name, int rank) const;  // negative axes count from the end
  void require_all_attrs_read() const;  // an attribute that no kernel looks at would be silently wrong

  // Checks; all throw PlanError naming the call.
  [[noreturn]] void fail(const std::string& what) const;
  void require(bool condition, const std::string& what) const {
    if (!condition) fail(what);
  }
  void require_same_dims(const Tensor& a, const Tensor& b, const std::string& names) const;
  void require_last_dense(const Tensor& x, const std::string& name) const;

  int64_t max_rows(const Tensor& x, int begin, int end) const;  // product of dims with row dims at their maximum
  void need_workspace(int64_t shared_bytes, int64_t thread_bytes);
  const Workspace& workspace() const { return workspace_; }
  int64_t weight_bytes() const { return weight_bytes_; }

 private:
  const Tensor* keep(const ViewSpec& view, const std::string& name, const DType* dtype, int rank, bool keep_16_bit);
  const ViewSpec& input_spec(size_t index) const;
  bool has_layout(size_t index, Layout layout) const;
  const WeightSpec& packed_spec(size_t index, int rank, Layout layout, const char* layout_name) const;
  const Attr* find_attr(const std::string& name) const;

  const CallSpec& call_;
  Storage& storage_;
  Isa isa_;
  int num_threads_;
  std::vector<std::unique_ptr<Tensor>>& tensors_;
  std::string where_;
  Workspace workspace_;
  int64_t weight_bytes_ = 0;
  mutable std::set<std::string> read_attrs_;
};

std::string describe(const Tensor& x);

}  // namespace fmo
