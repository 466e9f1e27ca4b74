// SPDX-License-Identifier: Apache-2.0
#define FF_VECTOR_BYTES 64
// Of 32 registers 28 are used, and a fused multiply-add takes a third less loads than of 16.
#define FF_TILE_ROWS 8
#define FF_TILE_VECTORS 3
#include "tile_kernels_body.hpp"

namespace fastfisher::cpu {

template <class T>
const TileKernels<T>& tile_kernels_avx512() {
  static const TileKernels<T> kernels = make_kernels<T>("avx512");
  return kernels;
}

template const TileKernels<float>& tile_kernels_avx512();
template const TileKernels<double>& tile_kernels_avx512();

}  // namespace fastfisher::cpu
