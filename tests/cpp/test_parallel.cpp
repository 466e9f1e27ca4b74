// SPDX-License-Identifier: Apache-2.0
//
// The thread pool: every task once, from several callers, nested, with exceptions, by workers that
// slept, and in a forked child.
#include "check.hpp"
#include "parallel.hpp"

#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

namespace {

using fastfisher::Context;
using fastfisher::cpu::parallel_for;

bool each_task_once(int threads, std::int64_t count) {
  std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
  std::atomic<bool> workers_in_range{true};
  parallel_for(Context{}, threads, count, [&](std::int64_t task, int worker) {
    if (worker < 0 || worker >= threads) workers_in_range = false;
    ++seen[static_cast<std::size_t>(task)];
  });
  for (const auto& times : seen) {
    if (times != 1) return false;
  }
  return workers_in_range;
}

void every_task_once() {
  for (int round = 0; round < 200; ++round) {
    for (const int threads : {1, 2, 3, 7}) FF_CHECK(each_task_once(threads, round % 23));
  }
}

void several_callers() {
  std::atomic<int> good{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 100; ++round) good += each_task_once(2, 17);
    });
  }
  for (std::thread& caller : callers) caller.join();
  FF_CHECK(good == 400);
}

void nested() {
  std::atomic<int> sum{0};
  parallel_for(Context{}, 2, 8, [&](std::int64_t, int) {
    parallel_for(Context{}, 2, 5, [&](std::int64_t, int) { ++sum; });
  });
  FF_CHECK(sum == 40);
}

void exceptions() {
  for (int round = 0; round < 50; ++round) {
    bool caught = false;
    try {
      parallel_for(Context{}, 3, 100, [&](std::int64_t task, int) {
        if (task == 42) throw std::runtime_error("task 42");
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    FF_CHECK(caught);
  }
  FF_CHECK(each_task_once(3, 10));
}

// Between two calls the workers fall asleep; one that wakes on the core of its caller leaves it,
// and may use all cores again afterwards.
void after_sleep() {
  cpu_set_t all;
  CPU_ZERO(&all);
  sched_getaffinity(0, sizeof(all), &all);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    FF_CHECK(each_task_once(3, 10));
    std::atomic<int> good{0};
    parallel_for(Context{}, 3, 6, [&](std::int64_t, int) {
      // Long enough for every worker to come.
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      cpu_set_t mine;
      CPU_ZERO(&mine);
      sched_getaffinity(0, sizeof(mine), &mine);
      good += CPU_EQUAL(&mine, &all) ? 1 : 0;
    });
    FF_CHECK(good == 6);
  }
}

void forked_child() {
  FF_CHECK(each_task_once(3, 10));
  const pid_t child = fork();
  if (child == 0) _exit(each_task_once(3, 50) ? 0 : 1);
  int status = -1;
  waitpid(child, &status, 0);
  FF_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  FF_CHECK(each_task_once(3, 10));
}

}  // namespace

int main(int argc, char** argv) {
  every_task_once();
  several_callers();
  nested();
  exceptions();
  after_sleep();
  // ThreadSanitizer does not follow a fork of a process with threads.
  if (argc < 2 || std::strcmp(argv[1], "--no-fork") != 0) forked_child();
  return fastfisher::test::report();
}
