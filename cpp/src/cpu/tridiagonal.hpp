// SPDX-License-Identifier: Apache-2.0
//
// Pieces of a symmetric eigenproblem of which few pairs are wanted, each of one thread: reduction
// to tridiagonal form, some eigenvalues and eigenvectors of that, and the way back.
#pragma once

#include <cstdint>

namespace fastfisher::cpu {

/// Columns of a panel: their updates of the rest are made together.
inline constexpr std::int64_t kReductionBlock = 16;

/// Entries from one row of the matrix to the next.
std::int64_t reduction_pitch(std::int64_t n);

/// Entries of work that `tridiagonalise` wants.
std::int64_t reduction_work(std::int64_t n);

/// Q^T A Q = tridiag(e, d, e) for symmetric a [n, reduction_pitch(n)], zero behind column n and
/// with rows of zeros up to the next multiple of eight, of which the diagonal and what is right of
/// it is read and what is right of it is written. Row i then holds reflector i from i + 1 on: Q =
/// H_0 H_1
/// ..., H_i = 1 - tau[i] v_i v_i^T. d, e, tau [n].
template <class T>
void tridiagonalise(std::int64_t n, T* a, T* d, T* e, T* tau, T* work);

/// x[k] = Q x[k] for `count` rows of n entries, 2 n^2 flops each.
template <class T>
void reflect(std::int64_t n, const T* a, const T* tau, T* x, std::int64_t count);

/// out[k] = A x[k] for what is left of the diagonal of a [n, reduction_pitch(n)], and the diagonal
/// d.
template <class T>
void multiply_left(std::int64_t n, const T* a, const T* d, const T* x, std::int64_t count, T* out);

/// A tridiagonal matrix in float64. d [n], e [n-1] and squares of e [n-1].
struct Tridiagonal {
  std::int64_t n;
  const double* d;
  const double* e;
  const double* squares;
  double norm;      ///< bounds every eigenvalue's magnitude (Gershgorin)
  double smallest;  ///< pivots of less magnitude are replaced
};

/// Eigenvalues number first, first + 1, ... (ascending, from 0) by bisection to tol * norm.
/// work: 2 * count.
void tridiagonal_values(const Tridiagonal& t, std::int64_t first, std::int64_t count, double tol,
                        double* values, double* work);

/// Orthonormal eigenvectors as rows [count,n] of eigenvalues in ascending order, known to
/// tol * norm, by inverse iteration. work: 5 * n.
void tridiagonal_vectors(const Tridiagonal& t, const double* values, std::int64_t count, double tol,
                         double* vectors, double* work);

}  // namespace fastfisher::cpu
