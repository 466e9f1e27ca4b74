// SPDX-License-Identifier: Apache-2.0
//
// Kernel bodies of the dense Gram, see gram.cu; plain C++ over a BlockContext. An entry's sums run
// over depth in order, in one thread: neither the tile nor the launch changes a bit.
#pragma once

#include "block.hpp"
#include "scan_body.hpp"

#include <cmath>
#include <cstdint>

namespace fastfisher::cuda {

// Rows of one product in strided memory: row r is (r / inner, r % inner), depth k is (k / run, k %
// run). All strides count elements.
struct Rows {
  const void* data = nullptr;
  std::int64_t inner = 1, outer_stride = 0, inner_stride = 0;
  std::int64_t run = 1, run_stride = 0, depth_stride = 0;
  std::int64_t depth = 0;
  std::int64_t plane_stride = 0;  // outputs = diagonal: plane c starts c of these further on
  double scale = 1;               // power of two that entries are multiplied with when read
  bool across = false;            // neighbours in memory are rows, not depths
};

struct Layer {
  Rows a[2], g[2];        // left, right
  double fold_bias = 0;   // bias times the scales of a
  double fold_scale = 1;  // takes the scales out again
};

// Where entry (r, q) of a plane lies in the output.
struct Target {
  void* data = nullptr;
  std::int64_t row_inner = 1, row_outer_stride = 0, row_inner_stride = 0;
  std::int64_t col_inner = 1, col_outer_stride = 0, col_inner_stride = 0;
  std::int64_t plane_stride = 0;

  [[nodiscard]] FF_HD std::int64_t row(std::int64_t r) const {
    return r / row_inner * row_outer_stride + r % row_inner * row_inner_stride;
  }
  [[nodiscard]] FF_HD std::int64_t col(std::int64_t q) const {
    return q / col_inner * col_outer_stride + q % col_inner * col_inner_stride;
  }
};

struct Problem {
  std::int64_t rows = 0, cols = 0, planes = 1;
  std::int64_t left_outputs = 1, right_outputs = 1;  // rows that share a sample
  int layers = 0;
  bool square = false;
  Target target;
};

// S: type of the factors and the output. T: type of the products. A block of Lanes^2 threads owns
// tiles of Edge^2 entries, Micro^2 of them a thread, and reads Depth depths at a time.
template <class S, class T, int Edge, int Depth, int Lanes>
struct GramTile {
  static constexpr int kThreads = Lanes * Lanes;
  static constexpr int kMicro = Edge / Lanes;
  static_assert(Edge % Lanes == 0);

  struct Shared {
    T left[Depth][Edge + 1], right[Depth][Edge + 1];  // one more: columns in different banks
    T samples[Edge][Edge + 1];                        // P of the samples that the tile touches
    std::int64_t left_rows[Edge], right_rows[Edge];   // their offsets in memory
  };

  FF_HD static std::int64_t tiles_of(const Problem& problem) {
    const std::int64_t down = (problem.rows + Edge - 1) / Edge;
    const std::int64_t across = (problem.cols + Edge - 1) / Edge;
    return problem.planes * (problem.square ? down * (down + 1) / 2 : down * across);
  }

  // All tiles of the problem, or when square those on and below the diagonal.
  template <BlockContext Block>
  FF_HD static void run(const Block& block, Shared& shared, const Problem& problem,
                        const Layer* layers, std::uint64_t* overflow) {
    const std::int64_t tiles = tiles_of(problem), plane_tiles = tiles / problem.planes;
    const std::int64_t across = (problem.cols + Edge - 1) / Edge;
    for (std::int64_t index = block.index(); index < tiles; index += block.blocks()) {
      const std::int64_t at = index % plane_tiles;
      std::int64_t i = at / across, j = at % across;
      if (problem.square) {
        // Triangular numbers; the root may be off by one on either side.
        i = static_cast<std::int64_t>((std::sqrt(8.0 * static_cast<double>(at) + 1) - 1) / 2);
        while (i * (i + 1) / 2 > at) --i;
        while ((i + 1) * (i + 2) / 2 <= at) ++i;
        j = at - i * (i + 1) / 2;
      }
      tile(block, shared, problem, layers, overflow, index / plane_tiles, i * Edge, j * Edge);
    }
  }

 private:
  // A stretch of rows of one factor, at most Edge of them.
  struct Operand {
    const Rows* rows;
    std::int64_t first;
    int count;
    std::int64_t offset;
  };

  FF_HD static int at_most_edge(std::int64_t count) {
    return count < Edge ? static_cast<int>(count) : Edge;
  }

