// SPDX-License-Identifier: Apache-2.0
//
// Kernel bodies of the passes over a list of matrices before and after the arithmetic: powers of
// two, reading the lower triangle, mirroring, norms, pivots. All bytes are read and written once,
// whatever the strides, by square tiles through shared memory.
#pragma once

#include "psd_matrix.hpp"

#include <cstdint>

namespace fastfisher::cuda {

/// Edge of the tiles of a pass, threads of its blocks.
template <int Edge, int Threads>
struct PassSize {
  static constexpr int kEdge = Edge, kThreads = Threads;
};

/// Powers of two that bring the diagonal of A + damping I to between 1 and 4; where it is not
/// positive, that of the largest entry. One matrix a block.
template <class T, class Pass>
struct PsdBalance {
  static constexpr int kThreads = Pass::kThreads, kMinBlocks = 1;
  struct Shared {
    double values[kThreads];
  };
  const PsdMatrix<T>* matrices;
  std::int64_t count;

  template <BlockContext Block>
  FF_HD void run(const Block& block, Shared& shared) const {
    for (std::int64_t k = block.index(); k < count; k += block.blocks()) {
      const PsdMatrix<T> m = matrices[k];
      double high = 0, magnitude = 0;
      for (std::int64_t i = block.thread(); i < m.n; i += kThreads) {
        const double x = at(m, i), y = x + m.damping;
        if (is_finite(y) && y > high) high = y;
        if (std::abs(x) > magnitude) magnitude = std::abs(x);
      }
      high = largest_of_block<kThreads>(block, shared.values, high);
      magnitude = largest_of_block<kThreads>(block, shared.values, magnitude);
      double widest = 0;
      for (std::int64_t i = block.thread(); i < m.n; i += kThreads) {
        const double x = at(m, i) + m.damping;
        const T scale = x > 0 && is_finite(x) ? balancing<T>(x)
                        : high > 0            ? balancing<T>(high)
                                              : T(1);
        m.scale[i] = scale;
        if (static_cast<double>(scale) > widest) widest = static_cast<double>(scale);
      }
      widest = largest_of_block<kThreads>(block, shared.values, widest);
      if (block.thread() != 0) continue;
      m.state->largest = magnitude;
      m.state->a_power = power_near_double(magnitude + m.damping);
      // Entries of the result are those of an inverse of norm one or more times two scales.
      const std::int64_t power = 2 * power_near_double(widest);
      m.state->x_power = power > 1020 ? 1020 : power < -1020 ? -1020 : power;
    }
  }

 private:
  FF_HD static double at(const PsdMatrix<T>& m, std::int64_t i) {
    return static_cast<double>(element<T>(m.a, m.dtype, i * (m.row_stride + m.column_stride)));
  }
};

/// A tile of a pass: its matrix and its place.
struct PassTile {
  std::int64_t matrix, row, column;
};

FF_HD inline PassTile pass_tile(const std::int64_t* starts, std::int64_t count, std::int64_t task) {
  const std::int64_t matrix = find_start(starts, count, task), index = task - starts[matrix];
  const std::int64_t row = triangle_row(index);
  return {matrix, row, index - triangle(row)};
}

/// Sums of magnitudes over the rows and columns of a tile of a lower triangle: of row i of the
/// matrix, tile b adds to sums[b, i].
template <class Pass, class T, BlockContext Block>
FF_HD void add_up(const Block& block, const T (&tile)[Pass::kEdge][Pass::kEdge + 1], double unit,
                  const PassTile& place, const PsdMatrix<T>& m) {
  const bool diagonal = place.row == place.column;
  for (int e = block.thread(); e < (diagonal ? 1 : 2) * Pass::kEdge; e += Pass::kThreads) {
    const int t = e % Pass::kEdge;
    const bool down = e >= Pass::kEdge;
    const std::int64_t of = down ? place.column : place.row;
    const std::int64_t along = down ? place.row : place.column;
    const std::int64_t i = of * Pass::kEdge + t;
    if (i >= m.n) continue;
    const int end = static_cast<int>(least_of(Pass::kEdge, m.n - along * Pass::kEdge));
    double sum = 0;
    for (int k = 0; k < end; ++k) {
      const bool turned = down || (diagonal && k > t);
      sum += std::abs(static_cast<double>(turned ? tile[k][t] : tile[t][k])) * unit;
    }
    m.sums[along * m.n + i] = sum;
  }
}

/// c = -D (A + damping I) D, the lower triangle and all of the blocks of Edge rows on the diagonal,
/// with sums if they are asked for.
template <class T, class Pass, int Edge>
struct PsdLoad {
  static constexpr int kThreads = Pass::kThreads, kMinBlocks = 2;
  struct Shared {
    T tile[Pass::kEdge][Pass::kEdge + 1];
  };
  const PsdMatrix<T>* matrices;
  const std::int64_t* starts;
  std::int64_t count;

