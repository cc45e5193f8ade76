// What the machine can do at best, to compare kernels with: read bandwidth of memory, multiply-adds of f32 and of
// bytes.
#pragma once

#include "device/cpu/isa.h"
#include "device/cpu/thread_pool.h"

namespace fmo {

struct MachineLimits {
  double read_bandwidth_gb_s =
      0.0;                   // best of one and four sequential streams per thread, over memory larger than any cache
  double fma_gflop_s = 0.0;  // independent chains in registers; a fused multiply-add counts as two operations
  double byte_gop_s = 0.0;   // products of bytes summed in 16 bits, 16 of them before a sum goes to 32; two each
};

// Takes about half a second and kReadBytes of memory. The machine should be quiet.
MachineLimits measure_limits(ThreadPool& pool, Isa isa);

// The inner loops. `read_streams`: sums `num_bytes` bytes, as `num_streams` (1 or 4) equal parts side by side; the sum
// only keeps it honest.
struct LimitLoops {
  double (*fma)(int64_t num_rounds, double* flop) = nullptr;
  int64_t (*bytes)(int64_t num_rounds, double* ops) = nullptr;
  uint64_t (*read_streams)(const char* data, int64_t num_bytes, int num_streams) = nullptr;
};
LimitLoops limit_loops_scalar();
LimitLoops limit_loops_avx2();

}  // namespace fmo
