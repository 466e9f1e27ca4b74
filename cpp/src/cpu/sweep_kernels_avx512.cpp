// SPDX-License-Identifier: Apache-2.0
#define FF_VECTOR_BYTES 64
#include "sweep_kernels_body.hpp"

namespace fastfisher::cpu {

template <class T>
const SweepKernels<T>& sweep_kernels_avx512() {
  static const SweepKernels<T> kernels = make_kernels<T>("avx512");
  return kernels;
}

template const SweepKernels<float>& sweep_kernels_avx512();
template const SweepKernels<double>& sweep_kernels_avx512();

}  // namespace fastfisher::cpu
