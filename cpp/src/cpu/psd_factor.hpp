// SPDX-License-Identifier: Apache-2.0
//
// Cholesky factor of one matrix in the form in which products with its inverse are cheapest: n^3 /
// 6 multiply-adds against n^3 / 2 for the inverse, and n^2 each for a vector against n^2.
//
// A step of a block of columns, L L^T = -N_11 for N = -A, V = N_R1: W = V L^-T, N_RR += W W^T. Kept
// are L^-1 of each block, so that a substitution is made of products alone, and W = -L_R1, both as
// they lie in panels of columns (W of rows R is a left operand of L^T x) and turned (of L x).
// Products with the inverse of a block in place of substitution cost accuracy by the root of the
// block's condition, no more. Solutions are made with blocks that are factored instead, of which
// only tiles are substituted: as accurate as LAPACK's.
#pragma once

#include "lapack.hpp"
#include "parallel.hpp"
#include "psd_inverse.hpp"
#include "psd_panels.hpp"
#include "sweep_kernels.hpp"

#include <algorithm>
#include <cstdint>

namespace fastfisher::cpu {

/// What is kept of the blocks on the diagonal: L^-1, or L: -L in tiles below the diagonal, L with
/// the inverses of its diagonal in those on it.
enum class DiagonalBlocks { inverted, factored };

/// Where the parts of a factor lie: a line that says what it is, scales, panels of columns, turned
/// panels block by block.
template <class T>
struct FactorPanels {
  static constexpr std::int64_t kLine = 64 / static_cast<std::int64_t>(sizeof(T));

  std::int64_t n, width, block;
  T* line;
  T* scale;  ///< the factor is that of D A D, D = diag(scale)
  SweepPanels<T> columns;
  T* turned;

  FactorPanels(T* data, std::int64_t n_, DiagonalBlocks blocks = DiagonalBlocks::inverted)
      : n(n_),
        width(sweep_kernels<T>().width),
        block(block_of(n_, blocks)),
        line(data),
        scale(data + kLine),
        columns(scale + round_up(n_, kLine), n_, width),
        turned(columns.data + SweepPanels<T>::size(n_, width)) {}

  static constexpr std::int64_t kHuge = 6144, kHugeBlock = 384;

  /// Columns of a step. A matrix that no cache holds is read and written by each step: where no
  /// inverse of a block is needed fewer, wider ones spare that.
  static std::int64_t block_of(std::int64_t n, DiagonalBlocks blocks) {
    if (blocks == DiagonalBlocks::factored && n > kHuge) return kHugeBlock;
    return InverseSweep<T>::block_of(n, sweep_kernels<T>().width);
  }

  /// Numbers of a factor.
  static std::int64_t size(std::int64_t n, DiagonalBlocks blocks = DiagonalBlocks::inverted) {
    if (n == 0) return 0;
    const std::int64_t width = sweep_kernels<T>().width, block = block_of(n, blocks);
    const std::int64_t last = (n - 1) / block, rest = round_up(n - last * block, width);
    return kLine + round_up(n, kLine) + SweepPanels<T>::size(n, width) +
           offset(last, round_up(n, width), block) + rest * rest;
  }

  /// What no entry of the matrix is loaded into, so that nothing of what was here before stays: the
  /// line, which may say that this is a factor, the end of the scales, and in the panels the rows
  /// behind the last one and the tiles on the diagonal.
  void clear() const {
    std::fill(line, scale, T(0));
    std::fill(scale + n, columns.data, T(0));
    for (std::int64_t i = 0; i < n; i += width) {
      T* const tile = columns.row(i / width, i);
      std::fill(tile, tile + width * width, T(0));
      T* const end = columns.row(i / width, columns.rows);
      std::fill(columns.row(i / width, n), end, T(0));
    }
  }
  /// The line is written last, so that only a whole factor of this form is one.
  void sign() const {
    line[0] = static_cast<T>(n);
    line[1] = static_cast<T>(width);
    line[2] = static_cast<T>(block);
  }
  [[nodiscard]] bool is_signed() const {
    return line[0] == static_cast<T>(n) && line[1] == static_cast<T>(width) &&
           line[2] == static_cast<T>(block);
  }

