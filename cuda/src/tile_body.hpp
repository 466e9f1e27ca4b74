// SPDX-License-Identifier: Apache-2.0
//
// The product of two stretches of rows, sums[r][q] = <x[r], y[q]>, by one block on tensor cores.
//
// Warps lie in a grid over the tile, each with Config::kDown x Config::kAcross products of 16 x 8.
// Chunks of the depth pass through a ring of buffers in shared memory while earlier ones are
// multiplied. float: three TF32 products x_high y_high + x_high y_low + x_low y_high (kTerms = 3),
// short of a float32 product by x_low y_low, some 2^-23 of it, or the first alone (kTerms = 1,
// TF32, for numbers that are no longer than that). Tensor cores round float32 sums towards zero:
// they add up one chunk at most, whose sum is added to the others' rounded to nearest.
#pragma once

#include "rows.hpp"

#include <cstdint>
#include <type_traits>

namespace fastfisher::cuda {

// Warps and products of a block: 128 x 128 entries, 64 a thread.
template <class Number, int Terms>
struct WideTile {
  using T = Number;
  static constexpr int kTerms = Terms;
  static constexpr int kWarpsDown = 2, kWarpsAcross = 4;  // of the tile
  static constexpr int kDown = 4, kAcross = 4;            // products of a warp
  static constexpr int kDepth = sizeof(T) == 4 ? 32 : 16;
};

template <class Config>
struct TileProduct {
  using T = typename Config::T;
  static constexpr int kThreads = 32 * Config::kWarpsDown * Config::kWarpsAcross;
  static constexpr int kDown = Config::kDown, kAcross = Config::kAcross;
  static constexpr int kEdge = 16 * kDown * Config::kWarpsDown;
  static_assert(kEdge == 8 * kAcross * Config::kWarpsAcross, "tiles must be square");
  static constexpr int kDepth = Config::kDepth;
  // 4 more than a power of two: the lanes of a warp read from different banks.
  static constexpr int kPitch = kDepth + 4;
  static constexpr int kSide = kEdge * kPitch;
  static constexpr int kStageBytes = 2 * kSide * static_cast<int>(sizeof(T));
  using Sums = T[kDown][kAcross][4];

  // Row and column in the tile of the thread's entry e of the product (i, j).
  FF_HD static int row_of(int thread, int i, int e) {
    const int warp = thread / 32, lane = thread % 32;
    return (warp / Config::kWarpsAcross * kDown + i) * 16 + lane / 4 + e / 2 * 8;
  }
  FF_HD static int col_of(int thread, int j, int e) {
    const int warp = thread / 32, lane = thread % 32;
    return (warp % Config::kWarpsAcross * kAcross + j) * 8 + lane % 4 * 2 + e % 2;
  }

  // `ring` holds 2 to 4 stages. Nobody may read what `ring` or the offsets held before.
  template <WarpContext Block>
  FF_HD static void run(const Block& block, T* ring, int stages, const Stretch& x, const Stretch& y,
                        Sums& sums) {
    using Load = Stage<T, kEdge, kDepth, kPitch, kThreads>;
    for (int i = 0; i < kDown; ++i) {
      for (int j = 0; j < kAcross; ++j) {
        for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
      }
    }
    const std::int64_t chunks = (x.rows->depth + kDepth - 1) / kDepth;
    const auto load = [&](std::int64_t chunk, int slot) {
      if (chunk < chunks) {
        T* const to = ring + slot * (2 * kSide);
        Load::run(block, x, chunk * kDepth, to);
        Load::run(block, y, chunk * kDepth, to + kSide);
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
  template <WarpContext Block>
  FF_HD static void multiply(const Block& block, const T* x, const T* y, Sums& sums) {
    const int lane = block.thread() % 32, g = lane / 4, t = lane % 4;
    x += row_of(block.thread(), 0, 0) * kPitch + t;
    y += (col_of(block.thread(), 0, 0) - 2 * t + g) * kPitch + t;
    if constexpr (std::is_same_v<T, double>) {
      for (int k = 0; k < kDepth; k += 8) steps(block, x + k, y + k, sums);
    } else {
      Sums part = {};
      FF_UNROLL
      for (int k = 0; k < kDepth; k += 8) steps(block, x + k, y + k, part);
      FF_UNROLL
      for (int i = 0; i < kDown; ++i) {
        FF_UNROLL
        for (int j = 0; j < kAcross; ++j) {
          FF_UNROLL
          for (int e = 0; e < 4; ++e) sums[i][j][e] += part[i][j][e];
        }
      }
    }
  }

  // Depths k to k + 8.
  template <WarpContext Block>
  FF_HD static void steps(const Block& block, const T* x, const T* y, Sums& sums) {
    constexpr bool kSplit = std::is_same_v<T, float> && Config::kTerms == 3;
    T high_y[kAcross][2], low_y[kAcross][2];
    FF_UNROLL
    for (int j = 0; j < kAcross; ++j) {
      FF_UNROLL
      for (int h = 0; h < 2; ++h)
        take<kSplit>(y[j * 8 * kPitch + 4 * h], high_y[j][h], low_y[j][h]);
    }
    FF_UNROLL
    for (int i = 0; i < kDown; ++i) {
      T high_x[4], low_x[4];
      FF_UNROLL
      for (int h = 0; h < 4; ++h)
        take<kSplit>(x[(i * 16 + h % 2 * 8) * kPitch + h / 2 * 4], high_x[h], low_x[h]);
      // The small ones first; and neighbours in this order do not wait for each other.
      if constexpr (kSplit) {
        FF_UNROLL
        for (int j = 0; j < kAcross; ++j) block.mma(sums[i][j], low_x, high_y[j]);
        FF_UNROLL
        for (int j = 0; j < kAcross; ++j) block.mma(sums[i][j], high_x, low_y[j]);
      }
      FF_UNROLL
      for (int j = 0; j < kAcross; ++j) block.mma(sums[i][j], high_x, high_y[j]);
    }
  }

  template <bool Split>
  FF_HD static void take(T value, T& high, T& low) {
    if constexpr (Split) {
      split(value, high, low);
    } else if constexpr (std::is_same_v<T, float>) {
      high = float_of(bits_of(value) + 0x1000U);  // rounded: what is cut off does not matter
    } else {
      high = value;
    }
  }
};

}  // namespace fastfisher::cuda
