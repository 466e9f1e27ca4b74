// SPDX-License-Identifier: Apache-2.0
#include "symm_kernels.hpp"

#include "instruction_set.hpp"

namespace fastfisher::cpu {

template <class T>
const SymmKernels<T>& symm_kernels() {
#if defined(FF_HAVE_AVX2)
  if (has_avx2()) return symm_kernels_avx2<T>();
#endif
  return symm_kernels_base<T>();
}

template const SymmKernels<float>& symm_kernels();
template const SymmKernels<double>& symm_kernels();

}  // namespace fastfisher::cpu