  struct Step {
    std::int64_t first, end;  ///< panels of the block
    std::int64_t k, b;        ///< its rows
    T* below;                 ///< W^T, [panel behind the block][b][width]
    T* block;                 ///< L^-1 or L of the block, [panel of rows][column][width]
    std::int64_t pitch;       ///< between panels of `block`
  };

  [[nodiscard]] std::int64_t steps() const { return (n + block - 1) / block; }
  [[nodiscard]] Step step(std::int64_t s) const {
    const std::int64_t k = s * block, b = std::min(block, n - k);
    const std::int64_t first = k / width, end = (k + b + width - 1) / width;
    T* const below = turned + offset(s, columns.rows, block);
    const std::int64_t behind = (columns.rows / width - end) * b * width;
    return {first, end, k, b, below, below + behind, round_up(b, width) * width};
  }

 private:
  // Of the turned panels of s blocks, all of them full: sum of (rows behind + block) block.
  static std::int64_t offset(std::int64_t s, std::int64_t rows, std::int64_t block) {
    return s * block * rows - block * block * (s * (s - 1) / 2);
  }
};

template <class T, DiagonalBlocks Blocks = DiagonalBlocks::inverted>
class FactorSweep {
 public:
  using Panels = FactorPanels<T>;
  using Step = typename Panels::Step;

  /// Numbers of scratch.
  static std::int64_t scratch(std::int64_t n) {
    const std::int64_t width = sweep_kernels<T>().width, block = Panels::block_of(n, Blocks);
    if constexpr (Blocks == DiagonalBlocks::factored) return block * block;
    return SweepPanels<T>::size(block, width) +
           (block > width ? InverseSweep<T>::lower_scratch(block, width) : 0);
  }

  /// `panels` hold -D A D in their columns.
  FactorSweep(const Context& ctx, int threads, const Panels& panels, T* scratch)
      : kernels_(sweep_kernels<T>()),
        ctx_(ctx),
        threads_(threads),
        panels_(panels),
        columns_(panels.columns),
        width_(panels.width),
        factor_(scratch),
        inner_(Blocks == DiagonalBlocks::factored
                   ? nullptr
                   : scratch + SweepPanels<T>::size(panels.block, width_)) {}

  /// 0, or the order of the leading minor that is not positive.
  std::int64_t run() {
    for (std::int64_t s = 0; s < panels_.steps(); ++s) {
      const Step at = panels_.step(s);
      const std::int64_t bad =
          Blocks == DiagonalBlocks::factored ? factor_block(at) : invert_block(at);
      if (bad != 0) return at.k + bad;
      const std::int64_t behind = columns_.rows / width_ - at.end;
      parallel_steps(ctx_, threads_, (behind + kGroup - 1) / kGroup, [&](std::int64_t task) {
        for (std::int64_t p = task * kGroup; p < std::min(behind, (task + 1) * kGroup); ++p)
          scale(at, p);
      });
      // The last rows have the most columns: they go first.
      const std::int64_t chunk = kChunk / width_, chunks = (behind + chunk - 1) / chunk;
      parallel_steps(ctx_, threads_, chunks, [&](std::int64_t task) {
        const std::int64_t from = (chunks - 1 - task) * chunk;
        update(at, from, std::min(behind, from + chunk));
      });
    }
    return 0;
  }

 private:
  static constexpr std::int64_t kMostBlock =
      Blocks == DiagonalBlocks::factored ? Panels::kHugeBlock : InverseSweep<T>::kLargeBlock;
  static constexpr std::int64_t kGroup = 4;    // panels of a task of the products with L^-1
  static constexpr std::int64_t kChunk = 192;  // rows of a task of the update

