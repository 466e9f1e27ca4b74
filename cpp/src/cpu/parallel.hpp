// SPDX-License-Identifier: Apache-2.0
//
// The one way to use several cores: a fork-safe pool of std::threads and a dynamic parallel_for
// over tasks.
#pragma once

#include "fastfisher/context.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace fastfisher::cpu {

/// Threads that an op may use: ctx.threads, then FASTFISHER_NUM_THREADS, OMP_NUM_THREADS, the
/// affinity mask.
int thread_count(const Context& ctx);

/// While one lives, workers between two jobs keep watch instead of going to sleep, from which
/// waking takes long: for ops whose phases follow each other closely.
class ParallelRegion {
 public:
  ParallelRegion();
  ~ParallelRegion();
  ParallelRegion(const ParallelRegion&) = delete;
  ParallelRegion& operator=(const ParallelRegion&) = delete;
};

using TaskFunction = void (*)(void* state, std::int64_t task, int worker);

/// Run tasks 0..count-1 on up to `threads` threads, the calling one (worker 0) among them. Tasks
/// are handed out in order, one at a time. The first exception stops the rest and is thrown here;
/// so does ctx.interrupted. A call from inside a task, or while another thread uses the pool, runs
/// serially in the calling thread.
void run_tasks(const Context& ctx, int threads, std::int64_t count, TaskFunction function,
               void* state);

template <class Function>
void parallel_for(const Context& ctx, int threads, std::int64_t count, Function&& function) {
  run_tasks(
      ctx, threads, count,
      [](void* state, std::int64_t task, int worker) {
        (*static_cast<std::remove_reference_t<Function>*>(state))(task, worker);
      },
      const_cast<void*>(static_cast<const void*>(&function)));
}

/// The same for tasks that need not know the worker; on one thread without asking for interrupts
/// in between: for steps inside a task of another loop.
template <class Function>
void parallel_steps(const Context& ctx, int threads, std::int64_t count, const Function& function) {
  if (threads > 1) {
    parallel_for(ctx, threads, count, [&](std::int64_t task, int) { function(task); });
  } else {
    for (std::int64_t task = 0; task < count; ++task) function(task);
  }
}

/// `parallel_for` with contiguous shares: each thread takes tasks of its own share first, the same
/// one for the same count of tasks, so that what it wrote in one phase is still in its cache in the
/// next.
template <class Function>
void parallel_shares(const Context& ctx, int threads, std::int64_t count, Function&& function) {
  struct alignas(64) Share {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };
  threads = static_cast<int>(std::clamp<std::int64_t>(count, 1, threads));
  std::vector<Share> shares(static_cast<std::size_t>(threads));
  for (int k = 0; k < threads; ++k) {
    shares[static_cast<std::size_t>(k)].next = count * k / threads;
    shares[static_cast<std::size_t>(k)].end = count * (k + 1) / threads;
  }
  // As many tickets as tasks: each finds one, in its own share or in that of another.
  parallel_for(ctx, threads, count, [&](std::int64_t, int worker) {
    for (int k = 0; k < threads; ++k) {
      Share& share = shares[static_cast<std::size_t>((worker + k) % threads)];
      const std::int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
      if (task < share.end) return function(task, worker);
    }
  });
}

}  // namespace fastfisher::cpu
