// SPDX-License-Identifier: Apache-2.0
//
// Inverse of one matrix in a sweep over blocks of columns (Bientinesi, Gunter, van de Geijn 2008,
// "Families of algorithms related to the inversion of a symmetric positive definite matrix").
// Before a step, with P the rows done and R the rest, the lower triangle holds
//   N = [  A_PP^-1               ]        and in it block 1 of R joins P:
//       [ -A_RP A_PP^-1   -S_RR  ]        L L^T = -N_11, V = N_1P^T above N_R1,
//   W = V L^-T,   N += W W^T on P and R,   V = W L^-1,   N_11 = (L L^T)^-1.
// At first N = -A, at the end A^-1, and no sign in between. n^3 / 2 multiply-adds in all, n - b
// parts of n in one symmetric update a step that is as large as the matrix: factor, its inverse and
// their product one after another have the same count in smaller pieces. L^-1 comes of the same
// sweep over the block, which stops at the rows of L^-1: what it holds of P is not updated.
// Products with the inverse of a block in place of substitution cost accuracy by the root of the
// block's condition, no more.
//
// N lies in panels (see psd_panels.hpp), which are operands of products as they lie. The pieces
// depend on n alone, so that the bits do not depend on who computes them.
#pragma once

#include "parallel.hpp"
#include "psd_panels.hpp"
#include "sweep_kernels.hpp"

#include <algorithm>
#include <cstdint>

namespace fastfisher::cpu {

template <class T>
class InverseSweep {
 public:
  /// Numbers of scratch beside the panels of the matrix.
  static std::int64_t scratch(std::int64_t n) {
    const std::int64_t width = sweep_kernels<T>().width, block = block_of(n, width);
    return own(n, block, width) + (block > width ? lower_scratch(block, width) : 0);
  }

  InverseSweep(const Context& ctx, int threads, std::int64_t n, const SweepPanels<T>& matrix,
               T* scratch)
      : InverseSweep(ctx, threads, n, matrix, scratch, block_of(n, matrix.width), true) {}

  /// Columns of a step, by the size of the matrix.
  static std::int64_t block_of(std::int64_t n, std::int64_t width) {
    return n <= kSmall ? width : n <= kLarge ? kBlock : kLargeBlock;
  }
  static constexpr std::int64_t kLargeBlock = 192;  ///< of one where no cache holds the matrix

  /// L^-1 in place of -A = L L^T of b <= kLargeBlock rows; 0, or the order of the leading minor
  /// that is not positive.
  static std::int64_t invert_lower(const Context& ctx, std::int64_t b, const SweepPanels<T>& matrix,
                                   T* scratch) {
    return InverseSweep(ctx, 1, b, matrix, scratch, matrix.width, false).run();
  }
  static std::int64_t lower_scratch(std::int64_t b, std::int64_t width) {
    return own(b, width, width);
  }

  /// 0, or the order of the leading minor that is not positive.
  std::int64_t run() {
    for (std::int64_t k = 0; k < n_; k += block_) {
      const std::int64_t bad = step(k, std::min(block_, n_ - k));
      if (bad != 0) return k + bad;
    }
    return 0;
  }

 private:
  static constexpr std::int64_t kBlock = 96;  // columns of a step
  static constexpr std::int64_t kSmall = 128, kLarge = 1280;
  static constexpr std::int64_t kChunk = 192;  // rows of a task of the update
  static constexpr std::int64_t kGroup = 4;    // panels of a task of the products with L^-1

  static std::int64_t own(std::int64_t n, std::int64_t block, std::int64_t width) {
    return (round_up(n, width) + block) * block + SweepPanels<T>::size(block, width);
  }

  InverseSweep(const Context& ctx, int threads, std::int64_t n, const SweepPanels<T>& matrix,
               T* scratch, std::int64_t block, bool whole)
      : kernels_(sweep_kernels<T>()),
        ctx_(ctx),
        threads_(threads),
        n_(n),
        width_(matrix.width),
        block_(block),
        whole_(whole),
        matrix_(matrix),
        w_(scratch),
        turned_(w_ + matrix.rows * block),
        factor_(turned_ + block * block),
        inner_(factor_ + SweepPanels<T>::size(block, width_)) {}

  std::int64_t step(std::int64_t k, std::int64_t b) {
    const Step at{k / width_, (k + b + width_ - 1) / width_, k, b, {factor_, b, width_}};
    const std::int64_t bad = invert_factor(at);
    if (bad != 0) return bad;
    const std::int64_t panels = matrix_.rows / width_, others = panels - (at.end - at.first);
    const auto other = [&](std::int64_t p) { return p < at.first ? p : p + at.end - at.first; };
    parallel_steps(ctx_, threads_, (others + kGroup - 1) / kGroup, [&](std::int64_t task) {
      for (std::int64_t p = task * kGroup; p < std::min(others, (task + 1) * kGroup); ++p)
        scale(at, other(p));
    });
    // The last rows have the most columns: they go first.
    const std::int64_t chunk = kChunk / width_;
    const std::int64_t above = whole_ ? (at.first + chunk - 1) / chunk : 0;
    const std::int64_t chunks = above + (panels - at.end + chunk - 1) / chunk;
    parallel_steps(ctx_, threads_, chunks, [&](std::int64_t task) {
      const std::int64_t c = chunks - 1 - task;
      if (c < above) {
        update(at, c * chunk, std::min((c + 1) * chunk, at.first));
      } else {
        const std::int64_t from = at.end + (c - above) * chunk;
        update(at, from, std::min(from + chunk, panels));
      }
    });
    parallel_steps(ctx_, threads_, (others + kGroup - 1) / kGroup, [&](std::int64_t task) {
      for (std::int64_t p = task * kGroup; p < std::min(others, (task + 1) * kGroup); ++p)
        finish(at, other(p));
    });
    finish_block(at);
    return 0;
  }

