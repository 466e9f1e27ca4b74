// SPDX-License-Identifier: Apache-2.0
#include "sweep_kernels.hpp"

namespace fastfisher::cpu {

template <class T>
const SweepKernels<T>& sweep_kernels() {
#if defined(FF_HAVE_AVX2)
  static const bool avx2 =
      __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
  if (avx2) return sweep_kernels_avx2<T>();
#endif
  return sweep_kernels_base<T>();
}

template const SweepKernels<float>& sweep_kernels();
template const SweepKernels<double>& sweep_kernels();

}  // namespace fastfisher::cpu
