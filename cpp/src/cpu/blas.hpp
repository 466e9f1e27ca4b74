// SPDX-License-Identifier: Apache-2.0
//
// The bundled BLAS, always at one thread: all parallelism is in our own tiles.
#pragma once

#include <cstdint>
#include <string>

namespace fastfisher::cpu {

/// Whether this build has a BLAS.
bool has_blas();

/// Its name and version, or "none".
std::string blas_name();

/// c[m,n] = a[m,k] b[k,n], row-major with leading dimensions; one thread. Only if has_blas().
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda,
          const float* b, std::int64_t ldb, float* c, std::int64_t ldc);
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const double* a, std::int64_t lda,
          const double* b, std::int64_t ldb, double* c, std::int64_t ldc);

}  // namespace fastfisher::cpu
