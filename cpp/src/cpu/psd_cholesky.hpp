// SPDX-License-Identifier: Apache-2.0
//
// Cholesky factor of one matrix in place, lower triangle, packed row-major, by blocks of columns:
// with R the rows after block 1, L L^T = S_11, Z = S_R1 L^-T, S_RR -= Z Z^T. The pieces depend on n
// alone, so that the bits do not depend on who computes them.
#pragma once

#include "lapack.hpp"
#include "parallel.hpp"

#include <algorithm>
#include <cstdint>

namespace fastfisher::cpu {

template <class T>
class Cholesky {
 public:
  Cholesky(const Context& ctx, int threads, std::int64_t n, T* c)
      : ctx_(ctx), threads_(threads), n_(n), block_(block_of(n)), tile_(tile_of(n)), c_(c) {}

  /// 0, or the order of the leading minor that is not positive.
  std::int64_t run() {
    if (n_ <= block_) return factor(n_, c_, n_);
    for (std::int64_t k = 0; k < n_; k += block_) {
      const std::int64_t bad = step(k, std::min(block_, n_ - k));
      if (bad != 0) return k + bad;
    }
    return 0;
  }

 private:
  // Beyond the caches each step reads and writes what is left of the matrix: wider steps, fewer of
  // them; the rows of a piece share one packing of the columns.
  static constexpr std::int64_t kLarge = 2048, kHuge = 8192;
  static std::int64_t block_of(std::int64_t n) {
    return n <= kLarge ? 128 : n <= kHuge ? 256 : 384;
  }
  static std::int64_t tile_of(std::int64_t n) {
    return n <= kLarge ? 256 : n <= kHuge ? 512 : 1024;
  }

  T* at(std::int64_t i, std::int64_t j) const { return c_ + i * n_ + j; }

  std::int64_t step(std::int64_t k, std::int64_t width) {
    const std::int64_t next = k + width;
    const std::int64_t bad = factor(width, at(k, k), n_);
    if (bad != 0) return bad;
    const std::int64_t tiles = (n_ - next + tile_ - 1) / tile_;
    parallel_steps(ctx_, threads_, tiles, [&](std::int64_t tile) {
      const std::int64_t from = next + tile * tile_, rows = std::min(tile_, n_ - from);
      solve_lower(Side::right, Op::transposed, rows, width, T(1), at(k, k), n_, at(from, k), n_);
    });
    // The last tiles have the most columns: they go first.
    parallel_steps(ctx_, threads_, tiles, [&](std::int64_t tile) {
      const std::int64_t from = next + (tiles - 1 - tile) * tile_;
      const std::int64_t rows = std::min(tile_, n_ - from);
      add_product(Op::plain, Op::transposed, rows, from - next, width, T(-1), at(from, k), n_,
                  at(next, k), n_, at(from, next), n_);
      add_square(Op::plain, rows, width, T(-1), at(from, k), n_, at(from, from), n_);
    });
    return 0;
  }

  const Context& ctx_;
  int threads_;
  std::int64_t n_, block_, tile_;
  T* c_;
};

}  // namespace fastfisher::cpu
