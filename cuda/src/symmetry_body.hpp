// SPDX-License-Identifier: Apache-2.0
//
// Kernel body of symmetry, see symm.cu: largest |a_ij| and largest |a_ij - a_ji| in one read.
#pragma once

#include "block.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace fastfisher::cuda {

struct SymmetryInput {
  const void* a = nullptr;
  std::int64_t network_stride = 0, row_stride = 0, col_stride = 0;
  std::int64_t n = 0, networks = 0;
  std::int64_t share = 1;        // blocks of a network
  std::uint64_t* out = nullptr;  // [e, 2], the bits of a double
  std::int64_t out_strides[2] = {0, 0};
};

// Squares of Edge^2 entries and their mirror images, by Edge x Lanes threads.
template <class T, int Edge, int Lanes>
struct Symmetry {
  static constexpr int kThreads = Edge * Lanes;
  static_assert((kThreads & (kThreads - 1)) == 0);

  struct Shared {
    T mirror[Edge][Edge + 1];  // one more: columns in different banks
    std::uint64_t largest[kThreads], apart[kThreads];
  };

  FF_HD static std::int64_t squares(std::int64_t n) {
    const std::int64_t edges = (n + Edge - 1) / Edge;
    return edges * (edges + 1) / 2;
  }

  template <BlockContext Block>
  FF_HD static void clear(const Block& block, const SymmetryInput& input) {
    for (std::int64_t at = block.index() * kThreads + block.thread(); at < 2 * input.networks;
         at += block.blocks() * kThreads)
      input.out[at / 2 * input.out_strides[0] + at % 2 * input.out_strides[1]] = 0;
  }

  template <BlockContext Block>
  FF_HD static void run(const Block& block, Shared& shared, const SymmetryInput& input) {
    for (std::int64_t task = block.index(); task < input.networks * input.share;
         task += block.blocks())
      part(block, shared, input, task / input.share, task % input.share);
  }

 private:
  template <BlockContext Block>
  FF_HD static void part(const Block& block, Shared& shared, const SymmetryInput& input,
                         std::int64_t e, std::int64_t first) {
    const int t = block.thread(), tx = t % Edge, ty = t / Edge;
    const T* const a = static_cast<const T*>(input.a) + e * input.network_stride;
    std::uint64_t largest = 0, apart = 0;
    for (std::int64_t square = first; square < squares(input.n); square += input.share) {
      auto i =
          static_cast<std::int64_t>((std::sqrt(8.0 * static_cast<double>(square) + 1) - 1) / 2);
      while (i * (i + 1) / 2 > square) --i;
      while ((i + 1) * (i + 2) / 2 <= square) ++i;
      const std::int64_t row = i * Edge, col = (square - i * (i + 1) / 2) * Edge;
      block.sync();  // the last square has been compared
      T here[Edge / Lanes];
      for (int u = 0; u < Edge / Lanes; ++u) {
        const int r = ty + u * Lanes;
        here[u] = row + r < input.n && col + tx < input.n
                      ? a[(row + r) * input.row_stride + (col + tx) * input.col_stride]
                      : T{0};
        shared.mirror[r][tx] = col + r < input.n && row + tx < input.n
                                   ? a[(col + r) * input.row_stride + (row + tx) * input.col_stride]
                                   : T{0};
      }
      block.sync();
      for (int u = 0; u < Edge / Lanes; ++u) {
        const T there = shared.mirror[tx][ty + u * Lanes];
        keep_larger(largest, here[u]);
        keep_larger(largest, there);
        keep_larger(apart, here[u] - there);
      }
    }
    block.sync();  // the last part's maxima have been read
    shared.largest[t] = largest;
    shared.apart[t] = apart;
    for (int half = kThreads / 2; half > 0; half /= 2) {
      block.sync();
      if (t >= half) continue;
      if (shared.largest[t] < shared.largest[t + half])
        shared.largest[t] = shared.largest[t + half];
      if (shared.apart[t] < shared.apart[t + half]) shared.apart[t] = shared.apart[t + half];
    }
    if (t != 0) return;
    std::uint64_t* const out = input.out + e * input.out_strides[0];
    block.atomic_max(out, shared.largest[0]);
    block.atomic_max(out + input.out_strides[1], shared.apart[0]);
  }

  // Magnitudes of floats order like their bits read as unsigned integers, NaN above all.
  FF_HD static void keep_larger(std::uint64_t& most, T value) {
    const auto magnitude = std::abs(static_cast<double>(value));
    std::uint64_t bits = 0;
    std::memcpy(&bits, &magnitude, sizeof bits);
    most = most < bits ? bits : most;
  }
};

}  // namespace fastfisher::cuda