  template <BlockContext Block>
  FF_HD static void tile(const Block& block, Shared& shared, const Problem& problem,
                         const Layer* layers, std::uint64_t* overflow, std::int64_t plane,
                         std::int64_t row, std::int64_t col) {
    const int ty = block.thread() / Lanes, tx = block.thread() % Lanes;
    const int rows = at_most_edge(problem.rows - row), cols = at_most_edge(problem.cols - col);
    const std::int64_t n = row / problem.left_outputs, m = col / problem.right_outputs;
    const int ns = static_cast<int>((row + rows - 1) / problem.left_outputs - n) + 1;
    const int ms = static_cast<int>((col + cols - 1) / problem.right_outputs - m) + 1;
    int sample_row[kMicro], sample_col[kMicro];
    for (int u = 0; u < kMicro; ++u) {
      // Beyond the edge of the output any sample will do: those entries are not stored.
      const int r = ty + u * Lanes, q = tx + u * Lanes;
      sample_row[u] = r < rows ? static_cast<int>((row + r) / problem.left_outputs - n) : 0;
      sample_col[u] = q < cols ? static_cast<int>((col + q) / problem.right_outputs - m) : 0;
    }

    double acc[kMicro][kMicro] = {};
    for (int index = 0; index < problem.layers; ++index) {
      const Layer& layer = layers[index];
      T sums[kMicro][kMicro];
      product(block, shared, {&layer.a[0], n, ns, 0}, {&layer.a[1], m, ms, 0}, sums);
      for (int u = 0; u < kMicro; ++u) {
        for (int v = 0; v < kMicro; ++v)
          shared.samples[ty + u * Lanes][tx + v * Lanes] = sums[u][v];
      }
      // Its barriers also publish `samples`, and keep the next layer from overwriting them too
      // soon.
      product(block, shared, {&layer.g[0], row, rows, plane * layer.g[0].plane_stride},
              {&layer.g[1], col, cols, plane * layer.g[1].plane_stride}, sums);
      for (int u = 0; u < kMicro; ++u) {
        for (int v = 0; v < kMicro; ++v) {
          const auto p = static_cast<double>(shared.samples[sample_row[u]][sample_col[v]]);
          acc[u][v] += (p + layer.fold_bias) * layer.fold_scale * static_cast<double>(sums[u][v]);
        }
      }
    }
    store(problem, plane, row, rows, col, cols, ty, tx, acc, block, overflow);
  }

  // sums[u][v] = <row ty + u Lanes of x, row tx + v Lanes of y>; zero beyond their counts.
  template <BlockContext Block>
  FF_HD static void product(const Block& block, Shared& shared, const Operand& x, const Operand& y,
                            T (&sums)[kMicro][kMicro]) {
    const int ty = block.thread() / Lanes, tx = block.thread() % Lanes;
    for (int u = 0; u < kMicro; ++u) {
      for (int v = 0; v < kMicro; ++v) sums[u][v] = 0;
    }
    block.sync();  // the product before, and the fold after it, have read what changes now
    locate(block, x, shared.left_rows);
    locate(block, y, shared.right_rows);
    for (std::int64_t from = 0; from < x.rows->depth; from += Depth) {
      block.sync();
      stage(block, x, from, shared.left_rows, shared.left);
      stage(block, y, from, shared.right_rows, shared.right);
      block.sync();
      for (int k = 0; k < Depth; ++k) {
        T left[kMicro], right[kMicro];
        for (int u = 0; u < kMicro; ++u) {
          left[u] = shared.left[k][ty + u * Lanes];
          right[u] = shared.right[k][tx + u * Lanes];
        }
        for (int u = 0; u < kMicro; ++u) {
          // The same for the whole block: with many outputs a tile has few samples.
          if (u * Lanes >= x.count) continue;
          for (int v = 0; v < kMicro; ++v) {
            if (v * Lanes < y.count) sums[u][v] += left[u] * right[v];
          }
        }
      }
    }
  }

  template <BlockContext Block>
  FF_HD static void locate(const Block& block, const Operand& x, std::int64_t* to) {
    const Rows& rows = *x.rows;
    for (int r = block.thread(); r < x.count; r += kThreads) {
      const std::int64_t row = x.first + r;
      to[r] =
          x.offset + row / rows.inner * rows.outer_stride + row % rows.inner * rows.inner_stride;
    }
  }

  template <BlockContext Block>
  FF_HD static void stage(const Block& block, const Operand& x, std::int64_t from,
                          const std::int64_t* offsets, T (*to)[Edge + 1]) {
    const Rows& rows = *x.rows;
    const auto scale = static_cast<T>(rows.scale);
    for (int e = block.thread(); e < Edge * Depth; e += kThreads) {
      const int k = rows.across ? e / Edge : e % Depth, r = rows.across ? e % Edge : e / Depth;
      const std::int64_t depth = from + k;
      T value = 0;
      if (r < x.count && depth < rows.depth) {
        const std::int64_t along = depth < rows.run ? depth * rows.depth_stride
                                                    : depth / rows.run * rows.run_stride +
                                                          depth % rows.run * rows.depth_stride;
        value = static_cast<T>(static_cast<const S*>(rows.data)[offsets[r] + along]) * scale;
      }
      to[k][r] = value;
    }
  }

  // The thread's entries, and when square the mirror image of those below the diagonal.
  template <BlockContext Block>
  FF_HD static void store(const Problem& problem, std::int64_t plane, std::int64_t row, int rows,
                          std::int64_t col, int cols, int ty, int tx,
                          const double (&acc)[kMicro][kMicro], const Block& block,
                          std::uint64_t* overflow) {
    const Target& target = problem.target;
    S* out = static_cast<S*>(target.data) + plane * target.plane_stride;
    bool bad = false;
    for (int u = 0; u < kMicro; ++u) {
      const std::int64_t r = row + ty + u * Lanes;
      for (int v = 0; v < kMicro; ++v) {
        const std::int64_t q = col + tx + v * Lanes;
        if (r >= row + rows || q >= col + cols || (problem.square && q > r)) continue;
        const auto value = static_cast<S>(acc[u][v]);
        bad = bad || !(std::abs(value) <= kLargest<S>);
        out[target.row(r) + target.col(q)] = value;
        if (problem.square && q < r) out[target.row(q) + target.col(r)] = value;
      }
    }
    if (bad) block.atomic_max(overflow, 1);
  }
};

}  // namespace fastfisher::cuda
