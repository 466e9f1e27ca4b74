// SPDX-License-Identifier: Apache-2.0
#include "symm_kernels.hpp"

namespace fastfisher::cpu {

template <class T>
const SymmKernels<T>& symm_kernels() {
#if defined(FF_HAVE_AVX2)
  static const bool avx2 =
      __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
  if (avx2) return symm_kernels_avx2<T>();
#endif
  return symm_kernels_base<T>();
}

template const SymmKernels<float>& symm_kernels();
template const SymmKernels<double>& symm_kernels();

}  // namespace fastfisher::cpu
