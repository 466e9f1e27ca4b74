// SPDX-License-Identifier: Apache-2.0
//
// Rows packed for tensor cores: float32 as sums of three bfloat16, in panels of Edge rows by 32
// depths, padded with zeros, that lie in memory as shared memory wants them. Panels of a block of
// rows follow one another along the depth, blocks of rows down the rows.
#pragma once

#include "rows.hpp"

#include <cstddef>
#include <cstdint>

namespace fastfisher::cuda {

// 16 bytes, moved at once.
struct alignas(16) Words {
  std::uint32_t word[4];
};

template <int Edge>
struct Panels {
  static constexpr int kEdge = Edge, kDepth = 32;
  static constexpr int kTermBytes = Edge * kDepth * 2;
  static constexpr int kBytes = kTerms * kTermBytes;

  FF_HD static constexpr std::int64_t chunks(std::int64_t depth) {
    return (depth + kDepth - 1) / kDepth;
  }
  FF_HD static constexpr std::int64_t blocks(std::int64_t rows) { return (rows + Edge - 1) / Edge; }
  FF_HD static constexpr std::int64_t bytes(std::int64_t rows, std::int64_t depth) {
    return blocks(rows) * chunks(depth) * kBytes;
  }

  // Bytes from the start of a term to depth k of row r: rows of 64 bytes whose four pieces of 16
  // change places from row pair to row pair, so that eight rows of a piece lie in different banks.
  FF_HD static constexpr int offset(int r, int k) {
    return r * 64 + (k / 8 ^ (r / 2 & 3)) * 16 + k % 8 * 2;
  }

  FF_HD static const std::byte* at(const Rows& rows, std::int64_t plane, std::int64_t block) {
    return rows.panels + plane * rows.panels_stride + block * chunks(rows.depth) * kBytes;
  }
};

struct PackProblem {
  Rows rows;
  std::int64_t count = 0, planes = 1;  // of rows
  bool inputs = false;                 // rows of a, not of g
  std::byte* out = nullptr;
};

// Two threads a row of a panel, one panel after the other.
template <int Edge>
struct Pack {
  using P = Panels<Edge>;
  static constexpr int kThreads = 2 * Edge;
  struct Shared {};

  FF_HD static std::int64_t panels_of(const PackProblem& problem) {
    return problem.planes * P::blocks(problem.count) * P::chunks(problem.rows.depth);
  }

  template <BlockContext Block>
  FF_HD static void run(const Block& block, const PackProblem& problem) {
    const std::int64_t panels = panels_of(problem), chunks = P::chunks(problem.rows.depth);
    const std::int64_t blocks = P::blocks(problem.count);
    // Rows that lie side by side are read by neighbouring threads.
    const bool across = problem.rows.across;
    const int t = block.thread(), r = across ? t % Edge : t / 2;
    const int half = (across ? t / Edge : t % 2) * 16;
    for (std::int64_t panel = block.index(); panel < panels; panel += block.blocks()) {
      const std::int64_t chunk = panel % chunks, rest = panel / chunks;
      const std::int64_t row = rest % blocks * Edge + r, plane = rest / blocks;
      std::byte* const out = problem.out + panel * P::kBytes;
      const std::int64_t from = chunk * P::kDepth + half;
      FF_UNROLL
      for (int piece = 0; piece < 16; piece += 8) {
        float values[8];
        read(problem, row, plane, from + piece, values);
        std::uint32_t words[kTerms][4];
        FF_UNROLL
        for (int k = 0; k < 4; ++k) {
          std::uint32_t pairs[kTerms];
          split(values[2 * k], values[2 * k + 1], pairs);
          FF_UNROLL
          for (int term = 0; term < kTerms; ++term) words[term][k] = pairs[term];
        }
        FF_UNROLL
        for (int term = 0; term < kTerms; ++term) {
          std::byte* const to = out + term * P::kTermBytes + P::offset(r, half + piece);
          *reinterpret_cast<Words*>(to) = {words[term][0], words[term][1], words[term][2],
                                           words[term][3]};
        }
      }
    }
  }

 private:
  FF_HD static void read(const PackProblem& problem, std::int64_t row, std::int64_t plane,
                         std::int64_t from, float (&values)[8]) {
    const Rows& rows = problem.rows;
    const std::int64_t start =
        row < problem.count ? rows.row(row) + plane * rows.plane_stride : std::int64_t{0};
    if (rows.access == Access::vectors && row < problem.count && from + 8 <= rows.depth) {
      const auto* const pieces =
          reinterpret_cast<const Words*>(static_cast<const float*>(rows.data) + start + from);
      FF_UNROLL
      for (int piece = 0; piece < 2; ++piece) {
        const Words four = pieces[piece];
        FF_UNROLL
        for (int k = 0; k < 4; ++k) values[4 * piece + k] = float_of(four.word[k]);
      }
      return;
    }
    const auto scale = static_cast<float>(rows.scale);
    FF_UNROLL
    for (int k = 0; k < 8; ++k) {
      const bool valid = row < problem.count && from + k < rows.depth;
      values[k] = valid
                      ? element<float>(rows.data, rows.dtype, start + rows.along(from + k)) * scale
                      : 0.0F;
    }
  }
};

}  // namespace fastfisher::cuda
