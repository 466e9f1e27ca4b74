// SPDX-License-Identifier: Apache-2.0
//
// What core asks of the CPU backend beside its table: the host's threads, kernels and BLAS.
#pragma once

#include "fastfisher/context.hpp"

#include <string>

namespace fastfisher::cpu {

int thread_count(const Context& ctx);
std::string simd_name();
bool outruns_mkl();
std::string blas_name();

}  // namespace fastfisher::cpu
