// SPDX-License-Identifier: Apache-2.0
//
// The product that a reduction to tridiagonal form makes for every column. Compiled once for each
// instruction set and chosen at run time.
#pragma once

#include <cstdint>

namespace fastfisher::cpu {

/// Rows and columns of the blocks on the diagonal, which are stored apart.
inline constexpr std::int64_t kDiagonalBlock = 8;

template <class T>
struct ReductionKernels {
  /// out = A v for entries first ... n of the vectors, both multiples of kDiagonalBlock. Blocks on
  /// the diagonal stand, whole, in `diagonal` [n, kDiagonalBlock]; of a [n, lda] what is right of
  /// them is read.
  void (*product)(const T* a, std::int64_t lda, const T* diagonal, std::int64_t first,
                  std::int64_t n, const T* v, T* out) = nullptr;
};

template <class T>
const ReductionKernels<T>& reduction_kernels_base();
#if defined(FF_HAVE_AVX2)
template <class T>
const ReductionKernels<T>& reduction_kernels_avx2();
#endif

/// The best kernels that this processor runs.
template <class T>
const ReductionKernels<T>& reduction_kernels();

}  // namespace fastfisher::cpu
