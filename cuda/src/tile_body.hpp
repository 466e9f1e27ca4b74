// SPDX-License-Identifier: Apache-2.0
//
// The product of two stretches of rows, sums[r][q] = <x[r], y[q]>, by one block on tensor cores.
//
// Warps lie in a grid over the tile, each with Down x Across products of 16 x 8. Chunks of the
// depth pass through a ring of buffers in shared memory while earlier ones are multiplied. Tensor
// cores round float32 sums towards zero: they add up one chunk at most, whose sum is added to the
// others' rounded to nearest.
#pragma once

#include "rows.hpp"
#include "tile_steps.hpp"

#include <cstdint>

namespace fastfisher::cuda {

template <class Steps, int WarpsDown, int WarpsAcross, int Down, int Across>
struct TileProduct {
  using T = typename Steps::T;
  static constexpr int kThreads = 32 * WarpsDown * WarpsAcross;
  static constexpr int kEdge = 16 * Down * WarpsDown;
  static_assert(kEdge == 8 * Across * WarpsAcross, "tiles must be square");
  static constexpr int kDepth = Steps::kDepth, kPitch = Steps::kPitch;
  static constexpr int kSide = kEdge * kPitch;
  static constexpr int kStageBytes = 2 * kSide * static_cast<int>(sizeof(T));
  static constexpr int kEntries = Down * Across * 4;  // of a thread
  static constexpr bool kPanels = false;
  using Sums = T[Down][Across][4];

  // Row and column in the tile of the thread's entry x.
  FF_HD static int row_of(int thread, int x) {
    const int warp = thread / 32, lane = thread % 32;
    return (warp / WarpsAcross * Down + x / (4 * Across)) * 16 + lane / 4 + x % 4 / 2 * 8;
  }
  FF_HD static int col_of(int thread, int x) {
    const int warp = thread / 32, lane = thread % 32;
    return (warp % WarpsAcross * Across + x / 4 % Across) * 8 + lane % 4 * 2 + x % 2;
  }
  FF_HD static T entry(const Sums& sums, int x) {
    return sums[x / (4 * Across)][x / 4 % Across][x % 4];
  }

  T* ring;  // in shared memory: 2 to 4 stages
  int stages;

  // Nobody may read what `ring` or the offsets held before.
  template <WarpContext Block>
  FF_HD void run(const Block& block, const Stretch& x, const Stretch& y, Sums& sums) const {
    using Load = Stage<T, kEdge, kDepth, kPitch, kThreads>;
    clear(sums);
    // Read once: the barriers of the loop would have them read again.
    const std::int64_t depth = x.rows->depth, chunks = (depth + kDepth - 1) / kDepth;
    const T* const x_data = static_cast<const T*>(x.rows->data);
    const T* const y_data = static_cast<const T*>(y.rows->data);
    const bool x_vectors = x.rows->access == Access::vectors;
    const bool y_vectors = y.rows->access == Access::vectors;
    const auto load = [&](std::int64_t chunk, int slot) {
      if (chunk < chunks) {
        T* const to = ring + slot * (2 * kSide);
        const std::int64_t from = chunk * kDepth;
        if (x_vectors) {
          Load::vectors(block, x_data, x.offsets, x.count, depth, from, to);
        } else {
          Load::others(block, x, from, to);
        }
        if (y_vectors) {
          Load::vectors(block, y_data, y.offsets, y.count, depth, from, to + kSide);
        } else {
          Load::others(block, y, from, to + kSide);
        }
      }
      block.commit();  // empty ones too: groups and chunks are counted alike
    };
    for (int s = 0; s + 1 < stages; ++s) load(s, s);
    int slot = 0, free = stages - 1;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      if (stages == 2) {
        block.template wait<0>();
      } else if (stages == 3) {
        block.template wait<1>();
      } else {
        block.template wait<2>();
      }
      block.sync();  // everybody's copies have landed, and the slot filled next has been read
      load(chunk + stages - 1, free);
      const T* const at = ring + slot * (2 * kSide);
      multiply(block, at, at + kSide, sums);
      free = slot;
      slot = slot + 1 == stages ? 0 : slot + 1;
    }
  }

 private:
  FF_HD static void clear(Sums& sums) {
    FF_UNROLL
    for (int x = 0; x < kEntries; ++x) sums[x / (4 * Across)][x / 4 % Across][x % 4] = 0;
  }

  template <WarpContext Block>
  FF_HD static void multiply(const Block& block, const T* x, const T* y, Sums& sums) {
    const int lane = block.thread() % 32, g = lane / 4, t = lane % 4;
    x += row_of(block.thread(), 0) * kPitch + t * Steps::kLane;
    y += (col_of(block.thread(), 0) - 2 * t + g) * kPitch + t * Steps::kLane;
    if constexpr (Steps::kParts) {
      Sums part;
      clear(part);
      steps(block, x, y, part);
      FF_UNROLL
      for (int e = 0; e < kEntries; ++e)
        sums[e / (4 * Across)][e / 4 % Across][e % 4] += entry(part, e);
    } else {
      steps(block, x, y, sums);
    }
  }

  template <WarpContext Block>
  FF_HD static void steps(const Block& block, const T* x, const T* y, Sums& sums) {
    FF_UNROLL
    for (int k = 0; k < kDepth; k += Steps::kStep)
      Steps::template run<Down, Across>(block, x + k, y + k, sums);
  }
};

// 128 x 128 entries by 8 warps, 64 a thread.
template <class Steps>
using WideTile = TileProduct<Steps, 2, 4, 4, 4>;

}  // namespace fastfisher::cuda
