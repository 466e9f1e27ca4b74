// SPDX-License-Identifier: Apache-2.0
//
// Calls of the CUDA runtime: every one is checked, a failure becomes the library's exception.
#pragma once

#include "fastfisher/error.hpp"

#include <cuda_runtime_api.h>

#include <string>

namespace fastfisher::cuda {

inline std::string describe(cudaError_t status) {
  return std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ")";
}

inline void check(cudaError_t status, const char* op, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next launch of this thread would report it again
  throw Error(ErrorCode::cuda, op, "", std::string(what) + ": " + describe(status));
}

}  // namespace fastfisher::cuda
