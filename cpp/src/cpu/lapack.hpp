// SPDX-License-Identifier: Apache-2.0
//
// Dense kernels of one thread on row-major lower triangles, for T float and double: by the bundled
// BLAS and LAPACK, or by plain loops where there is none.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastfisher::cpu {

enum class Side : std::uint8_t { left, right };
enum class Op : std::uint8_t { plain, transposed };

/// c[m,n] += alpha op(a)[m,k] op(b)[k,n].
template <class T>
void add_product(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha,
                 const T* a, std::int64_t lda, const T* b, std::int64_t ldb, T* c,
                 std::int64_t ldc);

/// Lower triangle of c[n,n] += alpha op(a)[n,k] op(a)^T.
template <class T>
void add_square(Op op, std::int64_t n, std::int64_t k, T alpha, const T* a, std::int64_t lda, T* c,
                std::int64_t ldc);

/// b[m,n] = alpha op(l)^-1 b, or alpha b op(l)^-1 from the right, l lower.
template <class T>
void solve_lower(Side side, Op op, std::int64_t m, std::int64_t n, T alpha, const T* l,
                 std::int64_t ldl, T* b, std::int64_t ldb);

/// Lower Cholesky factor in place: 0, or the order of the leading minor that is not positive.
template <class T>
std::int64_t factor(std::int64_t n, T* a, std::int64_t lda);

/// Eigenvalues, ascending, and eigenvectors as *rows* in place of the lower triangle of packed a;
/// false if the iteration did not converge. work: eigen_work<T>(n) bytes.
template <class T>
bool eigen(std::int64_t n, T* a, T* values, void* work);
template <class T>
std::int64_t eigen_work(std::int64_t n);

}  // namespace fastfisher::cpu
