// SPDX-License-Identifier: Apache-2.0
//
// Eigenvalues and eigenvectors of small symmetric float64 matrices, one a task: Householder
// tridiagonalisation and implicit QL (Bowdler, Martin, Reinsch and Wilkinson 1968, as in EISPACK's
// tred2 and tql2), about 6 m^3 flops. Vectors are kept as rows, so that rotations run along memory.
// No LAPACK: one with threads of its own stalls where cores are shared.
#include "backend.hpp"
#include "parallel.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace fastfisher::cpu {
namespace {

constexpr double kSerialWork = 1e5;
constexpr int kMostSweeps = 60;

struct Problem {
  std::int64_t m;
  std::vector<double> v;  // [m][m], row j is column j of tred2's V
  std::vector<double> d, e;

  double& at(std::int64_t row, std::int64_t column) {
    return v[static_cast<std::size_t>(column * m + row)];
  }
  double* column(std::int64_t k) { return v.data() + k * m; }

  void tridiagonalise();
  void diagonalise();
};

void Problem::tridiagonalise() {
  double* const dd = d.data();
  double* const ee = e.data();
  for (std::int64_t j = 0; j < m; ++j) dd[j] = at(m - 1, j);
  for (std::int64_t i = m - 1; i > 0; --i) {
    double scale = 0, h = 0;
    for (std::int64_t k = 0; k < i; ++k) scale += std::abs(dd[k]);
    if (scale == 0) {
      ee[i] = dd[i - 1];
      for (std::int64_t j = 0; j < i; ++j) {
        dd[j] = at(i - 1, j);
        at(i, j) = 0;
        at(j, i) = 0;
      }
    } else {
      for (std::int64_t k = 0; k < i; ++k) {
        dd[k] /= scale;
        h += dd[k] * dd[k];
      }
      double f = dd[i - 1];
      double g = f > 0 ? -std::sqrt(h) : std::sqrt(h);
      ee[i] = scale * g;
      h -= f * g;
      dd[i - 1] = f - g;
      std::fill(ee, ee + i, 0.0);
      for (std::int64_t j = 0; j < i; ++j) {
        f = dd[j];
        at(j, i) = f;
        double* const col = column(j);
        g = ee[j] + col[j] * f;
        for (std::int64_t k = j + 1; k < i; ++k) {
          g += col[k] * dd[k];
          ee[k] += col[k] * f;
        }
        ee[j] = g;
      }
      f = 0;
      for (std::int64_t j = 0; j < i; ++j) {
        ee[j] /= h;
        f += ee[j] * dd[j];
      }
      const double hh = f / (h + h);
      for (std::int64_t j = 0; j < i; ++j) ee[j] -= hh * dd[j];
      for (std::int64_t j = 0; j < i; ++j) {
        f = dd[j];
        g = ee[j];
        double* const col = column(j);
        for (std::int64_t k = j; k < i; ++k) col[k] -= f * ee[k] + g * dd[k];
        dd[j] = at(i - 1, j);
        at(i, j) = 0;
      }
    }
    dd[i] = h;
  }
  for (std::int64_t i = 0; i < m - 1; ++i) {
    at(m - 1, i) = at(i, i);
    at(i, i) = 1;
    const double h = dd[i + 1];
    const double* const next = column(i + 1);
    if (h != 0) {
      for (std::int64_t k = 0; k <= i; ++k) dd[k] = next[k] / h;
      for (std::int64_t j = 0; j <= i; ++j) {
        double* const col = column(j);
        double g = 0;
        for (std::int64_t k = 0; k <= i; ++k) g += next[k] * col[k];
        for (std::int64_t k = 0; k <= i; ++k) col[k] -= g * dd[k];
      }
    }
    std::fill(column(i + 1), column(i + 1) + i + 1, 0.0);
  }
  for (std::int64_t j = 0; j < m; ++j) {
    dd[j] = at(m - 1, j);
    at(m - 1, j) = 0;
  }
  at(m - 1, m - 1) = 1;
  ee[0] = 0;
}

void Problem::diagonalise() {
  double* const dd = d.data();
  double* const ee = e.data();
  for (std::int64_t i = 1; i < m; ++i) ee[i - 1] = ee[i];
  ee[m - 1] = 0;
  double f = 0, largest = 0;
  constexpr double kEps = std::numeric_limits<double>::epsilon();
  // Of the whole matrix: small parts before large ones would otherwise divide by next to nothing.
  for (std::int64_t l = 0; l < m; ++l)
    largest = std::max(largest, std::abs(dd[l]) + std::abs(ee[l]));
  for (std::int64_t l = 0; l < m; ++l) {
    std::int64_t end = l;
    while (end < m - 1 && std::abs(ee[end]) > kEps * largest) ++end;
    if (end > l) {
      int sweeps = 0;
      do {
        double g = dd[l];
        double p = (dd[l + 1] - g) / (2 * ee[l]);
        double r = std::hypot(p, 1.0);
        if (p < 0) r = -r;
        dd[l] = ee[l] / (p + r);
        dd[l + 1] = ee[l] * (p + r);
        const double dl1 = dd[l + 1];
        double h = g - dd[l];
        for (std::int64_t i = l + 2; i < m; ++i) dd[i] -= h;
        f += h;
        p = dd[end];
        double c = 1, c2 = 1, c3 = 1, s = 0, s2 = 0;
        const double el1 = ee[l + 1];
        for (std::int64_t i = end - 1; i >= l; --i) {
          c3 = c2;
          c2 = c;
          s2 = s;
          g = c * ee[i];
          h = c * p;
          r = std::hypot(p, ee[i]);
          ee[i + 1] = s * r;
          s = r > 0 ? ee[i] / r : 0;
          c = r > 0 ? p / r : 1;
          p = c * dd[i] - s * g;
          dd[i + 1] = h + s * (c * g + s * dd[i]);
          double* const upper = column(i + 1);
          double* const lower = column(i);
          for (std::int64_t k = 0; k < m; ++k) {
            const double old = upper[k];
            upper[k] = s * lower[k] + c * old;
            lower[k] = c * lower[k] - s * old;
          }
        }
        p = dl1 != 0 ? -s * s2 * c3 * el1 * ee[l] / dl1 : 0;
        ee[l] = s * p;
        dd[l] = c * p;
      } while (std::abs(ee[l]) > kEps * largest && ++sweeps < kMostSweeps);
    }
    dd[l] += f;
    ee[l] = 0;
  }
}

}  // namespace

