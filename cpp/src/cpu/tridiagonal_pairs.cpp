// SPDX-License-Identifier: Apache-2.0
//
// Eigenvalues of a tridiagonal matrix by counting negative pivots (Barth, Martin and Wilkinson
// 1967), for eight shifts in one go, since each pivot waits for the division before it; vectors by
// inverse iteration with reorthogonalisation inside clusters (Peters and Wilkinson 1971). About
// 17 n divisions of eight a value in double precision, 30 n flops a vector and solution.
#include "tridiagonal.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace fastfisher::cpu {
namespace {

constexpr int kShifts = 8;
constexpr int kMostRounds = 40;
constexpr int kMostSolutions = 8;
// Vectors of eigenvalues closer than this, relative to the norm, are made orthogonal on the way.
constexpr double kCluster = 1e-3;
// How far aside of a repeated value, in its tolerance, its vectors are looked for.
constexpr double kAside = 8;

using Shifts = std::array<double, kShifts>;
using Pair __attribute__((vector_size(16))) = double;

// Eigenvalues below each shift.
std::array<std::int64_t, kShifts> counts_below(const Tridiagonal& t, const Shifts& shifts) {
  constexpr int kPairs = kShifts / 2;
  Pair s[kPairs], q[kPairs];
  Pair count[kPairs] = {};
  const Pair tiny = {t.smallest, t.smallest}, one = {1, 1}, zero = {0, 0};
  for (int p = 0; p < kPairs; ++p) {
    s[p] =
        Pair{shifts[static_cast<std::size_t>(2 * p)], shifts[static_cast<std::size_t>(2 * p + 1)]};
    q[p] = one;
  }
  double square = 0;
  for (std::int64_t i = 0; i < t.n; ++i) {
    const Pair d = {t.d[i], t.d[i]}, e2 = {square, square};
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
      Pair next = (d - s[p]) - e2 / q[p];
      next = (next < tiny && next > -tiny) ? -tiny : next;
      count[p] += next < zero ? one : zero;
      q[p] = next;
    }
    if (i + 1 < t.n) square = t.squares[i];
  }
  std::array<std::int64_t, kShifts> below{};
  for (int k = 0; k < kShifts; ++k)
    below[static_cast<std::size_t>(k)] = static_cast<std::int64_t>(count[k / 2][k % 2]);
  return below;
}

double random_unit(std::uint64_t& state) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 11) * 0x1p-52 - 1;
}

double dot(std::int64_t n, const double* x, const double* y) {
  double sum[4] = {};
  std::int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (std::int64_t k = 0; k < 4; ++k) sum[k] += x[i + k] * y[i + k];
  }
  for (; i < n; ++i) sum[0] += x[i] * y[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

void remove(std::int64_t n, const double* from, std::int64_t count, double* x) {
  for (std::int64_t k = 0; k < count; ++k) {
    const double* const y = from + k * n;
    const double part = dot(n, x, y);
    for (std::int64_t i = 0; i < n; ++i) x[i] -= part * y[i];
  }
}

// L U of T - value with rows interchanged; U has two diagonals above the main one.
struct Factors {
  std::int64_t n;
  double* inverse;  // of the pivots
  double* first;
  double* second;
  double* lower;
  double* swapped;  // not zero where rows i and i + 1 were interchanged

  void make(const Tridiagonal& t, double value);
  void solve(double* x) const;
};

void Factors::make(const Tridiagonal& t, double value) {
  const double least = std::max(std::numeric_limits<double>::epsilon() * t.norm, t.smallest);
  const auto invert = [&](double pivot) {
    return 1 / (std::abs(pivot) < least ? std::copysign(least, pivot) : pivot);
  };
  double pivot = t.d[0] - value, beside = n > 1 ? t.e[0] : 0;
  for (std::int64_t i = 0; i + 1 < n; ++i) {
    const double below = t.e[i], diagonal = t.d[i + 1] - value, next = i + 2 < n ? t.e[i + 1] : 0;
    const bool swap = std::abs(below) > std::abs(pivot);
    swapped[i] = swap ? 1 : 0;
    if (swap) {
      inverse[i] = invert(below);
      first[i] = diagonal;
      second[i] = next;
      lower[i] = pivot * inverse[i];
      pivot = beside - lower[i] * diagonal;
      beside = -lower[i] * next;
    } else {
      inverse[i] = invert(pivot);
      first[i] = beside;
      second[i] = 0;
      lower[i] = below * inverse[i];
      pivot = diagonal - lower[i] * beside;
      beside = next;
    }
  }
  inverse[n - 1] = invert(pivot);
}

void Factors::solve(double* x) const {
  for (std::int64_t i = 0; i + 1 < n; ++i) {
    const double here = swapped[i] != 0 ? x[i + 1] : x[i],
                 other = swapped[i] != 0 ? x[i] : x[i + 1];
    x[i] = here;
    x[i + 1] = other - lower[i] * here;
  }
  x[n - 1] *= inverse[n - 1];
  if (n > 1) x[n - 2] = (x[n - 2] - first[n - 2] * x[n - 1]) * inverse[n - 2];
  for (std::int64_t i = n - 3; i >= 0; --i)
    x[i] = (x[i] - second[i] * x[i + 2] - first[i] * x[i + 1]) * inverse[i];
}

}  // namespace

