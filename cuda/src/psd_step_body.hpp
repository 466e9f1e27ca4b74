// SPDX-License-Identifier: Apache-2.0
//
// Kernel bodies of the steps over blocks of columns of a whole list of matrices, two launches a
// step. Of an inverse the sweep is the CPU's (Bientinesi, Gunter, van de Geijn 2008): with P the
// rows done and R the rest, c holds
//   N = [  A_PP^-1               ]        and in it block 1 of R joins P:
//       [ -A_RP A_PP^-1   -S_RR  ]        L L^T = -N_11, V = N_1P^T above N_R1,
//   W = V L^-T,   N += W W^T on P and R,   V = W L^-1,   N_11 = (L L^T)^-1.
// A Cholesky factor takes the same steps without P and leaves V = L_R1. The launch of N += W W^T
// has the tile of the next diagonal block first, and goes on to its L^-1 at once: its steps one
// after another pass while other blocks of the launch work on the rest.
#pragma once

#include "psd_matrix.hpp"
#include "psd_tile.hpp"

#include <cstdint>

namespace fastfisher::cuda {

/// One launch, a task a block (a loop over tasks would keep its numbers in registers, of which
/// there are none to spare): matrices [count] that still have the step, and the first task of each.
template <class T>
struct PsdLaunch {
  const PsdMatrix<T>* matrices = nullptr;
  const std::int64_t* starts = nullptr;  ///< [count + 1]
  std::int64_t count = 0;
  std::int64_t step = 0;
  bool inverse = true;  ///< else a Cholesky factor
};

/// Blocks beside block `step` that take part in it.
FF_HD inline std::int64_t others_of(std::int64_t blocks, std::int64_t step, bool inverse) {
  return inverse ? blocks - 1 : blocks - 1 - step;
}
/// Tasks of a matrix in a launch of `PsdPanel`.
FF_HD inline std::int64_t panel_tasks(std::int64_t blocks, std::int64_t step, bool inverse) {
  return others_of(blocks, step, inverse);
}
/// Tasks of a matrix in a launch of `PsdUpdate`, beside that of its next diagonal block.
FF_HD inline std::int64_t update_tasks(std::int64_t blocks, std::int64_t step, bool inverse) {
  const std::int64_t others = others_of(blocks, step, inverse);
  return triangle(others) + (inverse ? others + 1 : 0);
}

/// Where a tile is written: rows of c or w, four numbers at a time where that fits.
template <class T>
struct TileTarget {
  T* data = nullptr;
  std::int64_t pitch = 0;
  int rows = 0, columns = 0;
  bool vector = false;
};

template <class Tile, class T>
struct PsdStep {
  static constexpr int kEdge = Tile::kEdge, kMicro = Tile::kMicro;

  FF_HD static int rows_of(const PsdMatrix<T>& matrix, std::int64_t block) {
    return static_cast<int>(least_of(kEdge, matrix.n - block * kEdge));
  }
  FF_HD static std::int64_t other(const PsdLaunch<T>& launch, std::int64_t index) {
    if (!launch.inverse) return launch.step + 1 + index;
    return index < launch.step ? index : index + 1;
  }
  FF_HD static T* tile_of(const PsdMatrix<T>& matrix, std::int64_t row, std::int64_t column) {
    return matrix.c + (row * matrix.n + column) * kEdge;
  }
  FF_HD static TileTarget<T> target(const PsdMatrix<T>& matrix, std::int64_t row,
                                    std::int64_t column) {
    return {tile_of(matrix, row, column), matrix.n, rows_of(matrix, row), rows_of(matrix, column),
            matrix.vector};
  }
  /// Columns of W^T that belong to the rows of a block.
  FF_HD static TileOperand<T> of_w(const PsdMatrix<T>& matrix, std::int64_t step,
                                   std::int64_t block) {
    return {matrix.w + block * kEdge, matrix.pitch, rows_of(matrix, block),
            rows_of(matrix, step),    false,        true};
  }
  FF_HD static TileOperand<T> of_factor(const PsdMatrix<T>& matrix, std::int64_t step,
                                        bool turned) {
    const int rows = rows_of(matrix, step);
    return {matrix.factor_of(step), matrix.factor_pitch, rows, rows, turned, true};
  }

