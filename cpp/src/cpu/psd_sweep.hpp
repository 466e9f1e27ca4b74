// SPDX-License-Identifier: Apache-2.0
//
// Cholesky factor or inverse of one matrix in place, lower triangle, packed row-major, in one sweep
// over blocks of columns (Bientinesi, Gunter, van de Geijn 2008, "Families of algorithms related to
// the inversion of a symmetric positive definite matrix"). Before a step, with P the rows done and
// R the rest,
//   C = [ A_PP^-1             ]        and after it block 1 of R has joined P:
//       [ A_RP A_PP^-1   S_RR ]        L L^T = S_11, Y = L^-1 M_1P, Z = S_21 L^-T,
//   X_PP += Y^T Y, M_2P -= Z Y, S_22 -= Z Z^T, X_1P = -L^-T Y, M_21 = Z L^-1, X_11 = (L L^T)^-1.
// n^3 / 2 multiply-adds in all, nearly all of them in one symmetric update a step that is as large
// as the matrix: the factor, its inverse and their product one after another have the same count in
// smaller pieces. Cholesky leaves out what concerns P. The pieces depend on n alone, so that the
// bits do not depend on who computes them.
#pragma once

#include "lapack.hpp"
#include "parallel.hpp"

#include <algorithm>
#include <cstdint>

namespace fastfisher::cpu {

inline constexpr std::int64_t kSweepBlock = 128;  ///< columns of a step
inline constexpr std::int64_t kSweepTile = 256;   ///< rows of a piece of the update

template <class T>
class Sweep {
 public:
  Sweep(const Context& ctx, int threads, std::int64_t n, T* c, bool invert)
      : ctx_(ctx), threads_(threads), n_(n), c_(c), invert_(invert) {}

  /// 0, or the order of the leading minor that is not positive.
  std::int64_t run() {
    if (n_ <= kSweepBlock) {
      const std::int64_t bad = factor(n_, c_, n_);
      if (bad == 0 && invert_) invert_factored(n_, c_, n_);
      return bad;
    }
    for (std::int64_t k = 0; k < n_; k += kSweepBlock) {
      const std::int64_t bad = step(k, std::min(kSweepBlock, n_ - k));
      if (bad != 0) return k + bad;
    }
    return 0;
  }

 private:
  T* at(std::int64_t i, std::int64_t j) const { return c_ + i * n_ + j; }

  std::int64_t step(std::int64_t k, std::int64_t width) {
    const std::int64_t next = k + width, done = invert_ ? k : 0;
    const std::int64_t bad = factor(width, at(k, k), n_);
    if (bad != 0) return bad;
    const std::int64_t above = (done + kSweepTile - 1) / kSweepTile;
    const std::int64_t tiles = above + (n_ - next + kSweepTile - 1) / kSweepTile;
    const auto span = [&](std::int64_t tile) {
      const std::int64_t from =
          tile < above ? tile * kSweepTile : next + (tile - above) * kSweepTile;
      return Span{from, std::min(from + kSweepTile, tile < above ? done : n_), tile < above};
    };
    each(tiles, [&](std::int64_t tile) { scale(span(tile), k, width); });
    // The last tiles have the most columns: they go first.
    each(tiles, [&](std::int64_t tile) { update(span(tiles - 1 - tile), k, width); });
    if (!invert_) return 0;
    each(tiles, [&](std::int64_t tile) { finish(span(tile), k, width); });
    invert_factored(width, at(k, k), n_);
    return 0;
  }

  struct Span {
    std::int64_t from, to;
    bool inverted;  ///< of the rows done
    [[nodiscard]] std::int64_t size() const { return to - from; }
  };

  void scale(const Span& rows, std::int64_t k, std::int64_t width) {
    if (rows.inverted) {
      solve_lower(Side::left, Op::plain, width, rows.size(), T(1), at(k, k), n_, at(k, rows.from),
                  n_);
    } else {
      solve_lower(Side::right, Op::transposed, rows.size(), width, T(1), at(k, k), n_,
                  at(rows.from, k), n_);
    }
  }

  void update(const Span& rows, std::int64_t k, std::int64_t width) {
    const std::int64_t next = k + width, from = rows.from, size = rows.size();
    if (rows.inverted) {
      add_product(Op::transposed, Op::plain, size, from, width, T(1), at(k, from), n_, at(k, 0), n_,
                  at(from, 0), n_);
      add_square(Op::transposed, size, width, T(1), at(k, from), n_, at(from, from), n_);
      return;
    }
    if (invert_) {
      add_product(Op::plain, Op::plain, size, k, width, T(-1), at(from, k), n_, at(k, 0), n_,
                  at(from, 0), n_);
    }
    add_product(Op::plain, Op::transposed, size, from - next, width, T(-1), at(from, k), n_,
                at(next, k), n_, at(from, next), n_);
    add_square(Op::plain, size, width, T(-1), at(from, k), n_, at(from, from), n_);
  }

  void finish(const Span& rows, std::int64_t k, std::int64_t width) {
    if (rows.inverted) {
      solve_lower(Side::left, Op::transposed, width, rows.size(), T(-1), at(k, k), n_,
                  at(k, rows.from), n_);
    } else {
      solve_lower(Side::right, Op::plain, rows.size(), width, T(1), at(k, k), n_, at(rows.from, k),
                  n_);
    }
  }

  template <class Function>
  void each(std::int64_t tiles, const Function& function) {
    if (threads_ > 1) {
      parallel_for(ctx_, threads_, tiles, [&](std::int64_t tile, int) { function(tile); });
    } else {
      for (std::int64_t tile = 0; tile < tiles; ++tile) function(tile);
    }
  }

  const Context& ctx_;
  int threads_;
  std::int64_t n_;
  T* c_;
  bool invert_;
};

}  // namespace fastfisher::cpu
