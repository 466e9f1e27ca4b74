// SPDX-License-Identifier: Apache-2.0
//
// Kernel body of symmetry, see symm.cu: largest |a_ij| and largest |a_ij - a_ji| in one read.
#pragma once

#include "element.hpp"

#include <cmath>
#include <cstdint>

namespace fastfisher::cuda {

struct SymmetryInput {
  const void* a = nullptr;
  std::int64_t network_stride = 0, row_stride = 0, col_stride = 0;
  std::int64_t n = 0, networks = 0;
  std::int64_t share = 1;        // blocks of a network
  std::uint64_t* out = nullptr;  // [e, 2], the bits of a double
  std::int64_t out_strides[2] = {0, 0};
};

// Squares of Edge^2 entries and their mirror images, by Edge x Lanes threads. A thread asks for all
// that it reads of both before it waits for any.
template <class T, int Edge, int Lanes>
struct Symmetry {
  static constexpr int kThreads = Edge * Lanes;
  static constexpr int kReads = Edge / Lanes;
  static_assert((kThreads & (kThreads - 1)) == 0);
  using Bits = decltype(bits_of(T{}));

  struct Shared {
    T mirror[Edge][Edge + 1];  // one more: columns in different banks
    Bits largest[kThreads], apart[kThreads];
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
    Bits largest = 0, apart = 0;
    for (std::int64_t square = first; square < squares(input.n); square += input.share) {
      auto i =
          static_cast<std::int64_t>((std::sqrt(8.0 * static_cast<double>(square) + 1) - 1) / 2);
      while (i * (i + 1) / 2 > square) --i;
      while ((i + 1) * (i + 2) / 2 <= square) ++i;
      const std::int64_t row = i * Edge, col = (square - i * (i + 1) / 2) * Edge;
      block.sync();  // the last square has been compared
      T here[kReads], there[kReads];
      read(input, a, row + ty, col + tx, here);
      read(input, a, col + ty, row + tx, there);
      for (int u = 0; u < kReads; ++u) {
        keep_larger(largest, there[u]);
        shared.mirror[ty + u * Lanes][tx] = there[u];
      }
      block.sync();
      for (int u = 0; u < kReads; ++u) {
        keep_larger(largest, here[u]);
        keep_larger(apart, here[u] - shared.mirror[tx][ty + u * Lanes]);
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
    block.atomic_max(out, widened(shared.largest[0]));
    block.atomic_max(out + input.out_strides[1], widened(shared.apart[0]));
  }

  // Every Lanes-th entry of a column from (row, col) on, zeros for those that there are not.
  FF_HD static void read(const SymmetryInput& input, const T* a, std::int64_t row, std::int64_t col,
                         T (&to)[kReads]) {
    const T* next = a + row * input.row_stride + col * input.col_stride;
    const std::int64_t step = Lanes * input.row_stride;
    if (col < input.n && row + (kReads - 1) * Lanes < input.n) {
      FF_UNROLL
      for (int u = 0; u < kReads; ++u, next += step) to[u] = *next;
    } else {
      FF_UNROLL
      for (int u = 0; u < kReads; ++u, next += step)
        to[u] = col < input.n && row + u * Lanes < input.n ? *next : T{0};
    }
  }

  // Magnitudes of floats order like their bits read as unsigned integers, NaN above all.
  FF_HD static void keep_larger(Bits& most, T value) {
    const Bits bits = bits_of(std::abs(value));
    most = most < bits ? bits : most;
  }
  FF_HD static std::uint64_t widened(std::uint32_t bits) {
    return bits_of(static_cast<double>(float_of(bits)));
  }
  FF_HD static std::uint64_t widened(std::uint64_t bits) { return bits; }
};

}  // namespace fastfisher::cuda
