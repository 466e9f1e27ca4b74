// SPDX-License-Identifier: Apache-2.0
//
// A thread block on the host: one std::thread per CUDA thread, so that the kernel bodies run where
// there is no device. Under ThreadSanitizer a missing barrier shows as a race. It says nothing
// about occupancy, speed or the launches themselves.
#pragma once

#include "block.hpp"

#include <atomic>
#include <barrier>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

namespace fastfisher::test {

// Where the lanes of a warp meet to exchange what only the hardware sees.
struct HostWarp {
  std::barrier<> barrier;
  double a[32][4], b[32][2];
  explicit HostWarp(int lanes) : barrier(lanes) {}
};

struct HostBlock {
  int thread_index;
  std::int64_t block_index, block_count;
  std::barrier<>* barrier;
  HostWarp* warp;  // null: a block that is no whole number of warps

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

  void mma(float (&d)[4], const float (&a)[4], const float (&b)[2]) const {
    exchange(d, a, b, [](float x) {
      return std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) & 0xffffe000U);
    });
  }
  void mma(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) const {
    // Two products of depth 8: the first and the second of every pair.
    for (const std::uint32_t shift : {16U, 0U}) {
      float x[4], y[2];
      for (int k = 0; k < 4; ++k) x[k] = std::bit_cast<float>(a[k] << shift & 0xffff0000U);
      for (int k = 0; k < 2; ++k) y[k] = std::bit_cast<float>(b[k] << shift & 0xffff0000U);
      mma(d, x, y);
    }
  }
  void mma(double (&d)[4], const double (&a)[4], const double (&b)[2]) const {
    exchange(d, a, b, [](double x) { return x; });
  }

  template <int Bytes>
  void copy(void* to, const void* from, bool valid) const {
    if (valid) {
      std::memcpy(to, from, Bytes);
    } else {
      std::memset(to, 0, Bytes);
    }
  }
  void commit() const {}
  template <int Pending>
  void wait() const {}

 private:
  template <class T, class Read>
  void exchange(T (&d)[4], const T (&a)[4], const T (&b)[2], const Read& read) const {
    const int lane = thread_index % 32, g = lane / 4, t = lane % 4;
    for (int k = 0; k < 4; ++k) warp->a[lane][k] = read(a[k]);
    for (int k = 0; k < 2; ++k) warp->b[lane][k] = read(b[k]);
    warp->barrier.arrive_and_wait();
    for (int e = 0; e < 4; ++e) {
      const int row = g + e / 2 * 8, col = 2 * t + e % 2;
      double sum = d[e];
      for (int k = 0; k < 8; ++k) {
        sum += warp->a[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2] * warp->b[col * 4 + k % 4][k / 4];
      }
      d[e] = static_cast<T>(sum);
    }
    warp->barrier.arrive_and_wait();
  }
};
static_assert(cuda::WarpContext<HostBlock>);

// One launch: blocks one after the other, each with fresh shared memory full of rubbish.
template <class Kernel, class Body>
void launch(std::int64_t blocks, const Body& body) {
  for (std::int64_t index = 0; index < blocks; ++index) {
    std::barrier<> barrier(Kernel::kThreads);
    // Not on the stack: it may be as large as the device's.
    const auto memory = std::make_unique<typename Kernel::Shared>();
    typename Kernel::Shared& shared = *memory;
    std::memset(static_cast<void*>(&shared), 0xff, sizeof shared);
    std::vector<std::unique_ptr<HostWarp>> warps;
    for (int lanes = Kernel::kThreads; lanes >= 32; lanes -= 32)
      warps.push_back(std::make_unique<HostWarp>(32));
    std::vector<std::jthread> threads;
    for (int t = 0; t < Kernel::kThreads; ++t) {
      const auto w = static_cast<std::size_t>(t / 32);
      HostWarp* const warp = w < warps.size() ? warps[w].get() : nullptr;
      threads.emplace_back(
          [&, t, warp] { body(HostBlock{t, index, blocks, &barrier, warp}, shared); });
    }
  }
}

}  // namespace fastfisher::test