  template <BlockContext Block>
  FF_HD void run(const Block& block, Shared& shared) const {
    for (std::int64_t task = block.index(); task < starts[count]; task += block.blocks()) {
      const PassTile place = pass_tile(starts, count, task);
      const PsdMatrix<T> m = matrices[place.matrix];
      const bool across = std::abs(m.row_stride) < std::abs(m.column_stride);
      std::uint64_t bad = 0;
      block.sync();
      for (int e = block.thread(); e < Pass::kEdge * Pass::kEdge; e += kThreads) {
        const int r = across ? e % Pass::kEdge : e / Pass::kEdge;
        const int q = across ? e / Pass::kEdge : e % Pass::kEdge;
        const std::int64_t i = place.row * Pass::kEdge + r, j = place.column * Pass::kEdge + q;
        T x = 0;
        if (i < m.n && j <= i) {
          x = element<T>(m.a, m.dtype, i * m.row_stride + j * m.column_stride);
          if (!is_finite(static_cast<double>(x))) {
            const std::uint64_t first = PsdState::kFirst - static_cast<std::uint64_t>(i * m.n + j);
            bad = first > bad ? first : bad;
          }
        }
        shared.tile[r][q] = x;
      }
      if (bad != 0) block.atomic_max(&m.state->bad, bad);
      block.sync();
      for (int e = block.thread(); e < Pass::kEdge * Pass::kEdge; e += kThreads) {
        const int r = e / Pass::kEdge, q = e % Pass::kEdge;
        const std::int64_t i = place.row * Pass::kEdge + r, j = place.column * Pass::kEdge + q;
        if (i >= m.n || j > i) continue;
        T x = shared.tile[r][q] * m.scale[i] * m.scale[j];
        if (i == j && m.damping != 0) {
          // First one factor, then the other: their product may overflow.
          const double scale = static_cast<double>(m.scale[i]);
          x = static_cast<T>((static_cast<double>(shared.tile[r][q]) + m.damping) * scale * scale);
        }
        m.c[i * m.n + j] = -x;
        if (i / Edge == j / Edge) m.c[j * m.n + i] = -x;
      }
      if (m.sums == nullptr) continue;
      if (m.damping != 0 && place.row == place.column) {
        block.sync();
        for (int t = block.thread(); t < Pass::kEdge; t += kThreads)
          shared.tile[t][t] = static_cast<T>(static_cast<double>(shared.tile[t][t]) + m.damping);
        block.sync();
      }
      add_up<Pass>(block, shared.tile, power_of_two(-m.state->a_power), place, m);
    }
  }
};

/// out = D C D and its mirror image, with sums.
template <class T, class Pass>
struct PsdStoreInverse {
  static constexpr int kThreads = Pass::kThreads, kMinBlocks = 2;
  struct Shared {
    T tile[Pass::kEdge][Pass::kEdge + 1];
  };
  const PsdMatrix<T>* matrices;
  const std::int64_t* starts;
  std::int64_t count;

  template <BlockContext Block>
  FF_HD void run(const Block& block, Shared& shared) const {
    for (std::int64_t task = block.index(); task < starts[count]; task += block.blocks()) {
      const PassTile place = pass_tile(starts, count, task);
      const PsdMatrix<T> m = matrices[place.matrix];
      block.sync();
      for (int e = block.thread(); e < Pass::kEdge * Pass::kEdge; e += kThreads) {
        const int r = e / Pass::kEdge, q = e % Pass::kEdge;
        const std::int64_t i = place.row * Pass::kEdge + r, j = place.column * Pass::kEdge + q;
        T x = 0;
        if (i < m.n && j <= i) {
          x = m.c[i * m.n + j] * m.scale[i] * m.scale[j];
          m.out[i * m.n + j] = x;
        }
        shared.tile[r][q] = x;
      }
      block.sync();
      for (int e = block.thread(); e < Pass::kEdge * Pass::kEdge; e += kThreads) {
        const int r = e % Pass::kEdge, q = e / Pass::kEdge;
        const std::int64_t i = place.row * Pass::kEdge + r, j = place.column * Pass::kEdge + q;
        if (i < m.n && j < i) m.out[j * m.n + i] = shared.tile[r][q];
      }
      add_up<Pass>(block, shared.tile, power_of_two(-m.state->x_power), place, m);
    }
  }
};

/// out = D^-1 C below the diagonal, zeros above.
template <class T, class Pass>
struct PsdStoreFactor {
  static constexpr int kThreads = Pass::kThreads, kMinBlocks = 2;
  struct Shared {};
  const PsdMatrix<T>* matrices;
  const std::int64_t* starts;
  std::int64_t count;

