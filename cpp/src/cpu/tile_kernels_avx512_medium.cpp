// SPDX-License-Identifier: Apache-2.0
#define FF_VECTOR_BYTES 64
// For J v and J^T u, and Grams of some hundred columns, see tile_kernels.cpp.
#define FF_TILE_ROWS 8
#define FF_TILE_VECTORS 2
#include "tile_kernels_body.hpp"

namespace fastfisher::cpu {

template <class T>
const TileKernels<T>& tile_kernels_avx512_medium() {
  static const TileKernels<T> kernels = make_kernels<T>("avx512");
  return kernels;
}

template const TileKernels<float>& tile_kernels_avx512_medium();
template const TileKernels<double>& tile_kernels_avx512_medium();

}  // namespace fastfisher::cpu
