// `operator new` of a whole test program: counts calls, and fails on demand. Included once per program.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

inline int64_t g_num_allocations = 0;
inline int64_t g_allocations_left = -1;  // before one fails; -1: none does

void* operator new(size_t num_bytes) {
  if (g_allocations_left == 0) throw std::bad_alloc();
  if (g_allocations_left > 0) --g_allocations_left;
  ++g_num_allocations;
  void* memory = std::malloc(num_bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
