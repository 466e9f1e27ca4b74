// SPDX-License-Identifier: Apache-2.0
//
// No OpenMP: after a fork its parallel regions hang in the child. Here the child forgets the
// parent's pool, whose threads do not exist there, and starts its own when it needs one.
#include "parallel.hpp"

#include "fastfisher/error.hpp"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string>
#include <thread>

namespace fastfisher::cpu {
namespace {

// A sleeping worker takes about 50 us to wake, so workers spin for about that long first.
constexpr int kSpins = 4000;

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int positive_from_environment(const char* name, bool strict) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return 0;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  // OMP_NUM_THREADS may be a list such as "4,2"; ours is one number.
  const bool clean = end != text && (*end == '\0' || (!strict && *end == ','));
  if (clean && value >= 1 && value <= 4096) return static_cast<int>(value);
  if (!strict) return 0;
  throw Error(ErrorCode::shape, "threads", name,
              "expected a number from 1 to 4096, got '" + std::string(text) + "'");
}

struct Job {
  TaskFunction function = nullptr;
  void* state = nullptr;
  std::int64_t count = 0;
  std::atomic<std::int64_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex error_mutex;
  std::exception_ptr error;

  void fail(std::exception_ptr raised) {
    const std::lock_guard lock(error_mutex);
    if (!error) error = std::move(raised);
    stop.store(true, std::memory_order_relaxed);
  }

  void drain(int worker, const Context* ctx) {
    try {
      while (!stop.load(std::memory_order_relaxed)) {
        if (ctx != nullptr && ctx->interrupted != nullptr &&
            ctx->interrupted(ctx->interrupted_state)) {
          throw Error(ErrorCode::interrupted, "parallel_for", "", "interrupted");
        }
        const std::int64_t task = next.fetch_add(1, std::memory_order_relaxed);
        if (task >= count) break;
        function(state, task, worker);
      }
    } catch (...) {
      fail(std::current_exception());
    }
  }
};

class Pool {
 public:
  // Held by the one caller that drives the workers.
  std::mutex in_use;

  void run(int threads, Job& job, const Context& ctx) {
    while (static_cast<int>(workers_) < threads - 1) {
      std::thread(&Pool::work, this, ++workers_, generation_.load()).detach();
    }
    job_ = &job;
    active_ = threads;
    pending_.store(workers_, std::memory_order_relaxed);
    {
      // Under the lock, so that a worker about to sleep cannot miss it.
      const std::lock_guard lock(sleep_mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    if (sleepers_.load() > 0) wake_.notify_all();
    job.drain(0, &ctx);
    for (int spins = 0; pending_.load(std::memory_order_acquire) != 0; ++spins) {
      if (spins < kSpins) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  void work(int id, std::uint64_t seen) {
    for (;;) {
      for (int spins = 0; generation_.load(std::memory_order_acquire) == seen; ++spins) {
        if (spins < kSpins) {
          relax();
          continue;
        }
        std::unique_lock lock(sleep_mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
        sleepers_.fetch_sub(1);
      }
      ++seen;  // every worker answers every generation, so it cannot be more than one behind
      if (id < active_) job_->drain(id, nullptr);
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  int workers_ = 0;
  int active_ = 0;
  Job* job_ = nullptr;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<int> pending_{0};
  std::atomic<int> sleepers_{0};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
};

std::atomic<Pool*> the_pool{nullptr};
thread_local bool inside_task = false;

// The pool is never destroyed: its detached threads may outlive every static object.
Pool& pool() {
  static const bool registered = [] {
    pthread_atfork(nullptr, nullptr, [] {
      the_pool.store(nullptr);
      inside_task = false;
    });
    return true;
  }();
  static_cast<void>(registered);
  Pool* current = the_pool.load();
  while (current == nullptr) {
    auto* fresh = new Pool;
    if (the_pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

}  // namespace

int thread_count(const Context& ctx) {
  if (ctx.threads > 0) return ctx.threads;
  if (const int ours = positive_from_environment("FASTFISHER_NUM_THREADS", true); ours > 0)
    return ours;
  if (const int theirs = positive_from_environment("OMP_NUM_THREADS", false); theirs > 0)
    return theirs;
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0 && CPU_COUNT(&mask) > 0)
    return CPU_COUNT(&mask);
  const unsigned cores = std::thread::hardware_concurrency();
  return cores > 0 ? static_cast<int>(cores) : 1;
}

void run_tasks(const Context& ctx, int threads, std::int64_t count, TaskFunction function,
               void* state) {
  if (count <= 0) return;
  Job job;
  job.function = function;
  job.state = state;
  job.count = count;
  if (threads > count) threads = static_cast<int>(count);
  const bool nested = inside_task;
  if (threads <= 1 || nested) {
    job.drain(0, &ctx);
  } else {
    Pool& shared = pool();
    const std::unique_lock claim(shared.in_use, std::try_to_lock);
    inside_task = true;
    if (claim.owns_lock()) {
      shared.run(threads, job, ctx);
    } else {
      job.drain(0, &ctx);
    }
    inside_task = nested;
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace fastfisher::cpu
