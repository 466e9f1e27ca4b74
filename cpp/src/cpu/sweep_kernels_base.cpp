// SPDX-License-Identifier: Apache-2.0
#define FF_VECTOR_BYTES 16
#include "sweep_kernels_body.hpp"

namespace fastfisher::cpu {

template <class T>
const SweepKernels<T>& sweep_kernels_base() {
  static const SweepKernels<T> kernels = make_kernels<T>("base");
  return kernels;
}

template const SweepKernels<float>& sweep_kernels_base();
template const SweepKernels<double>& sweep_kernels_base();

}  // namespace fastfisher::cpu
