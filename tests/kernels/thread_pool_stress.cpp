// Many short runs with barriers on one pool, in teams of all sizes: every thread of the team must see what the others
// wrote before the barrier, and nobody else may run. Built with a sanitizer by test_thread_pool.py; exits with 1 and a
// line on stderr at the first wrong value.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "device/cpu/thread_pool.h"

namespace {

// Each round, thread t of the team writes cell t; after the barrier it must read every cell of this round, and −1 in
// the others.
bool rounds_are_ordered(int num_threads, int num_runs, int num_rounds) {
  fmo::ThreadPool pool(num_threads);
  std::vector<int> cells(static_cast<size_t>(num_threads), 0);
  std::vector<int> errors(static_cast<size_t>(num_threads), 0);
  for (int run = 0; run < num_runs; ++run) {
    if (run % 20 == 19) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // long enough to fall asleep
    const int team = 1 + run * 7 % num_threads;
    std::fill(cells.begin(), cells.end(), -1);
    pool.run(
        [&](int thread) {
          for (int round = 0; round < num_rounds; ++round) {
            const int value = run * num_rounds + round;
            cells[static_cast<size_t>(thread)] = value;
            pool.barrier();
            for (int i = 0; i < num_threads; ++i) {
              errors[static_cast<size_t>(thread)] += cells[static_cast<size_t>(i)] != (i < team ? value : -1);
            }
            pool.barrier();
          }
        },
        team);
    if (pool.lost_ns() < 0) ++errors[0];
  }
  int sum = 0;
  for (int count : errors) sum += count;
  if (sum != 0) std::fprintf(stderr, "%d wrong values with %d threads\n", sum, num_threads);
  return sum == 0;
}

}  // namespace

int main() {
  for (int num_threads : {1, 2, 3}) {
    if (!rounds_are_ordered(num_threads, 60, 3)) return 1;
  }
  return 0;
}
