// SPDX-License-Identifier: Apache-2.0
#include "reduction_kernels.hpp"

#include "instruction_set.hpp"

namespace fastfisher::cpu {

template <class T>
const ReductionKernels<T>& reduction_kernels() {
#if defined(FF_HAVE_AVX2)
  if (has_avx2()) return reduction_kernels_avx2<T>();
#endif
  return reduction_kernels_base<T>();
}

template const ReductionKernels<float>& reduction_kernels();
template const ReductionKernels<double>& reduction_kernels();

}  // namespace fastfisher::cpu
