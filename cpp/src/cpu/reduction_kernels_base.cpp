// SPDX-License-Identifier: Apache-2.0
#define FF_VECTOR_BYTES 16
#include "reduction_kernels_body.hpp"

namespace fastfisher::cpu {

template <class T>
const ReductionKernels<T>& reduction_kernels_base() {
  static const ReductionKernels<T> kernels = {product<T>};
  return kernels;
}

template const ReductionKernels<float>& reduction_kernels_base();
template const ReductionKernels<double>& reduction_kernels_base();

}  // namespace fastfisher::cpu
