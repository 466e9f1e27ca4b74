// SPDX-License-Identifier: Apache-2.0
//
// The one way to use several cores: a fork-safe pool of std::threads and a dynamic parallel_for
// over tasks.
#pragma once

#include "fastfisher/context.hpp"

#include <cstdint>
#include <type_traits>

namespace fastfisher::cpu {

/// Threads that an op may use: ctx.threads, then FASTFISHER_NUM_THREADS, OMP_NUM_THREADS, the
/// affinity mask.
int thread_count(const Context& ctx);

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

}  // namespace fastfisher::cpu
