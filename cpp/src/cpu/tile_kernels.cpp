// SPDX-License-Identifier: Apache-2.0
#include "tile_kernels.hpp"

namespace fastfisher::cpu {

template <class T>
const TileKernels<T>& tile_kernels() {
#if defined(FF_HAVE_AVX2)
  static const bool avx2 =
      __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
  if (avx2) return tile_kernels_avx2<T>();
#endif
  return tile_kernels_base<T>();
}

template const TileKernels<float>& tile_kernels();
template const TileKernels<double>& tile_kernels();

}  // namespace fastfisher::cpu
