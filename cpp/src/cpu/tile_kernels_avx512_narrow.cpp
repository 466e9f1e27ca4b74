// SPDX-License-Identifier: Apache-2.0
#define FF_VECTOR_BYTES 64
// For products of few columns.
#define FF_TILE_ROWS 8
#define FF_TILE_VECTORS 1
#include "tile_kernels_body.hpp"

namespace fastfisher::cpu {

template <class T>
const TileKernels<T>& tile_kernels_avx512_narrow() {
  static const TileKernels<T> kernels = make_kernels<T>("avx512");
  return kernels;
}

template const TileKernels<float>& tile_kernels_avx512_narrow();
template const TileKernels<double>& tile_kernels_avx512_narrow();

}  // namespace fastfisher::cpu
