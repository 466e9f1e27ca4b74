// SPDX-License-Identifier: Apache-2.0
//
// Kernel bodies of solutions x = D L^-T L^-1 D b with the factor L of D A D that PsdUpdate leaves,
// L^-1 of its diagonal blocks kept. One block a strip of columns goes down the blocks of rows and
// up again; each number of L is read once a direction and strip.
#pragma once

#include "psd_matrix.hpp"

#include <cstdint>

namespace fastfisher::cuda {

/// out = D b before, out = D out after, `parts` blocks a matrix; entries that are not finite are
/// reported as those of b, or as an overflow.
template <class T, class Pass>
struct PsdSides {
  static constexpr int kThreads = Pass::kThreads, kMinBlocks = 2;
  struct Shared {};
  const PsdMatrix<T>* matrices;
  std::int64_t count, parts;
  bool after;

  template <BlockContext Block>
  FF_HD void run(const Block& block, Shared&) const {
    for (std::int64_t task = block.index(); task < count * parts; task += block.blocks()) {
      const PsdMatrix<T> m = matrices[task / parts];
      std::uint64_t bad = 0;
      for (std::int64_t e = task % parts * kThreads + block.thread(); e < m.n * m.columns;
           e += parts * kThreads) {
        const std::int64_t i = e / m.columns, j = e % m.columns;
        const T x = after ? m.out[e] * m.scale[i] : m.b[i * m.b_row_stride + j * m.b_column_stride];
        if (!is_finite(static_cast<double>(x)) && bad == 0)
          bad = PsdState::kFirst - static_cast<std::uint64_t>(e);
        m.out[e] = after ? x : x * m.scale[i];
      }
      if (bad != 0) block.atomic_max(after ? &m.state->overflow : &m.state->bad_side, bad);
    }
  }
};

/// out = L^-T L^-1 out, a strip of columns a task.
template <class T, int Edge>
struct PsdSubstitute {
  static constexpr int kColumns = 16, kHalf = kColumns / 2;
  static constexpr int kThreads = 2 * Edge, kMinBlocks = 1;
  struct Shared {
    T tile[Edge][Edge + 1];
    T x[Edge][kColumns];
  };
  const PsdMatrix<T>* matrices;
  const std::int64_t* starts;  ///< strips of the matrices [count + 1]
  std::int64_t count;

  template <BlockContext Block>
  FF_HD void run(const Block& block, Shared& shared) const {
    for (std::int64_t task = block.index(); task < starts[count]; task += block.blocks()) {
      const std::int64_t at = find_start(starts, count, task);
      const PsdMatrix<T> m = matrices[at];
      const std::int64_t from = (task - starts[at]) * kColumns;
      const std::int64_t blocks = blocks_of(m.n, Edge);
      for (std::int64_t s = 0; s < blocks; ++s) one(block, shared, m, from, s, 0, s, false);
      for (std::int64_t s = blocks; s-- > 0;) one(block, shared, m, from, s, s + 1, blocks, true);
    }
  }

 private:
  // Rows of one block: x_s = L_ss^-1 (y_s - sum_t L_st x_t), or with the transposes.
  template <BlockContext Block>
  FF_HD static void one(const Block& block, Shared& shared, const PsdMatrix<T>& m,
                        std::int64_t from, std::int64_t s, std::int64_t first, std::int64_t end,
                        bool up) {
    const int r = block.thread() % Edge, left = block.thread() / Edge * kHalf;
    const int rows = static_cast<int>(least_of(Edge, m.n - s * Edge));
    const int columns = static_cast<int>(least_of(kColumns, m.columns - from));
    T* const mine = m.out + (s * Edge + r) * m.columns + from;
    T acc[kHalf];
    for (int v = 0; v < kHalf; ++v) acc[v] = r < rows && left + v < columns ? mine[left + v] : T(0);
    for (std::int64_t t = first; t < end; ++t) {
      const int others = static_cast<int>(least_of(Edge, m.n - t * Edge));
      block.sync();
      read(block, shared, m.c + ((up ? t : s) * m.n + (up ? s : t)) * Edge, m.n, up ? others : rows,
           up ? rows : others);
      for (int e = block.thread(); e < Edge * kColumns; e += kThreads) {
        const int i = e / kColumns, v = e % kColumns;
        shared.x[i][v] =
            i < others && v < columns ? m.out[(t * Edge + i) * m.columns + from + v] : T(0);
      }
      block.sync();
      T sums[kHalf];
      times(shared, r, left, others, up, sums);
      for (int v = 0; v < kHalf; ++v) acc[v] -= sums[v];
    }
    block.sync();
    read(block, shared, m.factor_of(s), m.factor_pitch, rows, rows);
    for (int v = 0; v < kHalf; ++v) shared.x[r][left + v] = acc[v];
    block.sync();
    times(shared, r, left, rows, up, acc);
    for (int v = 0; v < kHalf; ++v) {
      if (r < rows && left + v < columns) mine[left + v] = acc[v];
    }
    block.sync();  // the next rows read what was written
  }

  template <BlockContext Block>
  FF_HD static void read(const Block& block, Shared& shared, const T* data, std::int64_t pitch,
                         int rows, int columns) {
    for (int e = block.thread(); e < Edge * Edge; e += kThreads) {
      const int i = e / Edge, j = e % Edge;
      shared.tile[i][j] = i < rows && j < columns ? data[i * pitch + j] : T(0);
    }
  }

  FF_HD static void times(const Shared& shared, int r, int left, int depth, bool up,
                          T (&sums)[kHalf]) {
    for (int v = 0; v < kHalf; ++v) sums[v] = 0;
    for (int k = 0; k < depth; ++k) {
      const T factor = up ? shared.tile[k][r] : shared.tile[r][k];
      for (int v = 0; v < kHalf; ++v) sums[v] += factor * shared.x[k][left + v];
    }
  }
};

}  // namespace fastfisher::cuda
