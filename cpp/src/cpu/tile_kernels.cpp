// SPDX-License-Identifier: Apache-2.0
#include "tile_kernels.hpp"

#include "instruction_set.hpp"

namespace fastfisher::cpu {

template <class T>
const TileKernels<T>& tile_kernels(std::int64_t columns) {
#if defined(FF_HAVE_AVX512)
  if (has_avx512()) {
    for (const auto* kernels : {&tile_kernels_avx512_narrow<T>(), &tile_kernels_avx512_medium<T>()})
      if (columns <= kernels->nr) return *kernels;
    return tile_kernels_avx512<T>();
  }
#endif
#if defined(FF_HAVE_AVX2)
  if (has_avx2()) return tile_kernels_avx2<T>();
#endif
  return tile_kernels_base<T>();
}

template const TileKernels<float>& tile_kernels(std::int64_t columns);
template const TileKernels<double>& tile_kernels(std::int64_t columns);

}  // namespace fastfisher::cpu
