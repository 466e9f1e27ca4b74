// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "launch.cuh"
#include "pipelined_block.hpp"

namespace fastfisher::cuda {

struct PipelinedDeviceBlock : DeviceBlock {
  __device__ int thread_again() const {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
  }
};
static_assert(PipelinedBlock<PipelinedDeviceBlock>);

}  // namespace fastfisher::cuda
