// SPDX-License-Identifier: Apache-2.0
//
// A few eigenpairs at the ends of the spectrum of each matrix of a batch, one matrix a thread:
// reduction to tridiagonal form, wanted values by bisection, their vectors by inverse iteration, in
// float64 whatever the dtype, and back. Nothing is iterated over the matrix, so no copy of a
// repeated eigenvalue can be missed. Per matrix 4/3 n^3 flops, of which half read the triangle
// once a column, n^3 / 6 entries in all, and about 100 n + 2 n^2 + n m flops a pair and m
// pairs of its cluster. A matrix's bits depend on itself alone.
#include "backend.hpp"
#include "parallel.hpp"
#include "reduction_kernels.hpp"
#include "tridiagonal.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace fastfisher::cpu {
namespace {

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kSquare = 32;
constexpr double kSerialWork = 3e4;

// Eigenvalues that are looked at, by number: of a choice by magnitude, twice the wanted ones.
struct Wanted {
  std::int64_t low, high;
  std::int64_t count() const { return low + high; }
};

Wanted wanted_of(SpectrumEnd end, std::int64_t n, std::int64_t k) {
  switch (end) {
  case SpectrumEnd::largest:
    return {0, k};
  case SpectrumEnd::smallest:
    return {k, 0};
  case SpectrumEnd::both:
    return {k / 2, k - k / 2};
  case SpectrumEnd::magnitude:
    return {std::min(k, n - k), k};
  }
  return {0, k};
}

// Parts of one thread's share of the workspace.
template <class T>
struct Scratch {
  T *a, *diagonal, *d, *e, *tau, *reduction, *x, *product;
  double *wide_d, *wide_e, *squares, *values, *intervals, *vectors, *solution;
  std::int64_t bytes;

  Scratch(std::byte* base, std::int64_t n, std::int64_t k, std::int64_t candidates) {
    std::byte* at = base;
    const auto take = [&]<class S>(S*& part, std::int64_t items) {
      part = reinterpret_cast<S*>(at);
      at += (items * static_cast<std::int64_t>(sizeof(S)) + kLine - 1) / kLine * kLine;
    };
    take(a, (n + kDiagonalBlock) * reduction_pitch(n));
    for (T** const part : {&diagonal, &d, &e, &tau}) take(*part, n);
    take(reduction, reduction_work(n));
    take(x, k * n);
    take(product, k * n);
    for (double** const part : {&wide_d, &wide_e, &squares}) take(*part, n);
    take(values, candidates);
    take(intervals, 2 * candidates);
    take(vectors, k * n);
    take(solution, 5 * n);
    bytes = at - base;
  }
};

template <class T>
struct Problem {
  Scratch<T> s;
  std::int64_t n, k;
  SpectrumEnd end;

  // scale^2 times the matrix, from one triangle: half before and half after, lest it overflow.
  void load(const T* from, std::int64_t by_row, std::int64_t by_col, T scale) {
    const std::int64_t pitch = reduction_pitch(n);
    for (std::int64_t i = 0; i < n; ++i)
      std::fill(s.a + i * pitch + n, s.a + (i + 1) * pitch, T{0});
    std::fill(s.a + n * pitch, s.a + (n + kDiagonalBlock) * pitch, T{0});
    for (std::int64_t first = 0; first < n; first += kSquare) {
      const std::int64_t rows = std::min(n, first + kSquare);
      for (std::int64_t col = 0; col <= first; col += kSquare) {
        for (std::int64_t i = first; i < rows; ++i) {
          const T* const row = from + i * by_row;
          for (std::int64_t j = col; j < std::min(i + 1, col + kSquare); ++j)
            s.a[i * pitch + j] = row[j * by_col] * scale * scale;
        }
        for (std::int64_t j = col; j < std::min(n, col + kSquare); ++j) {
          for (std::int64_t i = std::max(first, j); i < rows; ++i)
            s.a[j * pitch + i] = s.a[i * pitch + j];
        }
      }
    }
    for (std::int64_t i = 0; i < n; ++i) s.diagonal[i] = s.a[i * pitch + i];
  }

  Tridiagonal reduce() {
    tridiagonalise(n, s.a, s.d, s.e, s.tau, s.reduction);
    double norm = 0, most = 0, before = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const double next = i + 1 < n ? static_cast<double>(s.e[i]) : 0;
      s.wide_d[i] = static_cast<double>(s.d[i]);
      s.wide_e[i] = next;
      s.squares[i] = next * next;
      most = std::max(most, s.squares[i]);
      norm = std::max(norm, std::abs(s.wide_d[i]) + std::abs(before) + std::abs(next));
      before = next;
    }
    constexpr double kTiny = 1e-280;
    return {n, s.wide_d, s.wide_e, s.squares, norm > 0 ? norm : 1, kTiny * std::max(1.0, most)};
  }

