// SPDX-License-Identifier: Apache-2.0
#include "blas.hpp"

#include "blas_symbols.hpp"
#include "fastfisher/error.hpp"

#if defined(FF_BLAS_PREFIX)

// Declared by hand, so that any cblas serves and its headers need not be there.
extern "C" {
void FF_BLAS(cblas_sgemm)(int order, int transpose_a, int transpose_b, int m, int n, int k,
                          float alpha, const float* a, int lda, const float* b, int ldb, float beta,
                          float* c, int ldc);
void FF_BLAS(cblas_dgemm)(int order, int transpose_a, int transpose_b, int m, int n, int k,
                          double alpha, const double* a, int lda, const double* b, int ldb,
                          double beta, double* c, int ldc);
char* FF_BLAS(openblas_get_config)();
}
#endif

namespace fastfisher::cpu {

#if defined(FF_BLAS_PREFIX)
namespace {

constexpr int kRowMajor = 101;
constexpr int kNoTranspose = 111;

int narrow(std::int64_t value) {
  if (value > 0x7fffffff)
    throw Error(ErrorCode::shape, "gemm", "extent", "more than 2^31 - 1 for the BLAS");
  return static_cast<int>(value);
}

}  // namespace

bool has_blas() {
  return true;
}

std::string blas_name() {
  return FF_BLAS(openblas_get_config)();
}

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda,
          const float* b, std::int64_t ldb, float* c, std::int64_t ldc) {
  single_thread();
  FF_BLAS(cblas_sgemm)(kRowMajor, kNoTranspose, kNoTranspose, narrow(m), narrow(n), narrow(k), 1, a,
                       narrow(lda), b, narrow(ldb), 0, c, narrow(ldc));
}

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const double* a, std::int64_t lda,
          const double* b, std::int64_t ldb, double* c, std::int64_t ldc) {
  single_thread();
  FF_BLAS(cblas_dgemm)(kRowMajor, kNoTranspose, kNoTranspose, narrow(m), narrow(n), narrow(k), 1, a,
                       narrow(lda), b, narrow(ldb), 0, c, narrow(ldc));
}

#else

bool has_blas() {
  return false;
}

std::string blas_name() {
  return "none";
}

void gemm(std::int64_t, std::int64_t, std::int64_t, const float*, std::int64_t, const float*,
          std::int64_t, float*, std::int64_t) {
  throw Error(ErrorCode::missing, "gemm", "", "this build has no BLAS");
}

void gemm(std::int64_t, std::int64_t, std::int64_t, const double*, std::int64_t, const double*,
          std::int64_t, double*, std::int64_t) {
  throw Error(ErrorCode::missing, "gemm", "", "this build has no BLAS");
}

#endif

}  // namespace fastfisher::cpu
