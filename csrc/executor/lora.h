// Low-rank adapters beside the weights of linear layers: y[row] += up · (down · x[row]) for the rows whose sequence has
// an adapter.
//
//   plan       call "qkv" with sites  q_proj: rows 0 … 64   k_proj: 64 … 96
//   adapter 3  q_proj rank 16, k_proj rank 8      ─pack─▶  LoraLayer of the call: down [16 + 8, K], up per site
//   step       rows by adapter: {3: rows 0 1 2 7}, {5: row 4}
//
// An adapter is in a slot. Loading packs its matrices for every call that multiplies by one of its modules, then
// installs them between two steps; a step only reads. Ranks, modules and the number of adapters may differ as they
// like. A step without adapters takes one branch per linear layer. Beside f32 weights an adapter is kept in f32, beside
// all others in bf16: it is then no coarser than they are, and half as much is read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/memory.h"
#include "executor/batch.h"
#include "executor/plan.h"
#include "kernels/lora/lora.h"

namespace fmo {

inline constexpr int32_t kNoAdapter = -1;
inline constexpr int32_t kMaxAdapterSlots = 4096;

// What an adapter does to one module: y += scale · up · (down · x).
struct LoraModule {
  std::string module;
  int64_t rank = 0, in_features = 0, out_features = 0;
  const float* down = nullptr;  // [rank, in_features]
  const float* up = nullptr;    // [out_features, rank]
  float scale = 1.0f;
};

// One adapter at one call: all its modules that the call multiplies by.
struct LoraLayer {
  struct Part {
    PanelWeight up;
    float scale = 1.0f;
    int64_t rank_begin = 0;  // of its columns of t
    int64_t begin = 0;       // its first column of y
  };
  PanelWeight down;  // the ranks of all parts, one after the other
  std::vector<Part> parts;
  int64_t num_up_panels = 0;
  PageBuffer memory;
};

struct LoraGroup {
  int32_t slot = kNoAdapter;
  Range rows;  // of `LoraRows::row_ids`
};

// The rows of a step that have an adapter, grouped by it.
struct LoraRows {
  std::vector<int32_t> row_ids;
  std::vector<LoraGroup> groups;
  int64_t num_rows = 0;
};

// What a step's calls need: null in a step without adapters.
struct LoraStep {
  LoraRows tokens, logits;  // rows of num_tokens and of num_logits values
  float* t = nullptr;       // [rows, t_stride]
  int64_t t_stride = 0;
  const LoraRows& rows(RowDim row_dim) const { return row_dim == RowDim::num_logits ? logits : tokens; }
};

// The adapters of one linear call.
class LoraCall {
 public:
  // `dtype`: in which adapters are kept, f32 or bf16.
  LoraCall(std::vector<SiteSpec> sites, int64_t N, int64_t K, RowDim row_dim, DType dtype, Isa isa);

  // Whether some row of this step has an adapter here.
  bool is_in(const LoraStep& step) const;
  // t = x · downᵀ; then, after a barrier, y += t · upᵀ. Every thread does its part. `x`, `y`: row r of the step at
  // r · stride.
  void shrink(const LoraStep& step, const float* x, int64_t x_stride, int thread, int num_threads) const;
  void expand(const LoraStep& step, float* y, int64_t y_stride, int thread, int num_threads) const;

  std::span<const SiteSpec> sites() const { return sites_; }
  int64_t K() const { return K_; }
  // The matrices of `modules` (one per site, null: none) as this call wants them; null when there are none.
  std::unique_ptr<LoraLayer> pack(std::span<const LoraModule* const> modules) const;
  void reserve(size_t num_slots) { layers_.resize(num_slots); }
  void install(int32_t slot, std::unique_ptr<LoraLayer> layer);

 private:
  const LoraLayer* layer(int32_t slot) const { return layers_[static_cast<size_t>(slot)].get(); }

  std::vector<SiteSpec> sites_;
  int64_t N_, K_;
  RowDim row_dim_;
  DType dtype_;
  const LoraKernels* kernels_;
  std::vector<std::unique_ptr<LoraLayer>> layers_;  // by slot
};

// All adapters of an executor.
class Lora {
 public:
  Lora(int64_t max_num_tokens, int64_t max_num_logits) : max_rows_(std::max(max_num_tokens, max_num_logits)) {}

  // A call with sites; null for one without. Throws PlanError.
  LoraCall* add_call(const CallSpec& call, int64_t N, int64_t K, RowDim row_dim, DType dtype, Isa isa,
                     const std::string& where);

  // The layers of an adapter, one per call. Throws Error for a module that no call multiplies by, or of another shape.
  struct Packed {
    std::vector<std::unique_ptr<LoraLayer>> layers;
    PageBuffer t;
    int64_t t_stride = 0;
    int64_t num_bytes = 0;
  };
  Packed pack(std::span<const LoraModule> modules) const;
  // Not during a step. Throws Error for a slot out of range or in use.
  void install(int32_t slot, Packed packed);
  void remove(int32_t slot);  // an empty slot stays empty
  bool is_loaded(int32_t slot) const;

  // The rows by adapter of a step; null when no sequence has one. Throws Error for a slot that is not loaded.
  const LoraStep* start_step(const Batch& batch);

  struct ModuleShape {
    std::string module;
    int64_t in_features = 0, out_features = 0;
  };
  std::vector<ModuleShape> modules() const;  // every one that an adapter can change
  int64_t num_bytes() const;

 private:
  void group_rows(LoraRows& rows, std::span<const int32_t> slot_of_row);

  int64_t max_rows_;
  std::vector<std::unique_ptr<LoraCall>> calls_;
  std::vector<int64_t> slot_bytes_;  // by slot; 0: empty
  LoraStep step_;
  PageBuffer t_;
  std::vector<int32_t> slot_of_token_, slot_of_logit_;
  std::vector<int64_t> next_row_;  // by slot
};

}  // namespace fmo
