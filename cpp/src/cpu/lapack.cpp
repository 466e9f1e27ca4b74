// SPDX-License-Identifier: Apache-2.0
#include "lapack.hpp"

#include "blas_symbols.hpp"
#include "lapack_plain.hpp"

#if defined(FF_BLAS_PREFIX)

// Declared by hand: see blas.cpp. Strings of Fortran carry their lengths behind the arguments.
extern "C" {
void FF_BLAS(cblas_sgemm)(int order, int op_a, int op_b, int m, int n, int k, float alpha,
                          const float* a, int lda, const float* b, int ldb, float beta, float* c,
                          int ldc);
void FF_BLAS(cblas_dgemm)(int order, int op_a, int op_b, int m, int n, int k, double alpha,
                          const double* a, int lda, const double* b, int ldb, double beta,
                          double* c, int ldc);
void FF_BLAS(cblas_ssyrk)(int order, int uplo, int op, int n, int k, float alpha, const float* a,
                          int lda, float beta, float* c, int ldc);
void FF_BLAS(cblas_dsyrk)(int order, int uplo, int op, int n, int k, double alpha, const double* a,
                          int lda, double beta, double* c, int ldc);
void FF_BLAS(cblas_strsm)(int order, int side, int uplo, int op, int diag, int m, int n,
                          float alpha, const float* a, int lda, float* b, int ldb);
void FF_BLAS(cblas_dtrsm)(int order, int side, int uplo, int op, int diag, int m, int n,
                          double alpha, const double* a, int lda, double* b, int ldb);
void FF_BLAS(spotrf_)(const char* uplo, const int* n, float* a, const int* lda, int* info,
                      std::size_t);
void FF_BLAS(dpotrf_)(const char* uplo, const int* n, double* a, const int* lda, int* info,
                      std::size_t);
void FF_BLAS(ssyevd_)(const char* jobz, const char* uplo, const int* n, float* a, const int* lda,
                      float* w, float* work, const int* lwork, int* iwork, const int* liwork,
                      int* info, std::size_t, std::size_t);
void FF_BLAS(dsyevd_)(const char* jobz, const char* uplo, const int* n, double* a, const int* lda,
                      double* w, double* work, const int* lwork, int* iwork, const int* liwork,
                      int* info, std::size_t, std::size_t);
}