  // L^-1 in place of the block, and turned.
  std::int64_t invert_block(const Step& at) {
    const SweepPanels<T> factor(factor_, at.b, width_);
    std::int64_t bad = 0;
    if (panels_.block == width_) {
      bad = kernels_.leaf(columns_.row(at.first, at.k), at.b, factor_);
    } else {
      for (std::int64_t q = 0; q < at.end - at.first; ++q) {
        const T* const rows = columns_.row(at.first + q, at.k + q * width_);
        std::copy(rows, rows + (factor.rows - q * width_) * width_, factor.row(q, q * width_));
      }
      bad = InverseSweep<T>::invert_lower(ctx_, at.b, factor, inner_);
    }
    if (bad != 0) return bad;
    for (std::int64_t q = 0; q < at.end - at.first; ++q) {
      std::copy(factor.row(q, q * width_), factor.row(q, factor.rows),
                columns_.row(at.first + q, at.k + q * width_));
      for (std::int64_t p = 0; p <= q; ++p)
        kernels_.transpose(factor.row(p, q * width_),
                           at.block + q * at.pitch + p * width_ * width_);
      std::fill(at.block + q * at.pitch + (q + 1) * width_ * width_, at.block + (q + 1) * at.pitch,
                T(0));
    }
    return 0;
  }

  // L of the block in its place, and turned.
  std::int64_t factor_block(const Step& at) {
    T* const square = factor_;
    for (std::int64_t i = 0; i < at.b; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) square[i * at.b + j] = -columns_(at.k + i, at.k + j);
    }
    const std::int64_t bad = factor(at.b, square, at.b);
    if (bad != 0) return bad;
    for (std::int64_t q = 0; q < at.end - at.first; ++q) {
      for (std::int64_t p = 0; p <= q; ++p) {
        // Rows of the tile are those of L: as in the panels of columns.
        T* const tile = columns_.row(at.first + p, at.k + q * width_);
        std::fill(tile, tile + width_ * width_, T(0));
        for (std::int64_t i = q * width_; i < std::min((q + 1) * width_, at.b); ++i) {
          const std::int64_t end = std::min((p + 1) * width_, i + 1);
          for (std::int64_t j = p * width_; j < end; ++j) {
            const T x = square[i * at.b + j];
            tile[(i - q * width_) * width_ + j - p * width_] = p < q ? -x : i == j ? 1 / x : x;
          }
        }
        kernels_.transpose(tile, at.block + q * at.pitch + p * width_ * width_);
      }
    }
    return 0;
  }

  T* below(const Step& at, std::int64_t behind) const { return at.below + behind * at.b * width_; }

  // W^T = L^-1 V^T for the rows of one panel, and W in place of V.
  void scale(const Step& at, std::int64_t behind) {
    alignas(64) T lines[kMostBlock * kSweepWidth];
    const std::int64_t blocks = at.end - at.first, row = (at.end + behind) * width_;
    T* const w = below(at, behind);
    for (std::int64_t q = 0; q < blocks; ++q)
      kernels_.transpose(columns_.row(at.first + q, row), lines + q * width_ * width_);
    for (std::int64_t q = 0; q < blocks; ++q) {
      const std::int64_t from = q * width_;
      const T* const block = at.block + q * at.pitch;
      if constexpr (Blocks == DiagonalBlocks::factored) {
        T* const x = w + from * width_;
        std::copy_n(lines + from * width_, width_ * width_, x);
        if (q > 0) kernels_.product(block, 0, w, from, width_, x, true);
        kernels_.substitute(block + from * width_, false, x);
      } else {
        kernels_.product(block, 0, lines, from + width_, width_, w + from * width_, false);
      }
      kernels_.transpose(w + from * width_, columns_.row(at.first + q, row));
    }
  }

  // N += W W^T on the rows of some panels behind the block.
  void update(const Step& at, std::int64_t from, std::int64_t to) {
    for (std::int64_t p = 0; p < to; ++p) {
      const std::int64_t top = std::max(from, p), row = (at.end + top) * width_;
      kernels_.product(below(at, top), at.b * width_, below(at, p), at.b,
                       std::min((at.end + to) * width_, panels_.n) - row,
                       columns_.row(at.end + p, row), true);
    }
  }

