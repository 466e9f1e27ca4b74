// SPDX-License-Identifier: Apache-2.0
#include "contract_kernels.hpp"

#include "instruction_set.hpp"

namespace fastfisher::cpu {

template <class T>
const ContractKernels<T>& contract_kernels() {
#if defined(FF_HAVE_AVX512)
  if (has_avx512()) return contract_kernels_avx512<T>();
#endif
#if defined(FF_HAVE_AVX2)
  if (has_avx2()) return contract_kernels_avx2<T>();
#endif
  return contract_kernels_base<T>();
}

template const ContractKernels<float>& contract_kernels();
template const ContractKernels<double>& contract_kernels();

}  // namespace fastfisher::cpu
