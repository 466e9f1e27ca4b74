// SPDX-License-Identifier: Apache-2.0
//
// Kernel bodies of panel_dots and panel_combine, see panels.cu; plain C++ over a BlockContext.
// Sums meet in an order that depends on the extents alone.
#pragma once

#include "four.hpp"

#include <cstdint>

namespace fastfisher::cuda {

// Rows [e, row, n] without gaps along n.
struct PanelRows {
  void* data = nullptr;
  std::int64_t network_stride = 0, row_stride = 0, rows = 0;
};

struct PanelProblem {
  PanelRows x, y;
  double* small = nullptr;  // out or weights [e, row of y, row of x]
  std::int64_t small_strides[3] = {0, 0, 0};
  double* more = nullptr;  // if there, what dots adds its results to as well
  std::int64_t more_strides[3] = {0, 0, 0};
  std::int64_t networks = 0, n = 0;
  bool aligned = false;  // every row starts at a multiple of 16 bytes
  bool keep = false;
  double sign = 1;  // of the weights
  // If there, lower triangular [e, row of y, row of y] without gaps: combine leaves lower^-1 of its
  // result, by substitution, since an inverse would lose digits. Then one block has all rows of y.
  const double* lower = nullptr;
  // Dots: n is cut into parts of `stretch` that are added up by sum(); partial [part,e,j,i].
  std::int64_t parts = 1, stretch = 0;
  double* partial = nullptr;
};

// small[e,j,i] = <y_j, x_i>. A block takes Across rows of x and Width rows of y over all of n, or
// over a part of it where that makes more blocks of long rows.
template <class T, int Across, int Width, int Threads>
struct PanelDots {
  static constexpr int kThreads = Threads;
  static constexpr int kStretch = 16;  // fours of a thread that are added up in T
  static_assert((Threads & (Threads - 1)) == 0);

  // Threads that add up the sums of one product, and in which banks these lie.
  static constexpr int kProducts = Across * Width;
  static constexpr int kShare = Threads > kProducts ? Threads / kProducts : 1;
  static_assert(Threads % kShare == 0);

  struct Shared {
    double sums[kProducts][Threads + 4], parts[kProducts][kShare];
  };

  FF_HD static std::int64_t tasks(std::int64_t networks, std::int64_t i, std::int64_t j) {
    return networks * ((i + Across - 1) / Across) * ((j + Width - 1) / Width);
  }
  FF_HD static std::int64_t tasks(const PanelProblem& problem) {
    return problem.parts * tasks(problem.networks, problem.x.rows, problem.y.rows);
  }

  template <BlockContext Block>
  FF_HD static void run(const Block& block, Shared& shared, const PanelProblem& problem) {
    for (std::int64_t task = block.index(); task < tasks(problem); task += block.blocks()) {
      block.sync();  // the last task's sums have been read
      one(block, shared, problem, task / problem.parts, task % problem.parts);
    }
  }

  // The parts of every product, in order.
  template <BlockContext Block>
  FF_HD static void sum(const Block& block, const PanelProblem& problem) {
    const std::int64_t xs = problem.x.rows, ys = problem.y.rows, size = problem.networks * xs * ys;
    for (std::int64_t at = block.index() * Threads + block.thread(); at < size;
         at += block.blocks() * Threads) {
      double total = 0;
      for (std::int64_t part = 0; part < problem.parts; ++part)
        total += problem.partial[part * size + at];
      put(problem, at / (xs * ys), at / xs % ys, at % xs, total);
    }
  }

 private:
  template <int Count>
  FF_HD static void rows_of(const PanelRows& rows, std::int64_t e, std::int64_t first,
                            const T* (&at)[Count]) {
    for (int k = 0; k < Count; ++k) {
      // Beyond the last row any will do: its sums are not stored.
      const std::int64_t row = first + k < rows.rows ? first + k : first;
      at[k] = static_cast<const T*>(rows.data) + e * rows.network_stride + row * rows.row_stride;
    }
  }