  const SweepKernels<T>& kernels_;
  const Context& ctx_;
  int threads_;
  Panels panels_;
  SweepPanels<T> columns_;
  std::int64_t width_;
  T *factor_, *inner_;
};

/// What the rows `solved` of a step, [row][width], take from those below it, in `x` from row 0 on.
template <class T>
void remove_below(const SweepKernels<T>& kernels, const FactorPanels<T>& factor,
                  const typename FactorPanels<T>::Step& at, const T* solved, T* x) {
  const std::int64_t width = factor.width;
  if (at.end < factor.columns.rows / width)
    kernels.product(at.below, at.b * width, solved, at.b, factor.n - at.end * width,
                    x + at.end * width * width, true);
}

/// The same for those above it, on the way back.
template <class T>
void remove_above(const SweepKernels<T>& kernels, const FactorPanels<T>& factor,
                  const typename FactorPanels<T>::Step& at, const T* solved, T* x) {
  const std::int64_t width = factor.width;
  for (std::int64_t p = 0; p < at.first; ++p) {
    // One panel: the pitch says where the next one to be read lies.
    const T* const left = factor.columns.row(p, at.k);
    kernels.product(left, factor.columns.row(p + 1, at.k) - left, solved, at.b, width,
                    x + p * width * width, true);
  }
}

/// x = L^-T L^-1 x for a panel [row][width] of right-hand sides, with blocks that are inverted; `y`
/// is scratch of the same size. Of rows beyond n, up to a whole panel, nothing is read and whatever
/// comes is written.
template <class T>
void substitute(const SweepKernels<T>& kernels, const FactorPanels<T>& factor, T* x, T* y) {
  const std::int64_t width = factor.width;
  for (std::int64_t s = 0; s < factor.steps(); ++s) {
    const auto at = factor.step(s);
    for (std::int64_t q = 0; q < at.end - at.first; ++q) {
      const std::int64_t from = q * width, rows = std::min(width, at.b - from);
      kernels.product(at.block + q * at.pitch, at.pitch, x + at.k * width, from + rows, rows,
                      y + (at.k + from) * width, false);
    }
    remove_below(kernels, factor, at, y + at.k * width, x);
  }
  for (std::int64_t s = factor.steps(); s-- > 0;) {
    const auto at = factor.step(s);
    for (std::int64_t q = 0; q < at.end - at.first; ++q) {
      const std::int64_t from = at.k + q * width, depth = at.k + at.b - from;
      kernels.product(factor.columns.row(at.first + q, from), 0, y + from * width, depth,
                      std::min(width, depth), x + from * width, false);
    }
    remove_above(kernels, factor, at, x + at.k * width, y);
  }
}

/// The same in place with blocks that are factored; rows of x beyond n are zero.
template <class T>
void substitute_factored(const SweepKernels<T>& kernels, const FactorPanels<T>& factor, T* x) {
  const std::int64_t width = factor.width;
  for (std::int64_t s = 0; s < factor.steps(); ++s) {
    const auto at = factor.step(s);
    T* const here = x + at.k * width;
    for (std::int64_t q = 0; q < at.end - at.first; ++q) {
      const T* const block = at.block + q * at.pitch;
      T* const mine = here + q * width * width;
      if (q > 0) kernels.product(block, 0, here, q * width, width, mine, true);
      kernels.substitute(block + q * width * width, false, mine);
    }
    remove_below(kernels, factor, at, here, x);
  }
  for (std::int64_t s = factor.steps(); s-- > 0;) {
    const auto at = factor.step(s);
    T* const here = x + at.k * width;
    for (std::int64_t q = at.end - at.first; q-- > 0;) {
      const std::int64_t behind = (q + 1) * width;
      T* const mine = here + q * width * width;
      if (behind < at.b)
        kernels.product(factor.columns.row(at.first + q, at.k + behind), 0, here + behind * width,
                        at.b - behind, width, mine, true);
      kernels.substitute(factor.columns.row(at.first + q, at.k + q * width), true, mine);
    }
    remove_above(kernels, factor, at, here, x);
  }
}

}  // namespace fastfisher::cpu
