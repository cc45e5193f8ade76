#include "executor/binder.h"

namespace fmo {

namespace {

const char* row_dim_name(RowDim row_dim) { return row_dim == RowDim::num_tokens ? "num_tokens" : "num_logits"; }

}  // namespace

std::string describe(const Tensor& x) {
  std::string text = std::string(dtype_name(x.dtype)) + " [";
  for (int axis = 0; axis < x.rank; ++axis) {
    if (axis > 0) text += ", ";
    text += x.row_dim(axis) == RowDim::none ? std::to_string(x.dim(axis)) : row_dim_name(x.row_dim(axis));
  }
  return text + "]";
}

Binder::Binder(const CallSpec& call, Storage& storage, Isa isa, int num_threads,
               std::vector<std::unique_ptr<Tensor>>& tensors)
    : call_(call), storage_(storage), isa_(isa), num_threads_(num_threads), tensors_(tensors) {
  where_ = "plan.json, " + call.op;
  if (!call.source.empty()) where_ += " of " + call.source;
}

void Binder::fail(const std::string& what) const { throw PlanError(what, where_); }

void Binder::expect_operands(size_t min_inputs, size_t max_inputs, size_t num_outputs) const {
  const size_t inputs = call_.inputs.size(), outputs = call_.outputs.size();
  require(inputs >= min_inputs && inputs <= max_inputs && outputs == num_outputs,
          "the call has " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) + " outputs, expected " +
              std::to_string(min_inputs) + " to " + std::to_string(max_inputs) + " and " + std::to_string(num_outputs));
}

const ViewSpec& Binder::input_spec(size_t index) const {
  require(has_input(index), "input " + std::to_string(index) + " is missing");
  return *call_.inputs[index];
}

const Tensor* Binder::keep(const ViewSpec& view, const std::string& name, const DType* dtype, int rank,
                           bool keep_16_bit) {
  auto tensor = std::make_unique<Tensor>(storage_.resolve(view, where_ + ", " + name, keep_16_bit));
  if (view.space == ViewSpec::Space::weight) weight_bytes_ += tensor->count() * dtype_bytes(tensor->dtype);
  require(dtype == nullptr || tensor->dtype == *dtype,
          name + " is " + describe(*tensor) + ", expected " + (dtype ? dtype_name(*dtype) : ""));
  require(rank == 0 || tensor->rank == rank,
          name + " is " + describe(*tensor) + ", expected " + std::to_string(rank) + " dims");
  tensors_.push_back(std::move(tensor));
  return tensors_.back().get();
}

const Tensor* Binder::input(size_t index, DType dtype, int rank) {
  return keep(input_spec(index), "input " + std::to_string(index), &dtype, rank, false);
}

const Tensor* Binder::input_any(size_t index) {
  return keep(input_spec(index), "input " + std::to_string(index), nullptr, 0, false);
}

const Tensor* Binder::optional_input(size_t index, DType dtype, int rank) {
  return has_input(index) ? input(index, dtype, rank) : nullptr;
}

const Tensor* Binder::output(size_t index, DType dtype, int rank) {
  const Tensor* tensor = output_any(index);
  require(tensor->dtype == dtype && (rank == 0 || tensor->rank == rank),
          "output " + std::to_string(index) + " is " + describe(*tensor) + ", expected " + dtype_name(dtype) +
              (rank == 0 ? "" : " with " + std::to_string(rank) + " dims"));
  return tensor;
}

const Tensor* Binder::output_any(size_t index) {
  require(index < call_.outputs.size(), "output " + std::to_string(index) + " is missing");
  require(call_.outputs[index].space == ViewSpec::Space::buffer,
          "output " + std::to_string(index) + " is not a buffer");
  const Tensor* tensor = keep(call_.outputs[index], "output " + std::to_string(index), nullptr, 0, false);
  for (int axis = 0; axis < tensor->rank; ++axis) {
    const bool repeats = tensor->stride(axis) == 0 && (tensor->row_dim(axis) != RowDim::none || tensor->dim(axis) > 1);
    require(!repeats, "output " + std::to_string(index) + " has stride 0: all writes would meet in one place");
  }
  return tensor;
}

