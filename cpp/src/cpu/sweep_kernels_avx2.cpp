// SPDX-License-Identifier: Apache-2.0
#define FF_VECTOR_BYTES 32
#include "sweep_kernels_body.hpp"

namespace fastfisher::cpu {

template <class T>
const SweepKernels<T>& sweep_kernels_avx2() {
  static const SweepKernels<T> kernels = make_kernels<T>("avx2");
  return kernels;
}

template const SweepKernels<float>& sweep_kernels_avx2();
template const SweepKernels<double>& sweep_kernels_avx2();

}  // namespace fastfisher::cpu
