// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of one tile of a symmetric matrix, used for both of its places at once. Compiled
// once for each instruction set and chosen at run time.
#pragma once

#include <cstdint>
#include <type_traits>

namespace fastfisher::cpu {

/// Vectors of a panel, side by side: entry j of vector k stands at [j * kSymmWidth + k].
inline constexpr std::int64_t kSymmWidth = 8;

/// The bits of |x| are ordered as the numbers are, with infinity and NaN above all.
template <class T>
using Magnitude = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

template <class T>
struct SymmKernels {
  /// left_out[i] += sum_j a[i,j] right[j] and right_out[j] += sum_i a[i,j] left[i] for a tile of
  /// rows i and columns j; `left` and `right` are the panels at the tile's rows and columns.
  void (*tile)(const T* a, std::int64_t lda, std::int64_t rows, std::int64_t cols, const T* left,
               const T* right, T* left_out, T* right_out) = nullptr;
  /// Raises `largest` to every |a[i,j]| and |mirror[j,i]| and `apart` to every |a[i,j] -
  /// mirror[j,i]| of a tile of rows i and columns j; lda is the pitch of both.
  void (*check)(const T* a, const T* mirror, std::int64_t lda, std::int64_t rows, std::int64_t cols,
                Magnitude<T>& largest, Magnitude<T>& apart) = nullptr;
};

template <class T>
const SymmKernels<T>& symm_kernels_base();
#if defined(FF_HAVE_AVX2)
template <class T>
const SymmKernels<T>& symm_kernels_avx2();
#endif

/// The best kernels that this processor runs.
template <class T>
const SymmKernels<T>& symm_kernels();

}  // namespace fastfisher::cpu
