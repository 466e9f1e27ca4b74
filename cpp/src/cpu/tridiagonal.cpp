// SPDX-License-Identifier: Apache-2.0
//
// Householder reduction of a symmetric matrix (Golub and Van Loan, section 8.3): LAPACK's blocked
// one, or plain loops where there is none.
#include "tridiagonal.hpp"

#include "blas_symbols.hpp"
#include "contract_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

#if defined(FF_BLAS_PREFIX)

// Declared by hand: see blas.cpp. Strings of Fortran carry their lengths behind the arguments.
extern "C" {
void FF_BLAS(ssytrd_)(const char* uplo, const int* n, float* a, const int* lda, float* d, float* e,
                      float* tau, float* work, const int* lwork, int* info, std::size_t);
void FF_BLAS(dsytrd_)(const char* uplo, const int* n, double* a, const int* lda, double* d,
                      double* e, double* tau, double* work, const int* lwork, int* info,
                      std::size_t);
}

namespace fastfisher::cpu {
namespace {

void sytrd(const int* n, float* a, float* d, float* e, float* tau, float* work, const int* lwork) {
  int info = 0;
  FF_BLAS(ssytrd_)("L", n, a, n, d, e, tau, work, lwork, &info, 1);
}

void sytrd(const int* n, double* a, double* d, double* e, double* tau, double* work,
           const int* lwork) {
  int info = 0;
  FF_BLAS(dsytrd_)("L", n, a, n, d, e, tau, work, lwork, &info, 1);
}

}  // namespace

template <class T>
void tridiagonalise(std::int64_t n, T* a, T* d, T* e, T* tau, T* work) {
  if (n == 0) return;
  single_thread();
  // LAPACK counts by columns: its lower triangle is our upper one.
  const int size = static_cast<int>(n), lwork = static_cast<int>(n * kReductionBlock);
  sytrd(&size, a, d, e, tau, work, &lwork);
}

#else

namespace fastfisher::cpu {

template <class T>
void tridiagonalise(std::int64_t n, T* a, T* d, T* e, T* tau, T* work) {
  for (std::int64_t i = 0; i + 1 < n; ++i) {
    const std::int64_t size = n - i - 1;
    T* const v = a + i * n + i + 1;
    T* const rest = a + (i + 1) * n + i + 1;
    d[i] = a[i * n + i];
    T length = 0;
    for (std::int64_t k = 1; k < size; ++k) length = std::hypot(length, v[k]);
    e[i] = v[0];
    tau[i] = 0;
    if (length == 0) continue;
    const T beta = std::copysign(std::hypot(v[0], length), -v[0]);
    tau[i] = (beta - v[0]) / beta;
    for (std::int64_t k = 1; k < size; ++k) v[k] /= v[0] - beta;
    v[0] = 1;
    e[i] = beta;
    // The rest becomes rest - v w^T - w v^T, w = tau (rest v) - tau^2 / 2 (v^T rest v) v.
    T* const w = work;
    std::fill(w, w + size, T{0});
    for (std::int64_t r = 0; r < size; ++r) {
      w[r] += rest[r * n + r] * v[r];
      for (std::int64_t c = r + 1; c < size; ++c) {
        w[r] += rest[r * n + c] * v[c];
        w[c] += rest[r * n + c] * v[r];
      }
    }
    T product = 0;
    for (std::int64_t k = 0; k < size; ++k) product += w[k] * v[k];
    for (std::int64_t k = 0; k < size; ++k) w[k] = tau[i] * (w[k] - tau[i] / 2 * product * v[k]);
    for (std::int64_t r = 0; r < size; ++r) {
      for (std::int64_t c = r; c < size; ++c) rest[r * n + c] -= v[r] * w[c] + w[r] * v[c];
    }
  }
  if (n > 0) d[n - 1] = a[n * n - 1];
}

#endif

template <class T>
void reflect(std::int64_t n, T* a, const T* tau, T* x, std::int64_t count) {
  const ContractKernels<T>& kernels = contract_kernels<T>();
  for (std::int64_t i = n - 2; i >= 0; --i) {
    if (tau[i] == 0) continue;
    T* const v = a + i * n + i + 1;
    v[0] = 1;
    for (std::int64_t k = 0; k < count; ++k) {
      T* const row = x + k * n + i + 1;
      T weight = 0;
      kernels.dots(&v, 1, &row, 1, n - i - 1, &weight);
      weight *= -tau[i];
      kernels.combine(&v, 1, &weight, &row, 1, n - i - 1, true);
    }
  }
}

template <class T>
void multiply_left(std::int64_t n, const T* a, const T* d, const T* x, std::int64_t count, T* out) {
  const ContractKernels<T>& kernels = contract_kernels<T>();
  for (std::int64_t k = 0; k < count; ++k) {
    for (std::int64_t i = 0; i < n; ++i) out[k * n + i] = d[i] * x[k * n + i];
  }
  for (std::int64_t i = 1; i < n; ++i) {
    const T* const row = a + i * n;
    for (std::int64_t k = 0; k < count; ++k) {
      const T* const in = x + k * n;
      T* const to = out + k * n;
      kernels.dots(&row, 1, &in, 1, i, to + i);
      kernels.combine(&row, 1, in + i, &to, 1, i, true);
    }
  }
}

template void tridiagonalise(std::int64_t, float*, float*, float*, float*, float*);
template void tridiagonalise(std::int64_t, double*, double*, double*, double*, double*);
template void reflect(std::int64_t, float*, const float*, float*, std::int64_t);
template void reflect(std::int64_t, double*, const double*, double*, std::int64_t);
template void multiply_left(std::int64_t, const float*, const float*, const float*, std::int64_t,
                            float*);
template void multiply_left(std::int64_t, const double*, const double*, const double*, std::int64_t,
                            double*);

}  // namespace fastfisher::cpu