  FF_HD static void put(const PanelProblem& problem, std::int64_t e, std::int64_t row,
                        std::int64_t other, double value) {
    problem.small[e * problem.small_strides[0] + row * problem.small_strides[1] +
                  other * problem.small_strides[2]] = value;
    if (problem.more == nullptr) return;
    problem.more[e * problem.more_strides[0] + row * problem.more_strides[1] +
                 other * problem.more_strides[2]] += value;
  }

  template <BlockContext Block>
  FF_HD static void one(const Block& block, Shared& shared, const PanelProblem& problem,
                        std::int64_t task, std::int64_t piece) {
    const std::int64_t groups = (problem.x.rows + Across - 1) / Across;
    const std::int64_t turns = (problem.y.rows + Width - 1) / Width;
    const std::int64_t j = task % turns * Width, i = task / turns % groups * Across;
    const std::int64_t e = task / (turns * groups);
    const std::int64_t start = piece * problem.stretch, stop = start + problem.stretch;
    const std::int64_t n = problem.parts > 1 && stop < problem.n ? stop : problem.n;
    const T *x[Across], *y[Width];
    rows_of(problem.x, e, i, x);
    rows_of(problem.y, e, j, y);
    const int t = block.thread();
    double total[Across][Width] = {};
    std::int64_t at = start + 4 * t;
    while (at < n) {
      T part[Across][Width] = {};
      for (int k = 0; k < kStretch && at < n; ++k, at += 4 * Threads) {
        Four<T> left[Across];
        for (int p = 0; p < Across; ++p) left[p] = load(x[p], at, problem);
        for (int q = 0; q < Width; ++q) {
          const Four<T> right = load(y[q], at, problem);
          for (int p = 0; p < Across; ++p) {
            for (int v = 0; v < 4; ++v) part[p][q] += left[p].v[v] * right.v[v];
          }
        }
      }
      for (int p = 0; p < Across; ++p) {
        for (int q = 0; q < Width; ++q) total[p][q] += static_cast<double>(part[p][q]);
      }
    }
    for (int p = 0; p < Across; ++p) {
      for (int q = 0; q < Width; ++q) shared.sums[p * Width + q][t] = total[p][q];
    }
    block.sync();
    for (int q = t; q < kProducts * kShare; q += Threads) {
      double sum = 0;
#if defined(__CUDA_ARCH__)
#pragma unroll 8
#endif
      for (int k = q % kShare; k < Threads; k += kShare) sum += shared.sums[q / kShare][k];
      shared.parts[q / kShare][q % kShare] = sum;
    }
    block.sync();
    for (int q = t; q < Across * Width; q += Threads) {
      const std::int64_t row = j + q % Width, other = i + q / Width;
      if (row >= problem.y.rows || other >= problem.x.rows) continue;
      double sum = shared.parts[q][0];
      for (int k = 1; k < kShare; ++k) sum += shared.parts[q][k];
      if (problem.parts == 1) {
        put(problem, e, row, other, sum);
      } else {
        const std::int64_t plane = piece * problem.networks + e;
        problem.partial[(plane * problem.y.rows + row) * problem.x.rows + other] = sum;
      }
    }
  }

  FF_HD static Four<T> load(const T* row, std::int64_t at, const PanelProblem& problem) {
    if (problem.aligned && at + 4 <= problem.n) return four_at(row + at);
    Four<T> four;
    for (int v = 0; v < 4; ++v) four.v[v] = at + v < problem.n ? row[at + v] : T{0};
    return four;
  }
};

// y_j = keep y_j + sum_i small[e,j,i] x_i. A block takes Columns places of Width rows of y; its
// Groups of threads share the rows of x.
template <class T, int Columns, int Groups, int Width, int Slab>
struct PanelCombine {
  static constexpr int kThreads = Columns * Groups, kVectors = Width;
  static_assert(Width % 4 == 0);

  struct Shared {
    alignas(16) T weights[Slab][Width];
    T lower[Width][Width];
    T sums[Groups][Width][Columns];
  };

  FF_HD static std::int64_t tasks(const PanelProblem& problem) {
    return problem.networks * ((problem.n + Columns - 1) / Columns) *
           ((problem.y.rows + Width - 1) / Width);
  }

