// SPDX-License-Identifier: Apache-2.0
//
// Solutions x = D (D A D)^-1 D b, D = diag(scale), from a factor of D A D: a square, or, but
// for small matrices, panels of columns.
#pragma once

#include "fastfisher/ops.hpp"
#include "lapack.hpp"
#include "parallel.hpp"
#include "psd_factor.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace fastfisher::cpu {

/// Rows from which the factor is made in panels, blocks of several: of fewer LAPACK's is as fast.
inline constexpr std::int64_t kPanelSolve = 129;

/// Whether the matrix is worked on in panels, see psd_panels.hpp.
inline bool in_panels(PsdTask task, std::int64_t n) {
  return task == PsdTask::inverse || task == PsdTask::factor ||
         (task == PsdTask::solve && n >= kPanelSolve);
}

/// Panels of right-hand sides that are solved side by side.
inline constexpr int kSolvers = 8;

/// Numbers of one of them.
template <class T>
std::int64_t solver_panel(std::int64_t n) {
  const std::int64_t width = sweep_kernels<T>().width;
  return round_up(n, width) * width;
}

/// From L, row-major, into out[n][k]. False if a number of it is not finite, as below.
template <class T>
bool solve_by_square(const Context& ctx, int threads, std::int64_t n, const T* factor,
                     const T* scale, const View<const T, 2>& b, T* out) {
  const std::int64_t k = b.extent(1);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < k; ++j) out[i * k + j] = b(i, j) * scale[i];
  }
  constexpr std::int64_t kColumns = 64;
  parallel_for(ctx, threads, ceil_div(k, kColumns), [&](std::int64_t task, int) {
    const std::int64_t from = task * kColumns, width = std::min(kColumns, k - from);
    solve_lower(Side::left, Op::plain, n, width, T(1), factor, n, out + from, k);
    solve_lower(Side::left, Op::transposed, n, width, T(1), factor, n, out + from, k);
  });
  int bad = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < k; ++j) {
      const T x = out[i * k + j] *= scale[i];
      bad |= static_cast<int>(is_bad(x));
    }
  }
  return bad == 0;
}

/// From panels whose blocks are factored. A column's bits do not depend on the others.
template <class T>
bool solve_by_panels(const Context& ctx, int threads, const FactorPanels<T>& factor, const T* scale,
                     const View<const T, 2>& b, T* const (&panels)[kSolvers], T* out) {
  const std::int64_t n = factor.n, k = b.extent(1), width = factor.width;
  std::atomic<bool> good{true};
  const auto strip = [&](std::int64_t task, int worker) {
    T* const x = panels[worker];
    const std::int64_t first = task * width, count = std::min(width, k - first);
    std::fill(x, x + solver_panel<T>(n), T(0));
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < count; ++j) x[i * width + j] = b(i, first + j) * scale[i];
    }
    substitute_factored(sweep_kernels<T>(), factor, x);
    int bad = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < count; ++j) {
        const T value = x[i * width + j] * scale[i];
        out[i * k + first + j] = value;
        bad |= static_cast<int>(is_bad(value));
      }
    }
    if (bad != 0) good = false;
  };
  parallel_for(ctx, std::min(threads, kSolvers), ceil_div(k, width), strip);
  return good;
}

}  // namespace fastfisher::cpu
