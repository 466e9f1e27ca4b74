// SPDX-License-Identifier: Apache-2.0
//
// The device's side of a launch: the block context of the kernel bodies and the checks after it.
#pragma once

#include "block.hpp"
#include "check.hpp"

#include <cuda_runtime.h>

#include <cstdint>

namespace fastfisher::cuda {

struct DeviceBlock {
  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ std::int64_t index() const { return blockIdx.x; }
  __device__ std::int64_t blocks() const { return gridDim.x; }
  __device__ void sync() const { __syncthreads(); }
  __device__ void atomic_max(std::uint64_t* address, std::uint64_t value) const {
    static_assert(sizeof(unsigned long long) == sizeof(std::uint64_t));
    atomicMax(reinterpret_cast<unsigned long long*>(address),
              static_cast<unsigned long long>(value));
  }
};

/// After every launch. Debug builds wait for the kernel, so that a fault is found where it happens.
inline void check_launch(const char* op, [[maybe_unused]] cudaStream_t stream) {
  check(cudaGetLastError(), op, "kernel launch");
#if !defined(NDEBUG)
  check(cudaStreamSynchronize(stream), op, "kernel");
#endif
}

/// Blocks for `tasks` of a grid-stride loop; the cap keeps the grid within the device's limits.
inline unsigned grid_of(std::int64_t tasks) {
  constexpr std::int64_t kMost = std::int64_t{1} << 20;
  return static_cast<unsigned>(tasks < kMost ? tasks : kMost);
}

}  // namespace fastfisher::cuda