  template <BlockContext Block>
  FF_HD static void run(const Block& block, Shared& shared, const PanelProblem& problem) {
    for (std::int64_t task = block.index(); task < tasks(problem); task += block.blocks())
      one(block, shared, problem, task);
  }

 private:
  template <BlockContext Block>
  FF_HD static void one(const Block& block, Shared& shared, const PanelProblem& problem,
                        std::int64_t task) {
    const std::int64_t turns = (problem.y.rows + Width - 1) / Width;
    const std::int64_t pieces = (problem.n + Columns - 1) / Columns, xs = problem.x.rows;
    const std::int64_t j = task % turns * Width, e = task / (turns * pieces);
    const std::int64_t first = task / turns % pieces * Columns;
    const int t = block.thread(), group = t / Columns, lane = t % Columns;
    // Beyond the end any column will do: its sums are not stored.
    const std::int64_t col = first + lane < problem.n ? first + lane : first;
    const T* const x = static_cast<const T*>(problem.x.data) + e * problem.x.network_stride + col;
    T acc[Width] = {};
    for (std::int64_t from = 0; from < xs; from += Slab) {
      const int count = xs - from < Slab ? static_cast<int>(xs - from) : Slab;
      block.sync();  // the last slab, or the last task's sums, have been read
      for (int q = t; q < count * Width; q += kThreads) {
        const std::int64_t row = j + q / count, i = from + q % count;
        shared.weights[q % count][q / count] =
            row < problem.y.rows
                ? static_cast<T>(
                      problem.sign *
                      problem.small[e * problem.small_strides[0] + row * problem.small_strides[1] +
                                    i * problem.small_strides[2]])
                : T{0};
      }
      block.sync();
#if defined(__CUDA_ARCH__)
#pragma unroll 8
#endif
      for (int i = group; i < count; i += Groups) {
        const T value = x[(from + i) * problem.x.row_stride];
        for (int w = 0; w < Width; w += 4) {
          const Four<T> weight = four_at(&shared.weights[i][w]);
          for (int v = 0; v < 4; ++v) acc[w + v] += weight.v[v] * value;
        }
      }
    }
    block.sync();
    for (int w = 0; w < Width; ++w) shared.sums[group][w][lane] = acc[w];
    const std::int64_t ys = problem.y.rows;
    for (int q = t; problem.lower != nullptr && q < Width * Width; q += kThreads) {
      const int row = q / Width, other = q % Width;
      shared.lower[row][other] = row < ys && other < ys
                                     ? static_cast<T>(problem.lower[(e * ys + row) * ys + other])
                                     : T{0};
    }
    block.sync();
    for (int q = t; q < Width * Columns; q += kThreads) {
      const int w = q / Columns, place = q % Columns;
      if (j + w >= problem.y.rows || first + place >= problem.n) continue;
      T sum = shared.sums[0][w][place];
      for (int other = 1; other < Groups; ++other) sum += shared.sums[other][w][place];
      T* const y = static_cast<T*>(problem.y.data) + e * problem.y.network_stride +
                   (j + w) * problem.y.row_stride + first + place;
      const T value = problem.keep ? *y + sum : sum;
      if (problem.lower == nullptr)
        *y = value;
      else
        shared.sums[0][w][place] = value;
    }
    if (problem.lower == nullptr) return;
    block.sync();
    for (int place = t; place < Columns && first + place < problem.n; place += kThreads) {
      T* y = static_cast<T*>(problem.y.data) + e * problem.y.network_stride + first + place;
      T z[Width];
      FF_UNROLL
      for (int w = 0; w < Width; ++w) {
        if (w >= ys) break;
        T sum = shared.sums[0][w][place];
        FF_UNROLL
        for (int k = 0; k < w; ++k) sum -= shared.lower[w][k] * z[k];
        z[w] = sum / shared.lower[w][w];
        *y = z[w];
        y += problem.y.row_stride;
      }
    }
  }
};

}  // namespace fastfisher::cuda