const Tensor* Binder::table(size_t index) {
  return keep(input_spec(index), "input " + std::to_string(index), nullptr, 2, true);
}

const float* Binder::vector(size_t index, int64_t length) {
  if (!has_input(index)) return nullptr;
  const Tensor* x = input(index, DType::f32, 1);
  require(x->row_dim(0) == RowDim::none && x->dim(0) == length && (length == 1 || x->stride(0) == 1),
          "input " + std::to_string(index) + " is " + describe(*x) + ", expected f32 [" + std::to_string(length) +
              "] without gaps");
  return x->as<float>();
}

bool Binder::has_layout(size_t index, Layout layout) const {
  const ViewSpec& view = input_spec(index);
  return view.space == ViewSpec::Space::weight && storage_.weight_spec(view.name, where_).layout == layout;
}

bool Binder::is_panel16(size_t index) const { return has_layout(index, Layout::panel16); }
bool Binder::is_block8(size_t index) const { return has_layout(index, Layout::block8); }

// The spec of a packed weight that the view names as a whole.
const WeightSpec& Binder::packed_spec(size_t index, int rank, Layout layout, const char* layout_name) const {
  const ViewSpec& view = input_spec(index);
  const std::string name = "input " + std::to_string(index);
  require(has_layout(index, layout), name + " must be a weight in the layout " + layout_name);
  const WeightSpec& spec = storage_.weight_spec(view.name, where_);
  require(static_cast<int>(spec.dims.size()) == rank, name + ", weight '" + view.name + "', has " +
                                                          std::to_string(spec.dims.size()) + " dims, expected " +
                                                          std::to_string(rank));
  require(!view.strides.has_value() && view.offset == 0,
          name + ": a " + layout_name + " weight takes no strides or offset");
  require(view.dtype == spec.dtype, name + ": the view is " + dtype_name(view.dtype) + ", the weight '" + view.name +
                                        "' is " + dtype_name(spec.dtype));
  for (size_t axis = 0; axis < view.dims.size(); ++axis) {
    const bool same = view.dims.size() == spec.dims.size() && view.dims[axis].row_dim == RowDim::none &&
                      view.dims[axis].size == spec.dims[axis];
    require(same, name + ": the dims of the view differ from those of the weight '" + view.name + "'");
  }
  return spec;
}

PanelWeight Binder::panels(size_t index, int rank, int64_t* num_experts, int64_t* expert_bytes) {
  const WeightSpec& spec = packed_spec(index, rank, Layout::panel16, "panel16");
  const char* data = storage_.weight_pointers_of(input_spec(index).name).data;
  PanelWeight w{data, spec.dtype, spec.dims[spec.dims.size() - 2], spec.dims.back()};
  if (rank == 3) {
    *num_experts = spec.dims[0];
    *expert_bytes = w.num_panels() * w.panel_bytes();
  }
  weight_bytes_ += spec.place.num_bytes;
  return w;
}

QuantWeight Binder::quant_weight(size_t index, int rank, int64_t* num_experts) {
  const WeightSpec& spec = packed_spec(index, rank, Layout::block8, "block8");
  const WeightPointers& pointers = storage_.weight_pointers_of(input_spec(index).name);
  QuantWeight w;
  w.codes = reinterpret_cast<const uint8_t*>(pointers.data);
  w.scales = pointers.scales;
  w.zeros = reinterpret_cast<const uint8_t*>(pointers.zeros);
  w.dtype = spec.dtype;
  w.scale_dtype = spec.quant->scale_dtype;
  w.group = spec.quant->group;
  w.lane_sum = spec.quant->lane_sum;
  w.N = spec.dims[spec.dims.size() - 2];
  w.K = spec.dims.back();
  if (rank == 3) *num_experts = spec.dims[0];
  weight_bytes_ += spec.place.num_bytes + spec.quant->scales.num_bytes;
  if (spec.quant->zeros.has_value()) weight_bytes_ += spec.quant->zeros->num_bytes;
  return w;
}

