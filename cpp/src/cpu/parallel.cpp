// SPDX-License-Identifier: Apache-2.0
//
// No OpenMP of our own: after a fork its parallel regions hang in the child. Here the child forgets
// the parent's pool, whose threads do not exist there, and starts its own when it needs one.
#include "parallel.hpp"

#include "fastfisher/error.hpp"
#include "openmp_team.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

namespace fastfisher::cpu {
namespace {

// A sleeping worker takes 50 us to wake, on some virtual machines a millisecond, so workers spin
// for about that long first, and longer while an op is under way.
constexpr int kSpins = 4000, kSpinsInRegion = 100 * kSpins;
std::atomic<int> regions{0};

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

  // Work of thread `worker` of `threads` that take part; the first one asks for interrupts.
  void drain_on_team(int worker, int threads, const Context& ctx) {
    if (worker < threads) drain(worker, worker == 0 ? &ctx : nullptr);
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

// Moves the calling thread off a core that another one of ours is using. A scheduler wakes threads
// on the core of whoever wakes them where it takes the others for busy, as it does on virtual
// machines for cores that have been idle for some milliseconds, and evens that out only later.
void leave(int cpu) {
  if (cpu < 0 || sched_getcpu() != cpu) return;
  cpu_set_t all;
  if (sched_getaffinity(0, sizeof(all), &all) != 0) return;
  cpu_set_t others = all;
  CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof(others), &others) != 0) return;
  sched_setaffinity(0, sizeof(all), &all);
}

class Pool {
 public:
  // Held by the one caller that drives the workers.
  std::mutex in_use;

  void run(int threads, Job& job, const Context& ctx) {
    try {
      while (workers_ < threads - 1) {
        std::thread(&Pool::work, this, workers_ + 1, ticket_.load()).detach();
        ++workers_;
      }
    } catch (const std::system_error&) {
      // The system has no more threads to give: those that exist do the work.
      threads = workers_ + 1;
    }
    job_ = &job;
    caller_cpu_.store(sched_getcpu(), std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    {
      // Under the lock, so that a worker about to sleep cannot miss it.
      const std::lock_guard lock(sleep_mutex_);
      const std::uint64_t generation = (ticket_.load() >> kActiveBits) + 1;
      seats_.store(generation << kActiveBits | static_cast<std::uint64_t>(threads - 1),
                   std::memory_order_release);
      ticket_.store(generation << kActiveBits | static_cast<std::uint64_t>(threads),
                    std::memory_order_release);
    }
    if (sleepers_.load() > 0) {
      wake_.notify_all();
      // Lets a worker that was woken on this core go on, which then leaves it.
      std::this_thread::yield();
    }
    job.drain(0, &ctx);
    // Whoever has not come by now is not waited for: there is nothing left to do.
    const auto absent = static_cast<int>(seats_.exchange(0) & kActiveMask);
    const int joined = threads - 1 - absent;
    for (int spins = 0; done_.load(std::memory_order_acquire) != joined; ++spins) {
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
      for (int spins = 0; ticket_.load(std::memory_order_acquire) == seen; ++spins) {
        if (spins < kSpins ||
            (spins < kSpinsInRegion && regions.load(std::memory_order_relaxed) > 0)) {
          relax();
          continue;
        }
        std::unique_lock lock(sleep_mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [&] { return ticket_.load(std::memory_order_acquire) != seen; });
        sleepers_.fetch_sub(1);
        lock.unlock();
        leave(caller_cpu_.load(std::memory_order_relaxed));
      }
      seen = ticket_.load(std::memory_order_acquire);
      if (static_cast<std::uint64_t>(id) >= (seen & kActiveMask) || !take_seat(seen)) continue;
      job_->drain(id, nullptr);
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  // The caller waits for everyone who has a seat before the next ticket: whoever takes one reads
  // the job of its own ticket. False if the job is over.
  bool take_seat(std::uint64_t ticket) {
    std::uint64_t seats = seats_.load(std::memory_order_acquire);
    while (seats >> kActiveBits == ticket >> kActiveBits && (seats & kActiveMask) > 0) {
      if (seats_.compare_exchange_weak(seats, seats - 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire))
        return true;
    }
    return false;
  }

  static constexpr int kActiveBits = 16;
  static constexpr std::uint64_t kActiveMask = (std::uint64_t{1} << kActiveBits) - 1;

  int workers_ = 0;
  Job* job_ = nullptr;
  // Number of the job and, in the low bits, how many threads take part, read as one.
  std::atomic<std::uint64_t> ticket_{0};
  // The same number and, in the low bits, how many may still take part.
  std::atomic<std::uint64_t> seats_{0};
  std::atomic<int> done_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<int> caller_cpu_{-1};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
};

std::atomic<Pool*> the_pool{nullptr};
thread_local bool inside_task = false;

// False if there is no team.
bool run_on_team(int threads, Job& job, const Context& ctx) {
  struct Call {
    int threads;
    Job& job;
    const Context& ctx;
  } call{threads, job, ctx};
  return run_on_openmp_team(
      threads,
      [](void* data, int thread) {
        const auto& its = *static_cast<Call*>(data);
        its.job.drain_on_team(thread, its.threads, its.ctx);
      },
      &call);
}

struct InsideTask {
  InsideTask() { inside_task = true; }
  ~InsideTask() { inside_task = false; }
  InsideTask(const InsideTask&) = delete;
  InsideTask& operator=(const InsideTask&) = delete;
};

// From the start: a child has none of the threads, though its parent may never have used ours.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] {
  forget_openmp_team();
  the_pool.store(nullptr);
  regions.store(0);
  inside_task = false;
});

// The pool is never destroyed: its detached threads may outlive every static object.
Pool& pool() {
  Pool* current = the_pool.load();
  while (current == nullptr) {
    auto* fresh = new Pool;
    if (the_pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

}  // namespace

namespace {

int cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0 && CPU_COUNT(&mask) > 0)
    return CPU_COUNT(&mask);
  const unsigned all = std::thread::hardware_concurrency();
  return all > 0 ? static_cast<int>(all) : 1;
}

}  // namespace

int thread_count(const Context& ctx) {
  // More than a few threads a core only wait for each other.
  if (ctx.threads > 0) return std::min(ctx.threads, 4 * cores());
  if (const int ours = positive_from_environment("FASTFISHER_NUM_THREADS", true); ours > 0)
    return ours;
  if (const int theirs = positive_from_environment("OMP_NUM_THREADS", false); theirs > 0)
    return theirs;
  return cores();
}

ParallelRegion::ParallelRegion() {
  regions.fetch_add(1, std::memory_order_relaxed);
}

ParallelRegion::~ParallelRegion() {
  regions.fetch_sub(1, std::memory_order_relaxed);
}

void run_tasks(const Context& ctx, int threads, std::int64_t count, TaskFunction function,
               void* state) {
  if (count <= 0) return;
  Job job;
  job.function = function;
  job.state = state;
  job.count = count;
  if (threads > count) threads = static_cast<int>(count);
  if (threads <= 1 || inside_task) {
    job.drain(0, &ctx);
  } else {
    Pool& shared = pool();
    const std::unique_lock claim(shared.in_use, std::try_to_lock);
    const InsideTask inside;
    if (!claim.owns_lock()) {
      job.drain(0, &ctx);
    } else if (!ctx.openmp_team || !run_on_team(threads, job, ctx)) {
      shared.run(threads, job, ctx);
    }
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace fastfisher::cpu
