// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of one tile, compiled once for each instruction set and chosen at run time.
#pragma once

#include "fastfisher/dtype.hpp"

#include <cstdint>
#include <limits>
#include <type_traits>

namespace fastfisher::cpu {

/// Memory that a product asks for on its way, for whoever comes after it: stretches of `segment`
/// bytes, `pitch` apart, `bytes` in all; or `inner` of them every `pitch`, `inner_pitch` apart.
struct Ahead {
  const char* base = nullptr;
  std::int64_t segment = 1, pitch = 0, bytes = 0;
  std::int64_t inner = 1, inner_pitch = 0;
};

/// Part of the depth of rows that lie in memory as they are.
struct Stretch {
  std::int64_t from = 0, length = 0;
};

/// Lines that one product of lines takes at most.
inline constexpr std::int64_t kMostLines = 256;

/// Kernels for products in T. Panels are packed depth-major: left [k][mr], right [k][nr], edges
/// padded with zeros, so that the bits of an entry depend on its two rows alone, never on where a
/// tile begins.
template <class T>
struct TileKernels {
  std::int64_t mr = 0;
  std::int64_t nr = 0;
  std::int64_t lanes = 0;  ///< of a vector; nr is a multiple
  const char* name = "";

  /// Pack `count` rows (padded to `width`) of `k` entries, `stride` apart, times `scale`, into
  /// dst[k][width].
  void (*pack_f32)(const float* const* rows, std::int64_t count, std::int64_t width,
                   std::int64_t stride, std::int64_t k, double scale, T* dst) = nullptr;
  void (*pack_f64)(const double* const* rows, std::int64_t count, std::int64_t width,
                   std::int64_t stride, std::int64_t k, double scale, T* dst) = nullptr;

  void (*pack_bf16)(const BFloat16* const* rows, std::int64_t count, std::int64_t width,
                    std::int64_t stride, std::int64_t k, double scale, T* dst) = nullptr;
  void (*pack_f16)(const Float16* const* rows, std::int64_t count, std::int64_t width,
                   std::int64_t stride, std::int64_t k, double scale, T* dst) = nullptr;

  /// c[i,j] (+)= sum_k left[k,i] right[k,j] for `rows` panels and `cols` columns; panels of depth k
  /// lie at the given pitch. Of a last panel of columns c holds all, or those up to the vector that
  /// `cols` ends in. Micro tiles wholly above the diagonal are skipped: those with i + mr - 1 +
  /// skew < j.
  void (*product)(const T* left, const T* right, std::int64_t k, std::int64_t left_pitch,
                  std::int64_t right_pitch, std::int64_t rows, std::int64_t cols, std::int64_t skew,
                  T* c, std::int64_t ldc, bool accumulate) = nullptr;

  /// The same for one panel on the right and none skipped, asking for the next `share` bytes of
  /// `ahead` from byte `at` on.
  void (*product_ahead)(const T* left, const T* right, std::int64_t k, std::int64_t left_pitch,
                        std::int64_t rows, std::int64_t cols, T* c, std::int64_t ldc,
                        bool accumulate, const Ahead& ahead, std::int64_t at,
                        std::int64_t share) = nullptr;

  /// The same for rows on the left that lie in memory as they are, `one` followed by a number 1.
  void (*product_rows)(const T* const* left, const T* right, std::int64_t k, bool one,
                       std::int64_t rows, std::int64_t cols, T* c, std::int64_t ldc,
                       bool accumulate, const Ahead& ahead, std::int64_t at,
                       std::int64_t share) = nullptr;

  /// The same with left rows that lie in panels of columns too, from row `first` (even) of `left`,
  /// which has `panels` of them: where a block meets itself one packed copy serves both sides.
  void (*product_within)(const T* left, std::int64_t first, std::int64_t panels, const T* right,
                         std::int64_t k, std::int64_t rows, std::int64_t cols, std::int64_t skew,
                         T* c, std::int64_t ldc, bool accumulate) = nullptr;

  /// c[i,j] (+)= sum_k left[k,i] right[k,j] for k <= kMostLines lines of either side that lie in
  /// memory as they are, at the given pitch; `cols` in whole vectors. `ahead` as above.
  void (*product_lines)(const T* left, std::int64_t left_pitch, const T* right,
                        std::int64_t right_pitch, std::int64_t k, std::int64_t rows,
                        std::int64_t cols, T* c, std::int64_t ldc, bool accumulate,
                        const Ahead& ahead, std::int64_t at, std::int64_t share) = nullptr;

  /// c[i,j] = sum_k left[i][k] right[j][k] over k in the stretches, all of them whole vectors, for
  /// rows that lie in memory as they are. Those wholly above the diagonal may be skipped: where
  /// i + skew < j. `ahead` as above, all of it.
  void (*dots)(const T* const* left, std::int64_t rows, const T* const* right, std::int64_t cols,
               const Stretch* stretches, std::int64_t count, std::int64_t skew, T* c,
               std::int64_t ldc, const Ahead& ahead) = nullptr;

  /// x[o][j] = sum_u lanes[u][j] panels[u][o][j] for `count` panels of depth k, all nr wide.
  void (*combine)(const T* const* panels, const T* lanes, std::int64_t count, std::int64_t k,
                  T* x) = nullptr;

  /// acc[j] (+)= (p[j] + bias) * scale * q[j] in float64; without p, scale * q[j].
  void (*fold)(const T* p, const T* q, double bias, double scale, std::int64_t n, double* acc,
               bool accumulate) = nullptr;
};

/// The packing for factors of type S.
template <class S, class T>
auto pack_of(const TileKernels<T>& kernels) {
  if constexpr (std::is_same_v<S, float>) {
    return kernels.pack_f32;
  } else if constexpr (std::is_same_v<S, double>) {
    return kernels.pack_f64;
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    return kernels.pack_bf16;
  } else {
    return kernels.pack_f16;
  }
}

template <class T>
const TileKernels<T>& tile_kernels_base();
#if defined(FF_HAVE_AVX2)
template <class T>
const TileKernels<T>& tile_kernels_avx2();
#endif
#if defined(FF_HAVE_AVX512)
template <class T>
const TileKernels<T>& tile_kernels_avx512();
template <class T>
const TileKernels<T>& tile_kernels_avx512_medium();
template <class T>
const TileKernels<T>& tile_kernels_avx512_narrow();
#endif

/// The best kernels that this processor runs for products of so many columns: narrower ones where
/// these are few. The bits of an entry are the same.
template <class T>
const TileKernels<T>& tile_kernels(std::int64_t columns = std::numeric_limits<std::int64_t>::max());

/// Those among them whose right panels are `nr` wide.
template <class T>
const TileKernels<T>& tile_kernels_of_width(std::int64_t nr);

}  // namespace fastfisher::cpu