  struct Step {
    std::int64_t first, end;  ///< panels of the block
    std::int64_t k, b;        ///< its rows
    SweepPanels<T> factor;    ///< L^-1
  };

  // L^-1 of the block, and its panels on the left of V.
  std::int64_t invert_factor(const Step& at) {
    std::int64_t bad = 0;
    if (block_ == width_) {
      bad = kernels_.leaf(matrix_.row(at.first, at.k), at.b, factor_);
    } else {
      for (std::int64_t p = at.first; p < at.end; ++p) {
        const std::int64_t from = (p - at.first) * width_;
        const T* const rows = matrix_.row(p, at.k + from);
        std::copy(rows, rows + (at.factor.rows - from) * width_, at.factor.row(p - at.first, from));
      }
      bad = invert_lower(ctx_, at.b, at.factor, inner_);
    }
    if (bad != 0) return bad;
    for (std::int64_t q = 0; q < at.end - at.first; ++q) {
      for (std::int64_t p = 0; p <= q; ++p)
        kernels_.transpose(at.factor.row(p, q * width_), turned(at, q) + p * width_ * width_);
    }
    return 0;
  }

  T* turned(const Step& at, std::int64_t q) const { return turned_ + q * at.factor.rows * width_; }
  T* w(std::int64_t panel) const { return w_ + panel * block_ * width_; }

  // W^T = L^-1 V^T for the rows of one panel.
  void scale(const Step& at, std::int64_t panel) {
    alignas(64) T lines[kLargeBlock * kSweepWidth];
    const T* v = lines;
    if (panel < at.first) {
      v = matrix_.row(panel, at.k);
    } else {
      for (std::int64_t q = at.first; q < at.end; ++q)
        kernels_.transpose(matrix_.row(q, panel * width_),
                           lines + (q - at.first) * width_ * width_);
    }
    for (std::int64_t q = 0; q < at.end - at.first; ++q) {
      const std::int64_t from = q * width_, rows = std::min(width_, at.b - from);
      kernels_.product(turned(at, q), 0, v, from + rows, rows, w(panel) + from * width_, false);
    }
  }

  // N += W W^T on the rows of some panels.
  void update(const Step& at, std::int64_t from, std::int64_t to) {
    for (std::int64_t panel = 0; panel < to; ++panel) {
      if (panel == at.first) panel = at.end;
      if (panel >= to) return;
      const std::int64_t top = std::max(from, panel);
      kernels_.product(w(top), block_ * width_, w(panel), at.b,
                       std::min(to * width_, n_) - top * width_, matrix_.row(panel, top * width_),
                       true);
    }
  }

  // V = W L^-1. The rows of L^-1 are W^T as it is.
  void finish(const Step& at, std::int64_t panel) {
    alignas(64) T lines[kLargeBlock * kSweepWidth];
    const bool done = panel < at.first;
    T* const out = done ? matrix_.row(panel, at.k) : lines;
    if (done && !whole_) {
      std::copy(w(panel), w(panel) + at.b * width_, out);
      return;
    }
    for (std::int64_t q = 0; q < at.end - at.first; ++q) {
      const std::int64_t from = q * width_;
      kernels_.product(at.factor.row(q, from), 0, w(panel) + from * width_, at.b - from,
                       std::min(width_, at.b - from), out + from * width_, false);
    }
    for (std::int64_t q = at.first; q < at.end && !done; ++q)
      kernels_.transpose(lines + (q - at.first) * width_ * width_, matrix_.row(q, panel * width_));
  }

  // L^-T L^-1 in place of the block, or L^-1.
  void finish_block(const Step& at) {
    for (std::int64_t q = 0; q < at.end - at.first; ++q) {
      const std::int64_t from = q * width_;
      T* const out = matrix_.row(at.first + q, at.k + from);
      if (!whole_) {
        std::copy(at.factor.row(q, from), at.factor.row(q, at.factor.rows), out);
        continue;
      }
      for (std::int64_t i = from; i < at.b; i += width_)
        kernels_.product(at.factor.row(i / width_, i), 0, at.factor.row(q, i), at.b - i,
                         std::min(width_, at.b - i), out + (i - from) * width_, false);
    }
  }

  const SweepKernels<T>& kernels_;
  const Context& ctx_;
  int threads_;
  std::int64_t n_, width_, block_;
  bool whole_;
  SweepPanels<T> matrix_;
  T *w_, *turned_, *factor_, *inner_;
};

}  // namespace fastfisher::cpu
