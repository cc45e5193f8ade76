#include "bindings/plan_reader.h"

#include <nanobind/stl/string.h>

#include "base/error.h"

namespace nb = nanobind;

namespace fmo {
namespace {

constexpr int64_t kSchemaVersion = 1;

std::string shown(nb::handle value) { return nb::cast<std::string>(nb::str(nb::repr(value))); }

nb::object member(nb::handle dict, const char* key, const std::string& where) {
  if (!nb::isinstance<nb::dict>(dict)) throw PlanError("expected an object, not " + shown(dict), where);
  const nb::dict entries = nb::cast<nb::dict>(dict);
  if (!entries.contains(key)) throw PlanError(std::string("the key '") + key + "' is missing", where);
  return entries[key];
}

nb::object member_or_none(nb::handle dict, const char* key) {
  const nb::dict entries = nb::cast<nb::dict>(dict);
  return entries.contains(key) ? nb::object(entries[key]) : nb::none();
}

int64_t to_int(nb::handle value, const std::string& where) {
  int64_t result = 0;
  if (nb::isinstance<nb::bool_>(value) || !nb::isinstance<nb::int_>(value) || !nb::try_cast<int64_t>(value, result)) {
    throw PlanError("expected an integer, not " + shown(value), where);
  }
  return result;
}

std::string to_string(nb::handle value, const std::string& where) {
  if (!nb::isinstance<nb::str>(value)) throw PlanError("expected a string, not " + shown(value), where);
  return nb::cast<std::string>(value);
}

// Lists of JSON; tuples serve too, for plans that never were JSON.
template <class F>
void for_each_item(nb::handle list, const std::string& where, F&& f) {
  if (!nb::isinstance<nb::list>(list) && !nb::isinstance<nb::tuple>(list))
    throw PlanError("expected a list, not " + shown(list), where);
  for (nb::handle item : list) f(item);
}

std::vector<int64_t> to_ints(nb::handle list, const std::string& where) {
  std::vector<int64_t> result;
  for_each_item(list, where, [&](nb::handle item) { result.push_back(to_int(item, where)); });
  return result;
}

RowDim to_row_dim(const std::string& name, const std::string& where) {
  if (name == "num_tokens") return RowDim::num_tokens;
  if (name == "num_logits") return RowDim::num_logits;
  throw PlanError("'" + name + "' is neither num_tokens nor num_logits", where);
}

ViewSpec read_view(nb::handle value, const std::string& where) {
  ViewSpec view;
  const std::string space = to_string(member(value, "space", where), where);
  const nb::object id = member(value, "id", where);
  if (space == "buffer") {
    view.buffer = to_int(id, where);
  } else if (space == "weight" || space == "input") {
    view.space = space == "weight" ? ViewSpec::Space::weight : ViewSpec::Space::input;
    view.name = to_string(id, where);
  } else {
    throw PlanError("the space '" + space + "' is none of buffer, weight, input", where);
  }
  view.dtype = parse_dtype(to_string(member(value, "dtype", where), where), where);
  for_each_item(member(value, "dims", where), where, [&](nb::handle dim) {
    if (nb::isinstance<nb::str>(dim)) {
      view.dims.push_back({to_row_dim(to_string(dim, where), where), 0});
    } else {
      view.dims.push_back({RowDim::none, to_int(dim, where)});
    }
  });
  const nb::object strides = member_or_none(value, "strides"), offset = member_or_none(value, "offset");
  if (!strides.is_none()) view.strides = to_ints(strides, where);
  if (!offset.is_none()) view.offset = to_int(offset, where);
  return view;
}

Attr read_attr(nb::handle value, const std::string& where) {
  if (nb::isinstance<nb::bool_>(value)) return nb::cast<bool>(value);
  if (nb::isinstance<nb::int_>(value)) return to_int(value, where);
  if (nb::isinstance<nb::float_>(value)) return nb::cast<double>(value);
  if (nb::isinstance<nb::str>(value)) return nb::cast<std::string>(value);
  return to_ints(value, where);
}

EwOperand read_operand(nb::handle pair, const std::string& where) {
  std::vector<nb::object> items;
  for_each_item(pair, where, [&](nb::handle item) { items.push_back(nb::borrow(item)); });
  if (items.size() != 2) throw PlanError("an operand is a pair of kind and value, not " + shown(pair), where);
  EwOperand operand;
  const std::string kind = to_string(items[0], where);
  if (kind == "in" || kind == "reg") {
    operand.kind = kind == "in" ? EwOperand::Kind::input : EwOperand::Kind::reg;
    operand.index = to_int(items[1], where);
    return operand;
  }
  if (kind != "const") throw PlanError("the operand kind '" + kind + "' is none of in, reg, const", where);
  operand.kind = EwOperand::Kind::constant;
  const nb::object value = items[1];
  operand.dtype = nb::isinstance<nb::bool_>(value)  ? DType::boolean
                  : nb::isinstance<nb::int_>(value) ? DType::i32
                                                    : DType::f32;
  if (!nb::try_cast<double>(value, operand.constant))
    throw PlanError("a constant is a number, not " + shown(value), where);
  return operand;
}

std::vector<EwStatement> read_code(nb::handle code, const std::string& where) {
  std::vector<EwStatement> statements;
  for_each_item(code, where, [&](nb::handle row) {
    EwStatement statement;
    bool is_first = true;
    for_each_item(row, where, [&](nb::handle item) {
      if (is_first) {
        statement.fn = to_string(item, where);
      } else {
        statement.operands.push_back(read_operand(item, where));
      }
      is_first = false;
    });
    statements.push_back(std::move(statement));
  });
  return statements;
}

CallSpec read_call(nb::handle value, const std::string& where_call) {
  CallSpec call;
  call.op = to_string(member(value, "op", where_call), where_call);
  const std::string where = where_call + ", " + call.op;
  const nb::object layer = member_or_none(value, "layer"), source = member_or_none(value, "source");
  if (!layer.is_none()) call.layer = to_int(layer, where);
  if (!source.is_none()) call.source = to_string(source, where);
  for_each_item(member(value, "inputs", where), where, [&](nb::handle view) {
    call.inputs.push_back(view.is_none() ? std::nullopt : std::optional(read_view(view, where)));
  });
  for_each_item(member(value, "outputs", where), where,
                [&](nb::handle view) { call.outputs.push_back(read_view(view, where)); });
  const nb::object sites = member_or_none(value, "sites");
  if (!sites.is_none()) {
    for_each_item(sites, where, [&](nb::handle site) {
      const std::vector<int64_t> rows = to_ints(member(site, "rows", where), where);
      if (rows.size() != 2) throw PlanError("the rows of a site are its first and the one behind its last", where);
      call.sites.push_back({to_string(member(site, "module", where), where), rows[0], rows[1]});
    });
  }
  const nb::object attrs = member(value, "attrs", where);
  if (!nb::isinstance<nb::dict>(attrs)) throw PlanError("attrs is not an object", where);
  for (auto [key, attr] : nb::cast<nb::dict>(attrs)) {
    const std::string name = to_string(key, where);
    if (call.op == "ew.program" && name == "code") {
      call.code = read_code(attr, where);
    } else {
      call.attrs.emplace(name, read_attr(attr, where + ", attribute '" + name + "'"));
    }
  }
  return call;
}

FilePlace read_place(nb::handle location, const std::string& where) {
  FilePlace place;
  std::vector<nb::object> items;
  for_each_item(location, where, [&](nb::handle item) { items.push_back(nb::borrow(item)); });
  if (items.size() != 3)
    throw PlanError("a weight is at (path, offset, number of bytes), not " + shown(location), where);
  place.path = nb::cast<std::string>(nb::str(items[0]));
  place.offset = to_int(items[1], where);
  place.num_bytes = to_int(items[2], where);
  if (place.offset < 0 || place.num_bytes < 0) throw PlanError("a negative offset or size", where);
  return place;
}

FilePlace find_place(nb::dict places, const std::string& name, const std::string& where) {
  if (!places.contains(name.c_str())) throw PlanError("no file holds the tensor '" + name + "'", where);
  return read_place(places[name.c_str()], where);
}

Layout parse_layout(const std::string& name, const std::string& where) {
  if (name == "row_major") return Layout::row_major;
  if (name == "panel16") return Layout::panel16;
  if (name == "block8") return Layout::block8;
  throw PlanError("the layout '" + name + "' is none of row_major, panel16, block8", where);
}

WeightSpec read_weight(nb::handle value, nb::dict places, const std::string& name, const std::string& where) {
  WeightSpec spec;
  spec.dtype = parse_dtype(to_string(member(value, "dtype", where), where), where);
  spec.layout = parse_layout(to_string(member(value, "layout", where), where), where);
  spec.dims = to_ints(member(value, "dims", where), where);
  spec.place = find_place(places, name, where);
  if (is_weight_code(spec.dtype) != (spec.layout == Layout::block8))
    throw PlanError(std::string("the layout block8 and the dtype ") + dtype_name(spec.dtype) + " do not go together",
                    where);
  if (spec.layout != Layout::block8) return spec;
  QuantSpec quant;
  quant.group = to_int(member(value, "group", where), where);
  quant.scale_dtype = parse_dtype(to_string(member(value, "scale_dtype", where), where), where);
  quant.scales = find_place(places, name + ".scales", where);
  if (spec.dtype == DType::u4) quant.zeros = find_place(places, name + ".zeros", where);
  if (const nb::object lane_sum = member_or_none(value, "lane_sum"); !lane_sum.is_none()) {
    quant.lane_sum = to_int(lane_sum, where);
    if (spec.dtype != DType::i7 || quant.lane_sum < 0)
      throw PlanError("the lane_sum " + std::to_string(quant.lane_sum) + " of a weight that is " +
                          dtype_name(spec.dtype) + ": expected one of i7, from 0 on",
                      where);
  }
  spec.quant = quant;
  return spec;
}

void read_memory(PlanSpec& spec, nb::handle plan) {
  const nb::object arenas = member(plan, "arenas", "plan.json");
  constexpr const char* names[] = {"fixed", "num_tokens", "num_logits"};
  for (size_t arena = 0; arena < 3; ++arena)
    spec.arena_bytes[arena] = to_int(member(arenas, names[arena], "plan.json, arenas"), "plan.json, arenas");
  for_each_item(member(plan, "buffers", "plan.json"), "plan.json, buffers", [&](nb::handle value) {
    const std::string where = "plan.json, buffer " + std::to_string(spec.buffers.size()),
                      arena = to_string(member(value, "arena", where), where);
    spec.buffers.push_back({arena == "fixed" ? RowDim::none : to_row_dim(arena, where),
                            to_int(member(value, "offset", where), where),
                            to_int(member(value, "row_bytes", where), where)});
  });
  for_each_item(member(plan, "kv_layers", "plan.json"), "plan.json, kv_layers", [&](nb::handle value) {
    const std::string where = "plan.json, KV layer " + std::to_string(spec.kv_layers.size());
    spec.kv_layers.push_back({to_int(member(value, "num_kv_heads", where), where),
                              to_int(member(value, "k_head_dim", where), where),
                              to_int(member(value, "v_head_dim", where), where)});
  });
}

}  // namespace

PlanSpec read_plan(nb::dict plan, nb::dict weights) {
  const std::string where = "plan.json";
  const int64_t version = to_int(member(plan, "schema_version", where), where);
  if (version != kSchemaVersion)
    throw PlanError("schema_version is " + std::to_string(version) + ", this build reads 1", where);
  PlanSpec spec;
  spec.vocab_size = to_int(member(plan, "vocab_size", where), where);
  spec.output_width = plan.contains("output_width") ? to_int(plan["output_width"], where) : spec.vocab_size;
  spec.max_context_len = to_int(member(plan, "max_context_len", where), where);
  read_memory(spec, plan);
  const nb::object table = member(plan, "weights", where);
  if (!nb::isinstance<nb::dict>(table)) throw PlanError("weights is not an object", where);
  for (auto [key, value] : nb::cast<nb::dict>(table)) {
    const std::string name = to_string(key, "plan.json, weights"), where_weight = "plan.json, weight '" + name + "'";
    spec.weights.emplace(name, read_weight(value, weights, name, where_weight));
  }
  for_each_item(member(plan, "calls", where), "plan.json, calls", [&](nb::handle value) {
    spec.calls.push_back(read_call(value, "plan.json, call " + std::to_string(spec.calls.size())));
  });
  spec.logits = read_view(member(plan, "logits", where), "plan.json, logits");
  return spec;
}

}  // namespace fmo