namespace fastfisher::cpu {
namespace {

constexpr int kRowMajor = 101, kPlain = 111, kTransposed = 112, kLower = 122, kNonUnit = 131;
constexpr int kLeft = 141, kRight = 142;

// The functions for T.
template <class T>
struct Lapack;
template <>
struct Lapack<float> {
  static constexpr auto gemm = &FF_BLAS(cblas_sgemm);
  static constexpr auto syrk = &FF_BLAS(cblas_ssyrk);
  static constexpr auto trsm = &FF_BLAS(cblas_strsm);
  static constexpr auto potrf = &FF_BLAS(spotrf_);
  static constexpr auto syevd = &FF_BLAS(ssyevd_);
};
template <>
struct Lapack<double> {
  static constexpr auto gemm = &FF_BLAS(cblas_dgemm);
  static constexpr auto syrk = &FF_BLAS(cblas_dsyrk);
  static constexpr auto trsm = &FF_BLAS(cblas_dtrsm);
  static constexpr auto potrf = &FF_BLAS(dpotrf_);
  static constexpr auto syevd = &FF_BLAS(dsyevd_);
};

int code(Op op) {
  return op == Op::plain ? kPlain : kTransposed;
}

int to_int(std::int64_t value) {
  return static_cast<int>(value);
}

// LAPACK counts by columns: its upper triangle is our lower one.
const char* const kUpper = "U";

// Sizes of syevd's two work arrays.
int reals(std::int64_t n) {
  return to_int(1 + 6 * n + 2 * n * n);
}
int integers(std::int64_t n) {
  return to_int(3 + 5 * n);
}

}  // namespace

template <class T>
void add_product(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha,
                 const T* a, std::int64_t lda, const T* b, std::int64_t ldb, T* c,
                 std::int64_t ldc) {
  if (m == 0 || n == 0 || k == 0) return;
  single_thread();
  Lapack<T>::gemm(kRowMajor, code(op_a), code(op_b), to_int(m), to_int(n), to_int(k), alpha, a,
                  to_int(lda), b, to_int(ldb), 1, c, to_int(ldc));
}

template <class T>
void add_square(Op op, std::int64_t n, std::int64_t k, T alpha, const T* a, std::int64_t lda, T* c,
                std::int64_t ldc) {
  if (n == 0 || k == 0) return;
  single_thread();
  Lapack<T>::syrk(kRowMajor, kLower, code(op), to_int(n), to_int(k), alpha, a, to_int(lda), 1, c,
                  to_int(ldc));
}

template <class T>
void solve_lower(Side side, Op op, std::int64_t m, std::int64_t n, T alpha, const T* l,
                 std::int64_t ldl, T* b, std::int64_t ldb) {
  if (m == 0 || n == 0) return;
  single_thread();
  Lapack<T>::trsm(kRowMajor, side == Side::left ? kLeft : kRight, kLower, code(op), kNonUnit,
                  to_int(m), to_int(n), alpha, l, to_int(ldl), b, to_int(ldb));
}

template <class T>
std::int64_t factor(std::int64_t n, T* a, std::int64_t lda) {
  single_thread();
  const int size = to_int(n), leading = to_int(lda);
  int info = 0;
  Lapack<T>::potrf(kUpper, &size, a, &leading, &info, 1);
  return info;
}

template <class T>
bool eigen(std::int64_t n, T* a, T* values, void* work) {
  if (n == 0) return true;
  single_thread();
  const int size = to_int(n), lwork = reals(n), liwork = integers(n);
  int info = 0;
  T* const first = static_cast<T*>(work);
  Lapack<T>::syevd("V", kUpper, &size, a, &size, values, first, &lwork,
                   reinterpret_cast<int*>(first + lwork), &liwork, &info, 1, 1);
  return info == 0;
}

template <class T>
std::int64_t eigen_work(std::int64_t n) {
  return static_cast<std::int64_t>(sizeof(T)) * reals(n) +
         static_cast<std::int64_t>(sizeof(int)) * integers(n);
}

#else

namespace fastfisher::cpu {

template <class T>
void add_product(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha,
                 const T* a, std::int64_t lda, const T* b, std::int64_t ldb, T* c,
                 std::int64_t ldc) {
  plain::add_product(op_a, op_b, m, n, k, alpha, a, lda, b, ldb, c, ldc);
}

template <class T>
void add_square(Op op, std::int64_t n, std::int64_t k, T alpha, const T* a, std::int64_t lda, T* c,
                std::int64_t ldc) {
  plain::add_square(op, n, k, alpha, a, lda, c, ldc);
}

template <class T>
void solve_lower(Side side, Op op, std::int64_t m, std::int64_t n, T alpha, const T* l,
                 std::int64_t ldl, T* b, std::int64_t ldb) {
  plain::solve_lower(side, op, m, n, alpha, l, ldl, b, ldb);
}

template <class T>
std::int64_t factor(std::int64_t n, T* a, std::int64_t lda) {
  return plain::factor(n, a, lda);
}

template <class T>
bool eigen(std::int64_t n, T* a, T* values, void* work) {
  return plain::eigen(n, a, values, static_cast<T*>(work));
}

template <class T>
std::int64_t eigen_work(std::int64_t n) {
  return static_cast<std::int64_t>(sizeof(T)) * n * n;
}

#endif

template void add_product(Op, Op, std::int64_t, std::int64_t, std::int64_t, float, const float*,
                          std::int64_t, const float*, std::int64_t, float*, std::int64_t);
template void add_product(Op, Op, std::int64_t, std::int64_t, std::int64_t, double, const double*,
                          std::int64_t, const double*, std::int64_t, double*, std::int64_t);
template void add_square(Op, std::int64_t, std::int64_t, float, const float*, std::int64_t, float*,
                         std::int64_t);
template void add_square(Op, std::int64_t, std::int64_t, double, const double*, std::int64_t,
                         double*, std::int64_t);
template void solve_lower(Side, Op, std::int64_t, std::int64_t, float, const float*, std::int64_t,
                          float*, std::int64_t);
template void solve_lower(Side, Op, std::int64_t, std::int64_t, double, const double*, std::int64_t,
                          double*, std::int64_t);
template std::int64_t factor(std::int64_t, float*, std::int64_t);
template std::int64_t factor(std::int64_t, double*, std::int64_t);
template bool eigen(std::int64_t, float*, float*, void*);
template bool eigen(std::int64_t, double*, double*, void*);
template std::int64_t eigen_work<float>(std::int64_t);
template std::int64_t eigen_work<double>(std::int64_t);

}  // namespace fastfisher::cpu
