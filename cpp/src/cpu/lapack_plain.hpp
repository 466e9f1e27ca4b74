// SPDX-License-Identifier: Apache-2.0
//
// The kernels of lapack.hpp as plain loops, for builds without a BLAS: right, and slow.
#pragma once

#include "lapack.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

namespace fastfisher::cpu::plain {

template <class T>
void add_product(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha,
                 const T* a, std::int64_t lda, const T* b, std::int64_t ldb, T* c,
                 std::int64_t ldc) {
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t l = 0; l < k; ++l) {
      const T left = alpha * (op_a == Op::plain ? a[i * lda + l] : a[l * lda + i]);
      const T* const row = op_b == Op::plain ? b + l * ldb : b + l;
      const std::int64_t step = op_b == Op::plain ? 1 : ldb;
      for (std::int64_t j = 0; j < n; ++j) c[i * ldc + j] += left * row[j * step];
    }
  }
}

template <class T>
void add_square(Op op, std::int64_t n, std::int64_t k, T alpha, const T* a, std::int64_t lda, T* c,
                std::int64_t ldc) {
  const Op other = op == Op::plain ? Op::transposed : Op::plain;
  for (std::int64_t i = 0; i < n; ++i) {
    // Qualified: the types would bring in the one of lapack.hpp too.
    plain::add_product(op, other, 1, i + 1, k, alpha, a + (op == Op::plain ? i * lda : i), lda, a,
                       lda, c + i * ldc, ldc);
  }
}

template <class T>
void solve_lower(Side side, Op op, std::int64_t m, std::int64_t n, T alpha, const T* l,
                 std::int64_t ldl, T* b, std::int64_t ldb) {
  const std::int64_t size = side == Side::left ? m : n, count = side == Side::left ? n : m;
  const std::int64_t step = side == Side::left ? ldb : 1, across = side == Side::left ? 1 : ldb;
  // x op(l) = b from the right is op(l)^T x^T = b^T.
  const bool forward = (op == Op::plain) == (side == Side::left);
  for (std::int64_t c = 0; c < count; ++c) {
    T* const x = b + c * across;
    for (std::int64_t s = 0; s < size; ++s) {
      const std::int64_t i = forward ? s : size - 1 - s;
      T sum = alpha * x[i * step];
      for (std::int64_t t = 0; t < s; ++t) {
        const std::int64_t j = forward ? t : size - 1 - t;
        sum -= (forward ? l[i * ldl + j] : l[j * ldl + i]) * x[j * step];
      }
      x[i * step] = sum / l[i * ldl + i];
    }
  }
}

template <class T>
std::int64_t factor(std::int64_t n, T* a, std::int64_t lda) {
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      T sum = a[i * lda + j];
      for (std::int64_t k = 0; k < j; ++k) sum -= a[i * lda + k] * a[j * lda + k];
      if (i == j) {
        // Not the other way round: NaN is not positive either.
        if (!(sum > 0)) return i + 1;
        a[i * lda + i] = std::sqrt(sum);
      } else {
        a[i * lda + j] = sum / a[j * lda + j];
      }
    }
  }
  return 0;
}

/// One rotation of rows and columns p < q of packed symmetric a, and of the rows of v.
template <class T>
void rotate(std::int64_t n, T* a, T* v, std::int64_t p, std::int64_t q) {
  const T theta = (a[q * n + q] - a[p * n + p]) / (2 * a[p * n + q]);
  const T t = std::isinf(theta)
                  ? T(0)
                  : (theta < 0 ? T(-1) : T(1)) / (std::abs(theta) + std::hypot(theta, T(1)));
  const T c = 1 / std::sqrt(t * t + 1), s = t * c;
  for (std::int64_t k = 0; k < n; ++k) {
    const T x = a[k * n + p], y = a[k * n + q];
    a[k * n + p] = c * x - s * y;
    a[k * n + q] = s * x + c * y;
  }
  for (std::int64_t k = 0; k < n; ++k) {
    const T x = a[p * n + k], y = a[q * n + k];
    a[p * n + k] = c * x - s * y;
    a[q * n + k] = s * x + c * y;
    const T r = v[p * n + k], w = v[q * n + k];
    v[p * n + k] = c * r - s * w;
    v[q * n + k] = s * r + c * w;
  }
  a[p * n + q] = a[q * n + p] = 0;
}

/// Cyclic Jacobi rotations (Golub and Van Loan, section 8.5): eigenvectors as rows of a.
template <class T>
bool eigen(std::int64_t n, T* a, T* values, T* v) {
  constexpr int kSweeps = 60;
  T largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      if (j < i) a[j * n + i] = a[i * n + j];
      largest = std::max(largest, std::abs(a[std::max(i, j) * n + std::min(i, j)]));
      v[i * n + j] = i == j ? T(1) : T(0);
    }
  }
  const T small = std::numeric_limits<T>::epsilon() * largest / 8;
  bool rotated = true;
  for (int sweep = 0; rotated; ++sweep) {
    if (sweep == kSweeps) return false;
    rotated = false;
    for (std::int64_t p = 0; p < n; ++p) {
      for (std::int64_t q = p + 1; q < n; ++q) {
        if (!(std::abs(a[p * n + q]) > small)) continue;
        rotated = true;
        rotate(n, a, v, p, q);
      }
    }
  }
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) order[static_cast<std::size_t>(i)] = i;
  std::sort(order.begin(), order.end(),
            [&](std::int64_t x, std::int64_t y) { return a[x * n + x] < a[y * n + y]; });
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t from = order[static_cast<std::size_t>(i)];
    values[i] = a[from * n + from];
  }
  for (std::int64_t i = 0; i < n; ++i) {
    const T* const row = v + order[static_cast<std::size_t>(i)] * n;
    std::copy(row, row + n, a + i * n);
  }
  return true;
}

}  // namespace fastfisher::cpu::plain
