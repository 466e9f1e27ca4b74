// SPDX-License-Identifier: Apache-2.0
#include "tile_kernels.hpp"

#include "instruction_set.hpp"

namespace fastfisher::cpu {

template <class T>
const TileKernels<T>& tile_kernels(std::int64_t columns) {
#if defined(FF_HAVE_AVX512)
  if (has_avx512()) {
    // Of a few hundred columns wide panels waste more at the edges than they save in loads.
    constexpr std::int64_t kFewColumns = 1536;
    if (columns <= tile_kernels_avx512_narrow<T>().nr) return tile_kernels_avx512_narrow<T>();
    if (columns <= kFewColumns) return tile_kernels_avx512_medium<T>();
    return tile_kernels_avx512<T>();
  }
#endif
#if defined(FF_HAVE_AVX2)
  if (has_avx2()) return tile_kernels_avx2<T>();
#endif
  return tile_kernels_base<T>();
}

template <class T>
const TileKernels<T>& tile_kernels_of_width(std::int64_t nr) {
  const TileKernels<T>& widest = tile_kernels<T>();
  return nr == widest.nr ? widest : tile_kernels<T>(nr);
}

template const TileKernels<float>& tile_kernels(std::int64_t columns);
template const TileKernels<double>& tile_kernels(std::int64_t columns);
template const TileKernels<float>& tile_kernels_of_width(std::int64_t nr);
template const TileKernels<double>& tile_kernels_of_width(std::int64_t nr);

}  // namespace fastfisher::cpu