const Attr* Binder::find_attr(const std::string& name) const {
  read_attrs_.insert(name);
  const auto found = call_.attrs.find(name);
  return found == call_.attrs.end() ? nullptr : &found->second;
}

int64_t Binder::int_attr(const std::string& name) const {
  const Attr* attr = find_attr(name);
  require(attr != nullptr && std::holds_alternative<int64_t>(*attr), "the attribute '" + name + "' must be an integer");
  return std::get<int64_t>(*attr);
}

int64_t Binder::int_attr(const std::string& name, int64_t fallback) const {
  return find_attr(name) == nullptr ? fallback : int_attr(name);
}

double Binder::float_attr(const std::string& name) const {
  const Attr* attr = find_attr(name);
  if (attr != nullptr && std::holds_alternative<double>(*attr)) return std::get<double>(*attr);
  require(attr != nullptr && std::holds_alternative<int64_t>(*attr), "the attribute '" + name + "' must be a number");
  return static_cast<double>(std::get<int64_t>(*attr));
}

double Binder::float_attr(const std::string& name, double fallback) const {
  return find_attr(name) == nullptr ? fallback : float_attr(name);
}

bool Binder::bool_attr(const std::string& name, bool fallback) const {
  const Attr* attr = find_attr(name);
  if (attr == nullptr) return fallback;
  require(std::holds_alternative<bool>(*attr), "the attribute '" + name + "' must be true or false");
  return std::get<bool>(*attr);
}

std::string Binder::string_attr(const std::string& name) const {
  const Attr* attr = find_attr(name);
  require(attr != nullptr && std::holds_alternative<std::string>(*attr),
          "the attribute '" + name + "' must be a string");
  return std::get<std::string>(*attr);
}

bool Binder::is_list_attr(const std::string& name) const {
  const Attr* attr = find_attr(name);
  return attr != nullptr && std::holds_alternative<std::vector<int64_t>>(*attr);
}

std::vector<int64_t> Binder::ints_attr(const std::string& name) const {
  const Attr* attr = find_attr(name);
  require(attr != nullptr && std::holds_alternative<std::vector<int64_t>>(*attr),
          "the attribute '" + name + "' must be a list of integers");
  return std::get<std::vector<int64_t>>(*attr);
}

int Binder::axis_attr(const std::string& name, int rank) const {
  const int64_t axis = int_attr(name), positive = axis < 0 ? axis + rank : axis;
  require(positive >= 0 && positive < rank,
          "the attribute '" + name + "' is " + std::to_string(axis) + " for " + std::to_string(rank) + " dims");
  return static_cast<int>(positive);
}

void Binder::require_same_dims(const Tensor& a, const Tensor& b, const std::string& names) const {
  bool same = a.rank == b.rank;
  for (int axis = 0; same && axis < a.rank; ++axis) same = a.same_dim(axis, b, axis);
  require(same, names + " must have the same dims, not " + describe(a) + " and " + describe(b));
}

void Binder::require_last_dense(const Tensor& x, const std::string& name) const {
  require(x.rank >= 1 && (x.stride(x.rank - 1) == 1 || x.dim(x.rank - 1) == 1), name + " must have a last stride of 1");
}

void Binder::require_all_attrs_read() const {
  for (const auto& [name, value] : call_.attrs)
    require(read_attrs_.contains(name), "this build does not know the attribute '" + name + "'");
}

int64_t Binder::max_rows(const Tensor& x, int begin, int end) const {
  int64_t product = 1;
  for (int axis = begin; axis < end; ++axis) {
    product = checked_mul(product, x.row_dim(axis) == RowDim::none ? x.dim(axis) : storage_.max_rows(x.row_dim(axis)));
  }
  return product;
}

void Binder::need_workspace(int64_t shared_bytes, int64_t thread_bytes) {
  workspace_.shared_bytes = std::max(workspace_.shared_bytes, round_up(shared_bytes, 64));
  workspace_.thread_bytes = std::max(workspace_.thread_bytes, round_up(thread_bytes, 64));
}

}  // namespace fmo