  // The k wanted values, ascending, in front of s.values; returns the largest magnitude of all.
  double find_values(const Tridiagonal& t, double tol) {
    const Wanted wanted = wanted_of(end, n, k);
    double* const low = s.values;
    double* const high = s.values + wanted.low;
    tridiagonal_values(t, 0, wanted.low, tol, low, s.intervals);
    tridiagonal_values(t, n - wanted.high, wanted.high, tol, high, s.intervals);
    double outer[2], interval[2];
    constexpr double kRough = 1e-3;
    tridiagonal_values(t, 0, 1, kRough, outer, interval);
    tridiagonal_values(t, n - 1, 1, kRough, outer + 1, interval);
    double norm = std::max(std::abs(outer[0]), std::abs(outer[1]));
    // By magnitude, they are the outermost of the candidates.
    const std::int64_t candidates = wanted.count();
    std::int64_t from_low = std::min(wanted.low, k);
    if (end == SpectrumEnd::magnitude) {
      from_low = 0;
      for (std::int64_t from_high = 0; from_low + from_high < k;)
        ++(-low[from_low] > low[candidates - 1 - from_high] ? from_low : from_high);
    }
    std::copy(low + candidates - (k - from_low), low + candidates, low + from_low);
    for (std::int64_t j = 0; j < k; ++j) norm = std::max(norm, std::abs(low[j]));
    return norm;
  }

  // Unit vectors in x and their products with the matrix, from the triangle that was not reduced.
  void find_vectors(const Tridiagonal& t, double tol) {
    tridiagonal_vectors(t, s.values, k, tol, s.vectors, s.solution);
    for (std::int64_t i = 0; i < k * n; ++i) s.x[i] = static_cast<T>(s.vectors[i]);
    reflect(n, s.a, s.tau, s.x, k);
    for (std::int64_t j = 0; j < k; ++j) {
      T* const row = s.x + j * n;
      double square = 0;
      for (std::int64_t i = 0; i < n; ++i) square += static_cast<double>(row[i]) * row[i];
      const T inverse = static_cast<T>(1 / std::sqrt(square));
      for (std::int64_t i = 0; i < n; ++i) row[i] *= inverse;
    }
    multiply_left(n, s.a, s.diagonal, s.x, k, s.product);
  }
};

template <class T>
std::int64_t share_of(SpectrumEnd end, std::int64_t n, std::int64_t k) {
  return Scratch<T>(nullptr, n, k, wanted_of(end, n, k).count()).bytes;
}

template <class T>
void ends_typed(const Context& ctx, const View<const T, 3>& a, const View<const double, 1>& scale,
                SpectrumEnd end, const View<double, 2>& values, const View<T, 3>& vectors,
                const View<double, 2>& norms, const View<double, 1>& norm) {
  const std::int64_t n = a.extent(1), k = values.extent(1);
  const std::int64_t candidates = wanted_of(end, n, k).count(), share = share_of<T>(end, n, k);
  auto* const base = reinterpret_cast<std::byte*>(
      (reinterpret_cast<std::uintptr_t>(ctx.workspace.data()) + kLine - 1) / kLine * kLine);
  // The matrix equals its transpose: the axis of stride one runs along the rows.
  const bool turn = a.stride(1) == 1 && a.stride(2) != 1;
  // Values of a float32 matrix are known far better than it is, for the sake of the vectors.
  constexpr double kEps = std::numeric_limits<double>::epsilon();
  const double tol = sizeof(T) == 4 ? 1e-11 : kEps;
  const double work = static_cast<double>(a.extent(0) * n) * static_cast<double>(n * n);
  parallel_for(ctx, work < kSerialWork ? 1 : thread_count(ctx), a.extent(0),
               [&](std::int64_t e, int worker) {
                 Problem<T> problem{Scratch<T>(base + worker * share, n, k, candidates), n, k, end};
                 problem.load(&a(e, 0, 0), a.stride(turn ? 2 : 1), a.stride(turn ? 1 : 2),
                              static_cast<T>(scale(e)));
                 const Tridiagonal t = problem.reduce();
                 norm(e) = problem.find_values(t, tol);
                 problem.find_vectors(t, tol);
                 for (std::int64_t j = 0; j < k; ++j) {
                   const T* const x = problem.s.x + j * n;
                   const T* const y = problem.s.product + j * n;
                   double value = 0, square = 0;
                   for (std::int64_t i = 0; i < n; ++i) value += static_cast<double>(x[i]) * y[i];
                   for (std::int64_t i = 0; i < n; ++i) {
                     const double apart =
                         static_cast<double>(y[i]) - value * static_cast<double>(x[i]);
                     square += apart * apart;
                     vectors(e, j, i) = x[i];
                   }
                   values(e, j) = value;
                   norms(e, j) = std::sqrt(square);
                 }
               });
}

}  // namespace

void eigh_ends(const Context& ctx, const ArrayRef& a, const ArrayRef& scale, SpectrumEnd end,
               const ArrayRef& values, const ArrayRef& vectors, const ArrayRef& residual_norms,
               const ArrayRef& norm) {
  if (values.size() == 0) return;
  if (static_cast<std::int64_t>(ctx.workspace.size()) <
      cpu::eigh_ends_workspace(ctx, a, end, values.extent(1)))
    throw Error(ErrorCode::memory, "eigh_ends", "workspace", "is smaller than eigh_ends_workspace");
  visit_dtype(a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    ends_typed<T>(ctx, view_of<const T, 3>(a), view_of<const double, 1>(scale), end,
                  view_of<double, 2>(values), view_of<T, 3>(vectors),
                  view_of<double, 2>(residual_norms), view_of<double, 1>(norm));
  });
}

std::int64_t eigh_ends_workspace(const Context& ctx, const ArrayRef& a, SpectrumEnd end,
                                 std::int64_t k) {
  const std::int64_t share = visit_dtype(a.dtype, [&](auto tag) {
    return share_of<typename decltype(tag)::type>(end, a.extent(1), k);
  });
  return share * std::min<std::int64_t>(thread_count(ctx), a.extent(0)) + kLine;
}

}  // namespace fastfisher::cpu
