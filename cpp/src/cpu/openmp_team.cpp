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
void find(void* library, Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library, name));
}

Runtime look() {
  Runtime result;
  find(RTLD_DEFAULT, result.parallel, "GOMP_parallel");
  Dl_info where{};
  if (result.parallel == nullptr || dladdr(reinterpret_cast<void*>(result.parallel), &where) == 0)
    return result;
  // Of the same library: there may be several, each of which numbers its own threads.
  void* library = dlopen(where.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return result;
  find(library, result.thread, "omp_get_thread_num");
  find(library, result.most_threads, "omp_get_max_threads");
  dlclose(library);
  return result;
}

// Looked for again until there is one, which is never unloaded while its threads live.
const Runtime* runtime() {
  static std::atomic<const Runtime*> known{nullptr};
  if (const Runtime* found = known.load()) return found;
  const Runtime found = look();
  if (!found.found()) return nullptr;
  const Runtime* none = nullptr;
  const auto* kept = new Runtime(found);
  if (known.compare_exchange_strong(none, kept)) return kept;
  delete kept;
  return none;
}

}  // namespace

void forget_openmp_team() {
  forgotten.store(true);
}

bool run_on_openmp_team(int threads, void (*function)(void* data, int thread), void* data) {
  if (forgotten.load()) return false;
  const Runtime* const found = runtime();
  if (found == nullptr) return false;
  // Of its usual size: a smaller team would end threads that the next function starts again.
  const int team = found->most_threads();
  if (team < threads) return false;
  struct Call {
    void (*function)(void* data, int thread);
    void* data;
    int (*thread)();
  } call{function, data, found->thread};
  found->parallel(
      [](void* given) {
        const auto& its = *static_cast<const Call*>(given);
        its.function(its.data, its.thread());
      },
      &call, static_cast<unsigned>(team), 0);
  return true;
}

}  // namespace fastfisher::cpu
