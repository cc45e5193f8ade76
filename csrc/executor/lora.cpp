#include "executor/lora.h"

#include <algorithm>
#include <map>

#include "base/error.h"

namespace fmo {
namespace {

[[noreturn]] void bad_adapter(const std::string& what, const std::string& where, const std::string& hint) {
  throw Error(what, where, hint);
}

std::string shape(int64_t rows, int64_t columns) {
  return "[" + std::to_string(rows) + ", " + std::to_string(columns) + "]";
}

int64_t matrix_bytes(int64_t num_rows, int64_t K, DType dtype) {
  return checked_mul(checked_mul(round_up(num_rows, kPanelRows), K), dtype_bytes(dtype));
}

// Where a panel16 matrix of [num_rows, K] lies: `memory` is advanced past it. Pages start as zeros, so the padding rows
// are zero.
PanelWeight place(char*& memory, int64_t num_rows, int64_t K, DType dtype) {
  const PanelWeight weight{memory, dtype, num_rows, K};
  memory += matrix_bytes(num_rows, K, dtype);
  return weight;
}

// Writes source [num_rows, K] as rows first_row … of a panel16 matrix (docs/artifact-format.md).
void write_rows(const PanelWeight& weight, int64_t first_row, const float* source, int64_t num_rows) {
  for (int64_t n = 0; n < num_rows; ++n) {
    void* panel = const_cast<void*>(weight.panel((first_row + n) / kPanelRows));
    const int64_t row = (first_row + n) % kPanelRows;
    for (int64_t k = 0; k < weight.K; ++k) {
      const float value = source[n * weight.K + k];
      if (weight.dtype == DType::f32) {
        static_cast<float*>(panel)[k * kPanelRows + row] = value;
      } else {
        static_cast<bf16_t*>(panel)[k * kPanelRows + row % 8 * 2 + row / 8] = f32_to_bf16(value);
      }
    }
  }
}

}  // namespace

LoraCall::LoraCall(std::vector<SiteSpec> sites, int64_t N, int64_t K, RowDim row_dim, DType dtype, Isa isa)
    : sites_(std::move(sites)), N_(N), K_(K), row_dim_(row_dim), dtype_(dtype), kernels_(&lora_kernels(isa)) {}

bool LoraCall::is_in(const LoraStep& step) const {
  return std::ranges::any_of(step.rows(row_dim_).groups,
                             [this](const LoraGroup& group) { return layer(group.slot) != nullptr; });
}

// Pieces are (group, panel of ranks, few rows), dealt round robin.
void LoraCall::shrink(const LoraStep& step, const float* x, int64_t x_stride, int thread, int num_threads) const {
  const LoraRows& rows = step.rows(row_dim_);
  int64_t piece = 0;
  for (const LoraGroup& group : rows.groups) {
    const LoraLayer* layer = this->layer(group.slot);
    if (layer == nullptr) continue;
    const int64_t num_panels = layer->down.num_panels();
    for (int64_t first = group.rows.begin; first < group.rows.end; first += kLoraRows) {
      const int64_t count = std::min(kLoraRows, group.rows.end - first);
      const RowSource source{x, x_stride, rows.row_ids.data() + first};
      for (int64_t p = 0; p < num_panels; ++p) {
        if (piece++ % num_threads != thread) continue;
        float* t = step.t + first * step.t_stride + p * kPanelRows;
        kernels_->shrink(source, count, layer->down, p, t, step.t_stride);
      }
    }
  }
}

// Panels of a group's outputs are split over the threads.
void LoraCall::expand(const LoraStep& step, float* y, int64_t y_stride, int thread, int num_threads) const {
  const LoraRows& rows = step.rows(row_dim_);
  for (const LoraGroup& group : rows.groups) {
    const LoraLayer* layer = this->layer(group.slot);
    if (layer == nullptr) continue;
    const Range mine = split(layer->num_up_panels, thread, num_threads);
    int64_t first_panel = 0;
    for (const LoraLayer::Part& part : layer->parts) {
      const int64_t num_panels = part.up.num_panels();
      const Range panels{std::clamp<int64_t>(mine.begin - first_panel, 0, num_panels),
                         std::clamp<int64_t>(mine.end - first_panel, 0, num_panels)};
      first_panel += num_panels;
      if (panels.size() == 0) continue;
      const float* t = step.t + group.rows.begin * step.t_stride + part.rank_begin;
      const RowTarget target{y + part.begin, y_stride, rows.row_ids.data() + group.rows.begin};
      kernels_->expand(t, step.t_stride, group.rows.size(), part.up, panels, part.scale, target);
    }
  }
}

std::unique_ptr<LoraLayer> LoraCall::pack(std::span<const LoraModule* const> modules) const {
  int64_t total_rank = 0, num_bytes = 0;
  for (const LoraModule* module : modules) {
    if (module == nullptr) continue;
    total_rank += module->rank;
    num_bytes = checked_add(num_bytes, matrix_bytes(module->out_features, module->rank, dtype_));
  }
  if (total_rank == 0) return nullptr;
  auto layer = std::make_unique<LoraLayer>();
  num_bytes = checked_add(num_bytes, matrix_bytes(total_rank, K_, dtype_));
  layer->memory = PageBuffer(num_bytes, "an adapter");
  char* memory = layer->memory.data();
  layer->down = place(memory, total_rank, K_, dtype_);
  int64_t rank_begin = 0;
  for (size_t i = 0; i < modules.size(); ++i) {
    const LoraModule* module = modules[i];
    if (module == nullptr) continue;
    const PanelWeight up = place(memory, module->out_features, module->rank, dtype_);
    const LoraLayer::Part part{up, module->scale, rank_begin, sites_[i].begin};
    write_rows(layer->down, rank_begin, module->down, module->rank);
    write_rows(part.up, 0, module->up, module->out_features);
    layer->num_up_panels += part.up.num_panels();
    layer->parts.push_back(part);
    rank_begin += module->rank;
  }
  return layer;
}

void LoraCall::install(int32_t slot, std::unique_ptr<LoraLayer> layer) {
  layers_[static_cast<size_t>(slot)] = std::move(layer);
}

LoraCall* Lora::add_call(const CallSpec& call, int64_t N, int64_t K, RowDim row_dim, DType dtype, Isa isa,
                         const std::string& where) {
  if (call.sites.empty()) return nullptr;
  if (row_dim == RowDim::none) throw PlanError("sites of a linear layer whose rows are not those of a step", where);
  int64_t end = 0;
  for (const SiteSpec& site : call.sites) {
    if (site.begin < end || site.end <= site.begin || site.end > N) {
      throw PlanError("the site '" + site.module + "' has rows " + std::to_string(site.begin) + " to " +
                          std::to_string(site.end) + " of " + std::to_string(N) + ", after row " + std::to_string(end),
                      where);
    }
    end = site.end;
  }
  calls_.push_back(std::make_unique<LoraCall>(call.sites, N, K, row_dim, dtype, isa));
  return calls_.back().get();
}

Lora::Packed Lora::pack(std::span<const LoraModule> modules) const {
  if (calls_.empty()) {
    bad_adapter("the artifact does not say which module each of its linear layers is, so it can have no adapter",
                "plan.json: no call has 'sites'", "compile the model again: fmo compile");
  }
  std::map<std::string, const LoraModule*> by_name;
  for (const LoraModule& module : modules) by_name[module.module] = &module;
  std::map<std::string, bool> is_used;
  Packed packed;
  packed.t_stride = step_.t_stride;
  for (const auto& call : calls_) {
    std::vector<const LoraModule*> wanted;
    for (const SiteSpec& site : call->sites()) {
      const auto found = by_name.find(site.module);
      wanted.push_back(found == by_name.end() ? nullptr : found->second);
      if (found == by_name.end()) continue;
      const LoraModule& module = *found->second;
      is_used[site.module] = true;
      if (module.out_features != site.end - site.begin || module.in_features != call->K() || module.rank < 1) {
        bad_adapter("the adapter changes a matrix " + shape(module.out_features, module.in_features) + " with rank " +
                        std::to_string(module.rank) + ", the model has " + shape(site.end - site.begin, call->K()),
                    site.module, "use an adapter that was trained on this model");
      }
    }
    packed.layers.push_back(call->pack(wanted));
    if (const LoraLayer* layer = packed.layers.back().get()) {
      packed.t_stride = std::max(packed.t_stride, round_up(layer->down.N, kPanelRows));
      packed.num_bytes += layer->memory.size();
    }
  }
  for (const auto& [name, module] : by_name) {
    if (!is_used.contains(name)) {
      bad_adapter("the artifact has no linear layer '" + name + "' that an adapter can change at run time", name,
                  "use an adapter for this model, or merge it: fmo compile --fuse-lora");
    }
  }
  if (packed.t_stride > step_.t_stride || t_.size() == 0)
    packed.t = PageBuffer(checked_mul(checked_mul(max_rows_, packed.t_stride), 4), "the rows of adapters");
  return packed;
}

void Lora::install(int32_t slot, Packed packed) {
  if (slot < 0 || slot >= kMaxAdapterSlots)
    bad_adapter("there is no adapter slot " + std::to_string(slot), "load_adapter", "unload an adapter first");
  if (is_loaded(slot))
    bad_adapter("the adapter slot " + std::to_string(slot) + " is taken", "load_adapter", "unload it first");
  const auto num_slots = std::max(slot_bytes_.size(), static_cast<size_t>(slot) + 1);
  slot_bytes_.resize(num_slots);
  next_row_.resize(num_slots);
  for (LoraRows* rows : {&step_.tokens, &step_.logits}) {
    rows->row_ids.resize(static_cast<size_t>(max_rows_));
    rows->groups.reserve(num_slots);
  }
  slot_of_token_.resize(static_cast<size_t>(max_rows_));
  slot_of_logit_.resize(static_cast<size_t>(max_rows_));
  for (size_t i = 0; i < calls_.size(); ++i) {
    calls_[i]->reserve(num_slots);
    calls_[i]->install(slot, std::move(packed.layers[i]));
  }
  slot_bytes_[static_cast<size_t>(slot)] = std::max<int64_t>(packed.num_bytes, 1);
  if (packed.t.size() > 0) {
    t_ = std::move(packed.t);
    step_.t = reinterpret_cast<float*>(t_.data());
    step_.t_stride = packed.t_stride;
  }
}

void Lora::remove(int32_t slot) {
  if (!is_loaded(slot)) return;
  for (const auto& call : calls_) call->install(slot, nullptr);
  slot_bytes_[static_cast<size_t>(slot)] = 0;
}

bool Lora::is_loaded(int32_t slot) const {
  return slot >= 0 && static_cast<size_t>(slot) < slot_bytes_.size() && slot_bytes_[static_cast<size_t>(slot)] > 0;
}

const LoraStep* Lora::start_step(const Batch& batch) {
  if (batch.adapter_slots == nullptr) return nullptr;
  bool has_adapter = false;
  for (int32_t seq = 0; seq < batch.num_seqs; ++seq) {
    const int32_t slot = batch.adapter_slots[seq];
    if (slot == kNoAdapter) continue;
    has_adapter = true;
    if (!is_loaded(slot)) {
      throw Error(
          "sequence " + std::to_string(seq) + " wants the adapter in slot " + std::to_string(slot) + ", which is empty",
          "the batch of a step", "this is a bug of the caller: report it");
    }
  }
  if (!has_adapter) return nullptr;
  for (int32_t seq = 0; seq < batch.num_seqs; ++seq) {
    std::fill(slot_of_token_.begin() + batch.cu_seqlens[seq], slot_of_token_.begin() + batch.cu_seqlens[seq + 1],
              batch.adapter_slots[seq]);
  }
  for (int32_t i = 0; i < batch.num_logits; ++i)
    slot_of_logit_[static_cast<size_t>(i)] = slot_of_token_[static_cast<size_t>(batch.logit_rows[i])];
  group_rows(step_.tokens, std::span(slot_of_token_).first(static_cast<size_t>(batch.num_tokens)));
  group_rows(step_.logits, std::span(slot_of_logit_).first(static_cast<size_t>(batch.num_logits)));
  return &step_;
}

// A counting sort: groups by slot, rows ascending in each.
void Lora::group_rows(LoraRows& rows, std::span<const int32_t> slot_of_row) {
  std::ranges::fill(next_row_, 0);
  for (const int32_t slot : slot_of_row) {
    if (slot != kNoAdapter) ++next_row_[static_cast<size_t>(slot)];
  }
  rows.groups.clear();
  int64_t begin = 0;
  for (size_t slot = 0; slot < next_row_.size(); ++slot) {
    const int64_t count = next_row_[slot];
    if (count > 0) rows.groups.push_back({static_cast<int32_t>(slot), {begin, begin + count}});
    next_row_[slot] = begin;
    begin += count;
  }
  rows.num_rows = begin;
  for (size_t row = 0; row < slot_of_row.size(); ++row) {
    if (slot_of_row[row] != kNoAdapter)
      rows.row_ids[static_cast<size_t>(next_row_[static_cast<size_t>(slot_of_row[row])]++)] = static_cast<int32_t>(row);
  }
}

std::vector<Lora::ModuleShape> Lora::modules() const {
  std::vector<ModuleShape> found;
  for (const auto& call : calls_) {
    for (const SiteSpec& site : call->sites()) found.push_back({site.module, call->K(), site.end - site.begin});
  }
  return found;
}

int64_t Lora::num_bytes() const {
  int64_t sum = t_.size();
  for (const int64_t bytes : slot_bytes_) sum += bytes;
  return sum;
}

}  // namespace fmo
