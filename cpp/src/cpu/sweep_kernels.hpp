// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of the inversion of a symmetric matrix that lies in panels of columns. Compiled
// once for each instruction set and chosen at run time.
#pragma once

#include <cstdint>

namespace fastfisher::cpu {

inline constexpr std::int64_t kSweepWidth = 32;  ///< no panel is wider
inline constexpr std::int64_t kSweepStrip = 4;   ///< rows that are loaded at once
inline constexpr std::int64_t kSweepTile = 64;   ///< rows that are stored at once

/// Kernels in T on panels: [row][width], rows one after the other. A panel is the right operand of
/// a product as it lies, its columns are the left one.
template <class T>
struct SweepKernels {
  std::int64_t width = 0;
  const char* name = "";

  /// c[i,j] (+)= sum_l left[l,i] right[l,j] over l < depth, for i < rows: column i of the left side
  /// lies in panel i / width, `pitch` numbers after the one before. Up to width rows of c in all
  /// may be written beyond, never past the panel's next multiple of width.
  void (*product)(const T* left, std::int64_t pitch, const T* right, std::int64_t depth,
                  std::int64_t rows, T* c, bool accumulate) = nullptr;

  /// inverse[width][width] = L^-1 of -a = L L^T, zero above the diagonal and beyond size <= width;
  /// of `a` the lower triangle is read. 0, or the order of the leading minor that is not positive.
  std::int64_t (*leaf)(const T* a, std::int64_t size, T* inverse) = nullptr;

  /// x = L^-1 x, or L^-T x if `transposed`, in place for x[width][width]. tile[width][width] holds
  /// columns of L, or its rows if transposed, and on its diagonal the inverses of L's.
  void (*substitute)(const T* tile, bool transposed, T* x) = nullptr;

  /// Pack `count` rows (padded to the width) of `depth` entries, `stride` apart, times `scale`.
  void (*pack)(const T* const* rows, std::int64_t count, std::int64_t width, std::int64_t stride,
               std::int64_t depth, double scale, T* to) = nullptr;

  /// to[j][i] = from[i][j], width times width.
  void (*transpose)(const T* from, T* to) = nullptr;

  /// Rows i to i + count <= kSweepStrip of panels, columns `from` to `to`, multiples of width:
  /// those of -diag(scale) a diag(scale), a from column `from` on. sums += those of |a| unit by
  /// rows and by columns. `data` are the panels, `height` the rows of the first one.
  void (*load)(const T* a, std::int64_t lda, std::int64_t count, std::int64_t i, std::int64_t from,
               std::int64_t to, const T* scale, T unit, T* data, std::int64_t height,
               T* sums) = nullptr;

  /// out[n][n], rows i to i + count <= kSweepTile of the panel of columns j on, times their scales,
  /// and the mirror of that. lanes[count][width] += |out| unit, sums[width] those by columns.
  /// Without scales all entries times `unit`, and no sums.
  void (*store)(const T* panel, std::int64_t count, std::int64_t i, std::int64_t j, const T* scale,
                T unit, T* out, std::int64_t n, T* lanes, T* sums) = nullptr;
};

template <class T>
const SweepKernels<T>& sweep_kernels_base();
#if defined(FF_HAVE_AVX2)
template <class T>
const SweepKernels<T>& sweep_kernels_avx2();
#endif
#if defined(FF_HAVE_AVX512)
template <class T>
const SweepKernels<T>& sweep_kernels_avx512();
#endif

/// The best kernels that this processor runs.
template <class T>
const SweepKernels<T>& sweep_kernels();

}  // namespace fastfisher::cpu
