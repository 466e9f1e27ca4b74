// SPDX-License-Identifier: Apache-2.0
//
// How a warp multiplies two stretches in shared memory, kStep depths at a time, in each arithmetic.
// x and y point to the thread's element (row g, depth t) of the first product, see WarpContext.
#pragma once

#include "element.hpp"

namespace fastfisher::cuda {

// float32 as sums of three bfloat16, six products: short of a float32 product by 2^-26 of it.
struct TripleSteps {
  using T = float;
  static constexpr int kStep = 16, kDepth = 32, kPitch = 40;
  static constexpr bool kParts = true;
  static constexpr int kLane = 2;  // depths between neighbouring t

  template <int Down, int Across, WarpContext Block>
  FF_HD static void run(const Block& block, const T* x, const T* y, T (&sums)[Down][Across][4]) {
    std::uint32_t b[kTerms][Across][2];
    FF_UNROLL
    for (int j = 0; j < Across; ++j) {
      FF_UNROLL
      for (int h = 0; h < 2; ++h) {
        std::uint32_t pairs[kTerms];
        const T* const at = y + j * 8 * kPitch + 8 * h;
        split(at[0], at[1], pairs);
        FF_UNROLL
        for (int k = 0; k < kTerms; ++k) b[k][j][h] = pairs[k];
      }
    }
    FF_UNROLL
    for (int i = 0; i < Down; ++i) {
      std::uint32_t a[kTerms][4];
      FF_UNROLL
      for (int h = 0; h < 4; ++h) {
        std::uint32_t pairs[kTerms];
        const T* const at = x + (i * 16 + h % 2 * 8) * kPitch + h / 2 * 8;
        split(at[0], at[1], pairs);
        FF_UNROLL
        for (int k = 0; k < kTerms; ++k) a[k][h] = pairs[k];
      }
      FF_UNROLL
      for (int p = 0; p < kProducts; ++p) {
        FF_UNROLL  // neighbours do not wait for each other
            for (int j = 0; j < Across; ++j)
                block.mma(sums[i][j], a[term_pair(p).x], b[term_pair(p).y][j]);
      }
    }
  }
};

// One number an element: TF32, rounded, or float64.
template <class Number, int Depth>
struct SingleSteps {
  using T = Number;
  static constexpr int kStep = 8, kDepth = Depth, kPitch = Depth + 4;
  static constexpr bool kParts = sizeof(T) == 4;
  static constexpr int kLane = 1;

  template <int Down, int Across, WarpContext Block>
  FF_HD static void run(const Block& block, const T* x, const T* y, T (&sums)[Down][Across][4]) {
    T b[Across][2];
    FF_UNROLL
    for (int j = 0; j < Across; ++j) {
      FF_UNROLL
      for (int h = 0; h < 2; ++h) b[j][h] = rounded(y[j * 8 * kPitch + 4 * h]);
    }
    FF_UNROLL
    for (int i = 0; i < Down; ++i) {
      T a[4];
      FF_UNROLL
      for (int h = 0; h < 4; ++h) a[h] = rounded(x[(i * 16 + h % 2 * 8) * kPitch + h / 2 * 4]);
      FF_UNROLL
      for (int j = 0; j < Across; ++j) block.mma(sums[i][j], a, b[j]);
    }
  }

 private:
  FF_HD static float rounded(float x) { return float_of(bits_of(x) + 0x1000U); }
  FF_HD static double rounded(double x) { return x; }
};
using Tf32Steps = SingleSteps<float, 32>;
using DoubleSteps = SingleSteps<double, 16>;

}  // namespace fastfisher::cuda
