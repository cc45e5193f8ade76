// Runs a plan on the CPU: binds every call to pointers once, then runs steps that allocate nothing.
//
//   Executor executor(plan, options);      // throws Error when plan, weights and options do not fit together
//   executor.forward(batch);               // throws Error for a batch out of range; the executor stays usable
//   executor.logits()                      // [num_logits, logits_stride()] f32, valid until the next forward
//
// All threads walk the same list of calls, with a barrier after each; the calling thread is thread 0. Not re-entrant:
// one forward at a time. It owns the KV cache but not its allocation: which block holds which tokens is the caller's
// business.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "executor/batch.h"
#include "executor/lora.h"
#include "executor/plan.h"

namespace fmo {

struct ExecutorOptions {
  int num_threads = 0;  // 0: as many as this process may use
  int64_t max_num_tokens = 512;
  int64_t max_num_logits = 64;
  int64_t num_blocks = 256;          // KV blocks of kBlockSize tokens
  DType kv_dtype = DType::f32;       // f32, bf16 or i8
  std::string isa = "auto";          // auto, scalar, avx2
  bool quantize_activations = true;  // false: every act_dtype is read as f32
};

struct MemoryUse {
  int64_t weight_bytes = 0;   // mapped from the artifact, shared with the page cache
  int64_t widened_bytes = 0;  // small 16-bit weights kept as f32
  int64_t arena_bytes = 0;
  int64_t kv_bytes = 0;
  int64_t workspace_bytes = 0;
  int64_t adapter_bytes = 0;
};

// What one call of the plan is bound to; times only while profiling.
struct CallInfo {
  std::string op, kernel, source;
  int64_t layer = -1;
  int64_t weight_bytes = 0;
  int64_t num_runs = 0;
  int64_t total_ns = 0;
};

class Executor {
 public:
  Executor(const PlanSpec& plan, const ExecutorOptions& options);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  void forward(const Batch& batch);
  const float* logits() const;    // [num_logits of the last batch, logits_stride()]
  int64_t logits_stride() const;  // elements from one row to the next, at least output_width

  // Copies the KV of one block to another in every layer (copy on write). Not during a forward.
  void copy_block(int32_t source_block, int32_t target_block);

  // The body on every thread of the executor; thread 0 is the caller. It must not throw. Not during a forward.
  void run(const std::function<void(int thread)>& body);

  // Adapters, see lora.h: `load_adapter` packs beside the running steps and installs between two of them. A slot may be
  // emptied when no later batch names it. Both throw Error and change nothing.
  void load_adapter(int32_t slot, std::span<const LoraModule> modules);
  void unload_adapter(int32_t slot);
  std::vector<Lora::ModuleShape> adapter_modules() const;  // what an adapter can change

  int64_t vocab_size() const;
  int64_t output_width() const;
  // Of a vector of `Batch::embeddings`; 0 where the token ids go elsewhere than to one table of embeddings.
  int64_t embedding_width() const;
  int64_t max_context_len() const;
  int64_t max_num_tokens() const;
  int64_t max_num_logits() const;
  int64_t num_blocks() const;
  int64_t kv_bytes_per_block() const;  // over all layers
  int num_threads() const;
  const char* isa() const;
  MemoryUse memory() const;

  void set_profiling(bool on);  // also forgets the times so far
  std::vector<CallInfo> calls() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Every kernel that this build can run on this machine, as `op.cpu.isa[.dtype][.variant]`.
std::vector<std::string> kernel_names();

}  // namespace fmo