void tridiagonal_values(const Tridiagonal& t, std::int64_t first, std::int64_t count, double tol,
                        double* values, double* work) {
  double* const low = work;
  double* const high = work + count;
  const double edge = t.norm * (1 + 1e-12) + 4 * t.smallest;
  std::fill(low, low + count, -edge);
  std::fill(high, high + count, edge);
  const double width = tol * t.norm;
  for (std::int64_t k = 0; k < count; ++k) {
    for (int round = 0; round < kMostRounds && high[k] - low[k] > width; ++round) {
      Shifts shifts;
      for (int s = 0; s < kShifts; ++s)
        shifts[static_cast<std::size_t>(s)] =
            low[k] + (high[k] - low[k]) * (static_cast<double>(s + 1) / (kShifts + 1));
      const auto below = counts_below(t, shifts);
      // Each count narrows the interval of every value that is looked for.
      for (int s = 0; s < kShifts; ++s) {
        const double shift = shifts[static_cast<std::size_t>(s)];
        for (std::int64_t j = k; j < count; ++j) {
          if (below[static_cast<std::size_t>(s)] <= first + j)
            low[j] = std::max(low[j], shift);
          else
            high[j] = std::min(high[j], shift);
        }
      }
    }
    values[k] = low[k] + (high[k] - low[k]) / 2;
  }
}

void tridiagonal_vectors(const Tridiagonal& t, const double* values, std::int64_t count, double tol,
                         double* vectors, double* work) {
  const std::int64_t n = t.n;
  Factors factors{n, work, work + n, work + 2 * n, work + 3 * n, work + 4 * n};
  std::uint64_t state = 0x9e3779b97f4a7c15u;
  std::int64_t cluster = 0;
  for (std::int64_t k = 0; k < count; ++k) {
    if (k > 0 && values[k] - values[k - 1] > kCluster * t.norm) cluster = k;
    double* const x = vectors + k * n;
    for (std::int64_t i = 0; i < n; ++i) x[i] = random_unit(state);
    double size = std::sqrt(dot(n, x, x));
    // Copies of a value differ by roundings, by which solutions would grow so differently that
    // those found before, errors and all, drown what is left: a little off all grow alike.
    const double close = 32 * tol * t.norm;
    const bool repeated = (k > 0 && values[k] - values[k - 1] < close) ||
                          (k + 1 < count && values[k + 1] - values[k] < close);
    factors.make(t, values[k] + (repeated ? kAside * tol * t.norm : 0));
    // The residual of a solution is the inverse of its growth.
    const double enough = 1 / (64 * tol * t.norm + 4 * t.smallest);
    int good = 0;
    for (int solution = 0; solution < kMostSolutions && good < 2; ++solution) {
      for (std::int64_t i = 0; i < n; ++i) x[i] /= size;
      factors.solve(x);
      for (int pass = 0; pass < 2; ++pass) remove(n, vectors + cluster * n, k - cluster, x);
      size = std::sqrt(dot(n, x, x));
      if (size >= enough) ++good;
    }
    for (std::int64_t i = 0; i < n; ++i) x[i] /= size;
    remove(n, vectors, k, x);
    size = std::sqrt(dot(n, x, x));
    for (std::int64_t i = 0; i < n; ++i) x[i] /= size;
  }
}

}  // namespace fastfisher::cpu
