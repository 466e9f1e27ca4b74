// SPDX-License-Identifier: Apache-2.0
//
// How a block reads part of an operand, Edge rows of Depth depths, into shared memory: in the
// background, transposed on the way where depths lie together, 16-bit numbers widened.
#pragma once

#include "pipelined_block.hpp"
#include "product_problem.hpp"

#include <cstdint>

namespace fastfisher::cuda {

template <class T, int Edge, int Depth, int Threads>
struct ProductLoad {
  static constexpr int kThreads = Threads;
  static constexpr int kPitch = Edge + 4;  // columns of depths in different banks
  static constexpr int kWide = 16 / static_cast<int>(sizeof(T));
  static constexpr int kAlong = Depth < 8 ? Depth : 8;
  static_assert(Depth % kAlong == 0 && (Edge * Depth) % Threads == 0);

  // Addresses of rows, and what depths add to them, in bytes; coordinates for patches.
  template <int Count>
  struct Places {
    std::uint64_t address[Count];
    std::int32_t at[3][Count];

    FF_HD void put(int index, const Cell& cell, std::uint64_t base, std::int64_t size) {
      address[index] = base + static_cast<std::uint64_t>(cell.offset * size);
      at[0][index] = cell.at[0];
      at[1][index] = cell.at[1];
      at[2][index] = cell.at[2];
    }
  };

  FF_HD static std::int64_t size_of(const Operand& x) {
    return !narrow(x.dtype) ? static_cast<std::int64_t>(sizeof(T)) : 2;
  }
  FF_HD static std::uint64_t base_of(const Operand& x, std::int64_t offset) {
    return reinterpret_cast<std::uint64_t>(x.data) +
           static_cast<std::uint64_t>(offset * size_of(x));
  }

  template <bool Patch, PipelinedBlock Block>
  FF_HD static void load(const Block& block, const Operand& x, const Places<Edge>& rows,
                         const Places<Depth>& depth, int depths, T (&to)[Depth][kPitch]) {
    const auto thread = static_cast<unsigned>(block.thread_again());
    if (!Patch && x.path == Path::wide) {
      constexpr int kRows = Edge / kWide;  // groups of rows
      constexpr int kCount = (kRows * Depth + kThreads - 1) / kThreads;
      const T* from[kCount];
      FF_UNROLL
      for (int j = 0; j < kCount; ++j) {
        const Spot spot = across_spot<kRows>(thread, j);
        if (spot.depth < Depth)
          from[j] = reinterpret_cast<const T*>(rows.address[spot.row * kWide] +
                                               depth.address[spot.depth]);
      }
      FF_UNROLL
      for (int j = 0; j < kCount; ++j) {
        const Spot spot = across_spot<kRows>(thread, j);
        if (spot.depth < Depth)
          block.template copy<16>(&to[spot.depth][spot.row * kWide], from[j], spot.depth < depths);
      }
      return;
    }
    if (x.path == Path::along) {
      each<Patch>(block, x, rows, depth, depths, to,
                  [thread](int j) { return along_spot(thread, j); });
    } else {
      each<Patch>(block, x, rows, depth, depths, to,
                  [thread](int j) { return across_spot<Edge>(thread, j); });
    }
  }

 private:
  // All addresses first: behind a copy the compiler would read the tables anew.
  template <bool Patch, PipelinedBlock Block, class SpotOf>
  FF_HD static void each(const Block& block, const Operand& x, const Places<Edge>& rows,
                         const Places<Depth>& depth, int depths, T (&to)[Depth][kPitch],
                         const SpotOf& spot_of) {
    constexpr int kCount = Edge * Depth / kThreads;
    std::uint64_t from[kCount];
    bool valid[kCount];
    FF_UNROLL
    for (int j = 0; j < kCount; ++j) {
      const Spot spot = spot_of(j);
      from[j] = rows.address[spot.row] + depth.address[spot.depth];
      valid[j] = spot.depth < depths;
      if constexpr (Patch) {
        FF_UNROLL
        for (int axis = 0; axis < 3; ++axis) {
          const auto place =
              static_cast<std::uint32_t>(rows.at[axis][spot.row] + depth.at[axis][spot.depth]);
          valid[j] = valid[j] && place < static_cast<std::uint32_t>(x.extents[axis]);
        }
      }
    }
    if (!narrow(x.dtype)) {
      FF_UNROLL
      for (int j = 0; j < kCount; ++j) {
        const Spot spot = spot_of(j);
        block.template copy<static_cast<int>(sizeof(T))>(
            &to[spot.depth][spot.row], reinterpret_cast<const T*>(from[j]), valid[j]);
      }
    } else if constexpr (sizeof(T) == 4) {
      const bool brain = x.dtype == DType::bf16;
      FF_UNROLL
      for (int j = 0; j < kCount; ++j) {
        const Spot spot = spot_of(j);
        const std::uint16_t bits = valid[j] ? *reinterpret_cast<const std::uint16_t*>(from[j]) : 0;
        to[spot.depth][spot.row] = brain ? widen(BFloat16{bits}) : widen(Float16{bits});
      }
    }
  }

  // Which entry a thread reads in its turn j; written so that turns differ by constants.
  struct Spot {
    int depth, row;
  };
  // A warp takes eight depths of four rows: whole sectors of memory, and different banks.
  FF_HD static Spot along_spot(unsigned thread, int j) {
    constexpr int kTogether = kThreads / kAlong;  // rows of one turn
    if constexpr (kTogether > 0 && kThreads % kAlong == 0 && Edge % kTogether == 0) {
      constexpr int kTurns = Edge / kTogether;
      return {static_cast<int>(thread % kAlong) + kAlong * (j / kTurns),
              static_cast<int>(thread / kAlong) + kTogether * (j % kTurns)};
    } else {
      const int e = static_cast<int>(thread) + j * kThreads;
      return {e % kAlong + kAlong * (e / (kAlong * Edge)), e / kAlong % Edge};
    }
  }
  template <int Count>
  FF_HD static Spot across_spot(unsigned thread, int j) {
    if constexpr (kThreads % Count == 0) {
      return {static_cast<int>(thread / Count) + j * (kThreads / Count),
              static_cast<int>(thread % Count)};
    } else {
      const int e = static_cast<int>(thread) + j * kThreads;
      return {e / Count, e % Count};
    }
  }
};

}  // namespace fastfisher::cuda