  /// acc = target. All is on its way before the first product: after the last one every number
  /// would be waited for in turn.
  FF_HD static void read(const TileTarget<T>& target, int t, T (&acc)[kMicro][kMicro]) {
    const int ty = t / Tile::kLanes, tx = t % Tile::kLanes;
    if (target.vector) {
      FF_UNROLL
      for (int u = 0; u < kMicro; ++u) {
        const int r = Tile::place(ty, u);
        FF_UNROLL
        for (int g = 0; g < Tile::kGroups; ++g) {
          const int q = Tile::place(tx, g * 4);
          Quad<T> quad = {};
          if (r < target.rows && q < target.columns)
            quad = *reinterpret_cast<const Quad<T>*>(target.data + r * target.pitch + q);
          FF_UNROLL
          for (int i = 0; i < 4; ++i) acc[u][g * 4 + i] = quad.v[i];
        }
      }
      return;
    }
    FF_UNROLL
    for (int u = 0; u < kMicro; ++u) {
      const int r = Tile::place(ty, u);
      FF_UNROLL
      for (int v = 0; v < kMicro; ++v) {
        const int q = Tile::place(tx, v);
        const bool inside = r < target.rows && q < target.columns;
        acc[u][v] = inside ? target.data[r * target.pitch + q] : T(0);
      }
    }
  }

  /// target = acc.
  FF_HD static void store(const TileTarget<T>& target, int t, const T (&acc)[kMicro][kMicro]) {
    const int ty = t / Tile::kLanes, tx = t % Tile::kLanes;
    if (target.vector) {
      FF_UNROLL
      for (int u = 0; u < kMicro; ++u) {
        const int r = Tile::place(ty, u);
        FF_UNROLL
        for (int g = 0; g < Tile::kGroups; ++g) {
          const int q = Tile::place(tx, g * 4);
          if (r >= target.rows || q >= target.columns) continue;
          Quad<T> quad;
          FF_UNROLL
          for (int i = 0; i < 4; ++i) quad.v[i] = acc[u][g * 4 + i];
          *reinterpret_cast<Quad<T>*>(target.data + r * target.pitch + q) = quad;
        }
      }
      return;
    }
    FF_UNROLL
    for (int u = 0; u < kMicro; ++u) {
      const int r = Tile::place(ty, u);
      FF_UNROLL
      for (int v = 0; v < kMicro; ++v) {
        const int q = Tile::place(tx, v);
        if (r < target.rows && q < target.columns) target.data[r * target.pitch + q] = acc[u][v];
      }
    }
  }
};

/// W^T = L^-1 V^T for the rows of one block a task; of a Cholesky factor V = -W as well.
template <class Tile, class T>
struct PsdPanel : PsdStep<Tile, T> {
  using Base = PsdStep<Tile, T>;
  using Shared = typename Tile::Shared;
  static constexpr int kThreads = Tile::kThreads, kMinBlocks = 2;
  static constexpr bool kTaskABlock = true;

  PsdLaunch<T> launch;
  explicit PsdPanel(const PsdLaunch<T>& given) : launch(given) {}

  template <BlockContext Block>
  FF_HD void run(const Block& block, Shared& shared) const {
    const std::int64_t task = block.index();
    const std::int64_t at = find_start(launch.starts, launch.count, task);
    const PsdMatrix<T>& matrix = launch.matrices[at];
    const std::int64_t step = launch.step;
    const std::int64_t row = Base::other(launch, task - launch.starts[at]);
    const bool done = row < step;
    const TileOperand<T> v = {done ? Base::tile_of(matrix, step, row)
                                   : Base::tile_of(matrix, row, step),
                              matrix.n,
                              Base::rows_of(matrix, row),
                              Base::rows_of(matrix, step),
                              !done,
                              matrix.vector};
    T acc[Tile::kMicro][Tile::kMicro];
    Tile::clear(acc);
    Tile::product(block, shared, Base::of_factor(matrix, step, true), v, acc);
    Base::store({matrix.w + row * Tile::kEdge, matrix.pitch, Base::rows_of(matrix, step),
                 Base::rows_of(matrix, row), true},
                block.thread(), acc);
    if (!launch.inverse) store_turned(matrix, row, block.thread(), acc);
  }

 private:
  // Entries of other tasks are not read from V, so it may be overwritten.
  FF_HD void store_turned(const PsdMatrix<T>& matrix, std::int64_t row, int t,
                          const T (&acc)[Tile::kMicro][Tile::kMicro]) const {
    const TileTarget<T> target = Base::target(matrix, row, launch.step);
    const int ty = t / Tile::kLanes, tx = t % Tile::kLanes;
    FF_UNROLL
    for (int v = 0; v < Tile::kMicro; ++v) {
      const int r = Tile::place(tx, v);
      FF_UNROLL
      for (int u = 0; u < Tile::kMicro; ++u) {
        const int q = Tile::place(ty, u);
        if (r < target.rows && q < target.columns) target.data[r * target.pitch + q] = -acc[u][v];
      }
    }
  }
};

/// N += W W^T, V = W L^-1, N_11 = L^-T L^-1, and L^-1 of the next diagonal block. With step -1 only
/// that.
template <class Tile, class T>
struct PsdUpdate : PsdStep<Tile, T> {
  using Base = PsdStep<Tile, T>;
  using Shared = typename Tile::Shared;
  static constexpr int kThreads = Tile::kThreads, kMinBlocks = 2;
  static constexpr bool kTaskABlock = true;
  static constexpr int kMicro = Tile::kMicro;

