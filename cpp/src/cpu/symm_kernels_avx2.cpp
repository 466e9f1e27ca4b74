// SPDX-License-Identifier: Apache-2.0
#define FF_VECTOR_BYTES 32
#include "symm_kernels_body.hpp"

namespace fastfisher::cpu {

template <class T>
const SymmKernels<T>& symm_kernels_avx2() {
  static const SymmKernels<T> kernels = {tile<T>, check<T>};
  return kernels;
}

template const SymmKernels<float>& symm_kernels_avx2();
template const SymmKernels<double>& symm_kernels_avx2();

}  // namespace fastfisher::cpu