  template <BlockContext Block>
  FF_HD void run(const Block& block, Shared&) const {
    for (std::int64_t task = block.index(); task < starts[count]; task += block.blocks()) {
      const PassTile place = pass_tile(starts, count, task);
      const PsdMatrix<T> m = matrices[place.matrix];
      for (int e = block.thread(); e < Pass::kEdge * Pass::kEdge; e += kThreads) {
        const int r = e / Pass::kEdge, q = e % Pass::kEdge;
        const std::int64_t i = place.row * Pass::kEdge + r, j = place.column * Pass::kEdge + q;
        if (i < m.n && j <= i) m.out[i * m.n + j] = m.c[i * m.n + j] * (1 / m.scale[i]);
        const std::int64_t above = place.column * Pass::kEdge + r;
        const std::int64_t right = place.row * Pass::kEdge + q;
        if (right < m.n && above < right) m.out[above * m.n + right] = 0;
      }
    }
  }
};

/// Infinity norms from the sums of a pass: `parts` blocks a matrix.
template <class T, class Pass>
struct PsdNorm {
  static constexpr int kThreads = Pass::kThreads, kMinBlocks = 2;
  struct Shared {
    double values[kThreads];
  };
  const PsdMatrix<T>* matrices;
  std::int64_t count, parts;
  bool of_result;

  template <BlockContext Block>
  FF_HD void run(const Block& block, Shared& shared) const {
    for (std::int64_t task = block.index(); task < count * parts; task += block.blocks()) {
      const PsdMatrix<T> m = matrices[task / parts];
      const std::int64_t tiles = blocks_of(m.n, Pass::kEdge);
      double high = 0;
      for (std::int64_t i = task % parts * kThreads + block.thread(); i < m.n;
           i += parts * kThreads) {
        double sum = 0;
        for (std::int64_t k = 0; k < tiles; ++k) sum += m.sums[k * m.n + i];
        // NaN counts as infinity.
        if (!is_finite(sum)) sum = double_of(std::uint64_t{0x7ff} << 52);
        high = sum > high ? sum : high;
      }
      high = largest_of_block<kThreads>(block, shared.values, high);
      // Magnitudes of floats order like their bits read as unsigned integers.
      if (block.thread() == 0)
        block.atomic_max(of_result ? &m.state->x_norm : &m.state->a_norm, bits_of(high));
    }
  }
};

/// Least and greatest pivot of D^-1 C. One matrix a block.
template <class T, class Pass>
struct PsdPivots {
  static constexpr int kThreads = Pass::kThreads, kMinBlocks = 1;
  struct Shared {
    double values[kThreads];
  };
  const PsdMatrix<T>* matrices;
  std::int64_t count;

  template <BlockContext Block>
  FF_HD void run(const Block& block, Shared& shared) const {
    for (std::int64_t k = block.index(); k < count; k += block.blocks()) {
      const PsdMatrix<T> m = matrices[k];
      const double infinity = double_of(std::uint64_t{0x7ff} << 52);
      double high = 0, low = -infinity;
      for (std::int64_t i = block.thread(); i < m.n; i += kThreads) {
        const double x = static_cast<double>(m.c[i * m.n + i]) / static_cast<double>(m.scale[i]);
        high = x > high ? x : high;
        low = -x > low ? -x : low;
      }
      high = largest_of_block<kThreads>(block, shared.values, high);
      low = largest_of_block<kThreads>(block, shared.values, low);
      if (block.thread() == 0) {
        m.state->high = high;
        m.state->low = -low;
      }
    }
  }
};

/// `size` numbers NaN: outputs of matrices that failed.
template <class T, class Pass>
struct PsdVoid {
  static constexpr int kThreads = Pass::kThreads, kMinBlocks = 1;
  struct Shared {};
  T* data;
  std::int64_t size, stride;

  template <BlockContext Block>
  FF_HD void run(const Block& block, Shared&) const {
    const T nan = static_cast<T>(double_of(std::uint64_t{0x7ff8} << 48));
    for (std::int64_t k = block.index() * kThreads + block.thread(); k < size;
         k += block.blocks() * kThreads)
      data[k * stride] = nan;
  }
};

}  // namespace fastfisher::cuda
