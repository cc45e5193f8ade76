// Plays runs of 10 ms to TeamSize: which share of a run the unluckiest thread is away depends on the size of the team.
// Prints the size after every run, one line per case. Built and judged by test_thread_pool.py.
//   team_size_check MAX_SIZE NUM_RUNS LOST_AT_1 … LOST_AT_MAX     (percent)
#include <cstdio>
#include <cstdlib>

#include "device/cpu/team_size.h"

int main(int argc, char** argv) {
  const int max_size = std::atoi(argv[1]), num_runs = std::atoi(argv[2]);
  if (argc != 3 + max_size) return 2;
  constexpr int64_t kRunNs = 10'000'000;
  fmo::TeamSize team(max_size);
  for (int i = 0; i < num_runs; ++i) {
    team.observe(kRunNs, kRunNs / 100 * std::atoi(argv[2 + team.size()]));
    std::printf("%d ", team.size());
  }
  return 0;
}
