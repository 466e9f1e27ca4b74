// SPDX-License-Identifier: Apache-2.0
#include "openmp_team.hpp"

#include <dlfcn.h>

#include <atomic>

namespace fastfisher::cpu {
namespace {

std::atomic<bool> forgotten{false};

/// Entry points of a runtime, which GNU's, LLVM's and Intel's have in common.
struct Runtime {
  using Body = void (*)(void* data);
  void (*parallel)(Body body, void* data, unsigned threads, unsigned flags) = nullptr;
  int (*thread)() = nullptr;
  int (*most_threads)() = nullptr;

  [[nodiscard]] bool found() const {
    return parallel != nullptr && thread != nullptr && most_threads != nullptr;
  }
};

template <class Function>
void find(Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

// Looked for again until there is one, which is never unloaded while its threads live.
Runtime runtime() {
  Runtime result;
  find(result.parallel, "GOMP_parallel");
  if (result.parallel == nullptr) return result;
  find(result.thread, "omp_get_thread_num");
  find(result.most_threads, "omp_get_max_threads");
  return result;
}

}  // namespace

void forget_openmp_team() {
  forgotten.store(true);
}

bool run_on_openmp_team(int threads, void (*function)(void* data, int thread), void* data) {
  if (forgotten.load()) return false;
  const Runtime found = runtime();
  if (!found.found()) return false;
  // Of its usual size: a smaller team would end threads that the next function starts again.
  const int team = found.most_threads();
  if (team < threads) return false;
  struct Call {
    void (*function)(void* data, int thread);
    void* data;
    int (*thread)();
  } call{function, data, found.thread};
  found.parallel(
      [](void* given) {
        const auto& its = *static_cast<const Call*>(given);
        its.function(its.data, its.thread());
      },
      &call, static_cast<unsigned>(team), 0);
  return true;
}

}  // namespace fastfisher::cpu