  PsdLaunch<T> launch;
  explicit PsdUpdate(const PsdLaunch<T>& given) : launch(given) {}

  template <BlockContext Block>
  FF_HD void run(const Block& block, Shared& shared) const {
    // The diagonal blocks come first: they take longest.
    const std::int64_t index = block.index();
    if (index < launch.count) {
      factorise(block, shared, launch.matrices[index]);
    } else {
      const std::int64_t task = index - launch.count;
      const std::int64_t at = find_start(launch.starts, launch.count, task);
      multiply(block, shared, launch.matrices[at], task - launch.starts[at]);
    }
  }

 private:
  FF_HD bool plan(const PsdMatrix<T>& matrix, std::int64_t task, TileOperand<T>& p,
                  TileOperand<T>& q, TileTarget<T>& target, bool& add) const {
    const std::int64_t step = launch.step;
    const std::int64_t others = others_of(blocks_of(matrix.n, Tile::kEdge), step, launch.inverse);
    if (task < triangle(others)) {
      const std::int64_t i = triangle_row(task);
      const std::int64_t row = Base::other(launch, i);
      const std::int64_t column = Base::other(launch, task - triangle(i));
      if (row == column && row == step + 1) return false;  // the next diagonal block
      p = Base::of_w(matrix, step, row);
      q = Base::of_w(matrix, step, column);
      target = Base::target(matrix, row, column);
      add = true;
      return true;
    }
    task -= triangle(others);
    p = q = Base::of_factor(matrix, step, false);
    target = Base::target(matrix, step, step);
    if (task == others) return true;
    const std::int64_t row = Base::other(launch, task);
    if (row < step) {
      q = Base::of_w(matrix, step, row);
      target = Base::target(matrix, step, row);
    } else {
      p = Base::of_w(matrix, step, row);
      target = Base::target(matrix, row, step);
    }
    return true;
  }

  template <BlockContext Block>
  FF_HD void multiply(const Block& block, Shared& shared, const PsdMatrix<T>& matrix,
                      std::int64_t task) const {
    TileOperand<T> p, q;
    TileTarget<T> target;
    bool add = false;
    if (!plan(matrix, task, p, q, target, add)) return;
    T acc[kMicro][kMicro];
    if (add) {
      Base::read(target, block.thread(), acc);
    } else {
      Tile::clear(acc);
    }
    Tile::product(block, shared, p, q, acc);
    Base::store(target, block.thread(), acc);
  }

  template <BlockContext Block>
  FF_HD void factorise(const Block& block, Shared& shared, const PsdMatrix<T>& matrix) const {
    const int t = block.thread(), ty = t / Tile::kLanes, tx = t % Tile::kLanes;
    const std::int64_t next = launch.step + 1;
    if (next >= blocks_of(matrix.n, Tile::kEdge)) return;
    const TileTarget<T> target = Base::target(matrix, next, next);
    // S = -(N + W W^T): of diagonal blocks N has both halves.
    T acc[kMicro][kMicro];
    Base::read(target, t, acc);
    if (launch.step >= 0) {
      const TileOperand<T> w = Base::of_w(matrix, launch.step, next);
      Tile::product(block, shared, w, w, acc);
    }
    FF_UNROLL
    for (int u = 0; u < kMicro; ++u) {
      FF_UNROLL
      for (int v = 0; v < kMicro; ++v) acc[u][v] = -acc[u][v];
    }
    const int bad = Tile::eliminate(block, shared, target.rows, acc);
    if (bad != 0) {
      if (t == 0 && matrix.state->minor == 0) matrix.state->minor = next * Tile::kEdge + bad;
      return;
    }
    T inverse[kMicro];
    Tile::roots(block, shared, target.rows, acc, inverse);
    FF_UNROLL
    for (int u = 0; u < kMicro; ++u) {
      FF_UNROLL
      for (int v = 0; v < kMicro; ++v) acc[u][v] *= inverse[u];
    }
    if (!launch.inverse) {
      FF_UNROLL
      for (int u = 0; u < kMicro; ++u) {
        const int r = Tile::place(ty, u);
        FF_UNROLL
        for (int v = 0; v < kMicro; ++v) {
          const int q = Tile::place(tx, v);
          if (q >= r && q < target.rows) target.data[q * target.pitch + r] = acc[u][v];
        }
      }
    }
    FF_UNROLL
    for (int u = 0; u < kMicro; ++u) {
      const int r = Tile::place(ty, u);
      FF_UNROLL
      for (int v = 0; v < kMicro; ++v) {
        const int q = Tile::place(tx, v);
        acc[u][v] = q < r ? acc[u][v] : q == r ? inverse[u] : T(0);
      }
    }
    const int pitch = static_cast<int>(matrix.factor_pitch);
    Base::store({matrix.factor_of(next), pitch, target.rows, pitch, true}, t, acc);
  }
};

}  // namespace fastfisher::cuda
