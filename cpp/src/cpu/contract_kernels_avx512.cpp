// SPDX-License-Identifier: Apache-2.0
#define FF_VECTOR_BYTES 64
#include "contract_kernels_body.hpp"

namespace fastfisher::cpu {

template <class T>
const ContractKernels<T>& contract_kernels_avx512() {
  static const ContractKernels<T> kernels = {dots<T>, weigh<T>, combine<T>, sum_panel<T>,
                                             sum_lines<T>};
  return kernels;
}

template const ContractKernels<float>& contract_kernels_avx512();
template const ContractKernels<double>& contract_kernels_avx512();

}  // namespace fastfisher::cpu
