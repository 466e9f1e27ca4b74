// SPDX-License-Identifier: Apache-2.0
#define FF_VECTOR_BYTES 16
#include "tile_kernels_body.hpp"

namespace fastfisher::cpu {

template <class T>
const TileKernels<T>& tile_kernels_base() {
  static const TileKernels<T> kernels = make_kernels<T>("base");
  return kernels;
}

template const TileKernels<float>& tile_kernels_base();
template const TileKernels<double>& tile_kernels_base();

}  // namespace fastfisher::cpu
