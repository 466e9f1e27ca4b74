// SPDX-License-Identifier: Apache-2.0
//
// Kernel body that reads an array once: its largest magnitude, and its first entry that is not
// finite.
#pragma once

#include "element.hpp"
#include "fastfisher/view.hpp"

#include <cmath>
#include <cstdint>
#include <limits>

namespace fastfisher::cuda {

struct ScanInput {
  const void* data = nullptr;
  std::int64_t size = 0;
  int runs = 1;  // of axes that do not lie behind one another: the last entries below
  std::int64_t extents[kMaxRank] = {}, strides[kMaxRank] = {};
};

// What the scan leaves behind; zeros before it. Maxima of integers do not depend on the order.
struct ScanFound {
  std::uint64_t largest = 0;  // bits of the largest finite magnitude
  std::uint64_t bad = 0;      // kFirst minus the index of the first entry that is not finite, or 0
  static constexpr std::uint64_t kFirst = std::numeric_limits<std::int64_t>::max();
};

template <class S, int Threads>
struct Scan {
  static constexpr int kThreads = Threads;
  static_assert((Threads & (Threads - 1)) == 0);

  struct Shared {
    std::uint64_t largest[Threads], bad[Threads];
  };

  template <BlockContext Block>
  FF_HD static void run(const Block& block, Shared& shared, const ScanInput& input,
                        ScanFound* found) {
    std::uint64_t largest = 0, bad = 0;
    for (std::int64_t index = block.index() * Threads + block.thread(); index < input.size;
         index += block.blocks() * Threads) {
      std::int64_t offset = 0, rest = index;
      for (int r = 1; r < input.runs; ++r) {
        const std::int64_t extent = input.extents[kMaxRank - r];
        offset += rest % extent * input.strides[kMaxRank - r];
        rest /= extent;
      }
      offset += rest * input.strides[kMaxRank - input.runs];
      const auto value = std::abs(widen(static_cast<const S*>(input.data)[offset]));
      if (value <= kLargest<decltype(value)>) {
        // Magnitudes of floats order like their bits read as unsigned integers.
        const std::uint64_t bits = bits_of(value);
        largest = largest < bits ? bits : largest;
      } else if (bad == 0) {
        bad = ScanFound::kFirst - static_cast<std::uint64_t>(index);
      }
    }
    const int t = block.thread();
    shared.largest[t] = largest;
    shared.bad[t] = bad;
    for (int half = Threads / 2; half > 0; half /= 2) {
      block.sync();
      if (t >= half) continue;
      const int other = t + half;
      if (shared.largest[t] < shared.largest[other]) shared.largest[t] = shared.largest[other];
      if (shared.bad[t] < shared.bad[other]) shared.bad[t] = shared.bad[other];
    }
    if (t != 0) return;
    block.atomic_max(&found->largest, shared.largest[0]);
    block.atomic_max(&found->bad, shared.bad[0]);
  }
};

}  // namespace fastfisher::cuda
