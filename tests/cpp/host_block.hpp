// SPDX-License-Identifier: Apache-2.0
//
// A thread block on the host: one std::thread per CUDA thread, so that the kernel bodies run where
// there is no device. Under ThreadSanitizer a missing barrier shows as a race. It says nothing
// about occupancy, speed or the launches themselves.
#pragma once

#include "block.hpp"

#include <atomic>
#include <barrier>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

namespace fastfisher::test {

struct HostBlock {
  int thread_index;
  std::int64_t block_index, block_count;
  std::barrier<>* barrier;

  [[nodiscard]] int thread() const { return thread_index; }
  [[nodiscard]] std::int64_t index() const { return block_index; }
  [[nodiscard]] std::int64_t blocks() const { return block_count; }
  void sync() const { barrier->arrive_and_wait(); }
  void atomic_max(std::uint64_t* address, std::uint64_t value) const {
    const std::atomic_ref<std::uint64_t> at(*address);
    std::uint64_t now = at.load();
    while (now < value && !at.compare_exchange_weak(now, value)) {
    }
  }
};

// One launch: blocks one after the other, each with fresh shared memory full of rubbish.
template <class Kernel, class Body>
void launch(std::int64_t blocks, const Body& body) {
  for (std::int64_t index = 0; index < blocks; ++index) {
    std::barrier<> barrier(Kernel::kThreads);
    // Not on the stack: it may be as large as the device's.
    const auto memory = std::make_unique<typename Kernel::Shared>();
    typename Kernel::Shared& shared = *memory;
    std::memset(static_cast<void*>(&shared), 0xff, sizeof shared);
    std::vector<std::jthread> threads;
    for (int t = 0; t < Kernel::kThreads; ++t) {
      threads.emplace_back([&, t] { body(HostBlock{t, index, blocks, &barrier}, shared); });
    }
  }
}

}  // namespace fastfisher::test
