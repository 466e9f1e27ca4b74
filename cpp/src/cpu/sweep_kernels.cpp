// SPDX-License-Identifier: Apache-2.0
#include "sweep_kernels.hpp"

#include "instruction_set.hpp"

namespace fastfisher::cpu {

template <class T>
const SweepKernels<T>& sweep_kernels() {
#if defined(FF_HAVE_AVX512)
  if (has_avx512()) return sweep_kernels_avx512<T>();
#endif
#if defined(FF_HAVE_AVX2)
  if (has_avx2()) return sweep_kernels_avx2<T>();
#endif
  return sweep_kernels_base<T>();
}

template const SweepKernels<float>& sweep_kernels();
template const SweepKernels<double>& sweep_kernels();

}  // namespace fastfisher::cpu