void small_eigh(const Context& ctx, const ArrayRef& a, const ArrayRef& values,
                const ArrayRef& vectors) {
  if (a.size() == 0) return;
  const auto in = view_of<const double, 3>(a);
  const auto out = view_of<double, 2>(values);
  const auto rows = view_of<double, 3>(vectors);
  const std::int64_t m = a.extent(1);
  const double work = static_cast<double>(a.size()) * static_cast<double>(m);
  const int threads = work < kSerialWork ? 1 : thread_count(ctx);
  parallel_for(ctx, threads, a.extent(0), [&](std::int64_t e, int) {
    const auto size = static_cast<std::size_t>(m);
    Problem problem{m, std::vector<double>(size * size), std::vector<double>(size),
                    std::vector<double>(size)};
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) problem.at(i, j) = problem.at(j, i) = in(e, i, j);
    }
    problem.tridiagonalise();
    problem.diagonalise();
    std::vector<std::int64_t> order(size);
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t x, std::int64_t y) {
      return problem.d[static_cast<std::size_t>(x)] < problem.d[static_cast<std::size_t>(y)];
    });
    for (std::int64_t i = 0; i < m; ++i) {
      const std::int64_t from = order[static_cast<std::size_t>(i)];
      out(e, i) = problem.d[static_cast<std::size_t>(from)];
      for (std::int64_t k = 0; k < m; ++k) rows(e, i, k) = problem.column(from)[k];
    }
  });
}

}  // namespace fastfisher::cpu
