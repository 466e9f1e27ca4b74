// SPDX-License-Identifier: Apache-2.0
//
// The device's pipelined block: asynchronous copies to shared memory, of compute capability 8.0 and
// later.
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
  template <class T>
  __device__ void copy(T* to, const T* from, bool valid) const {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    const int bytes = valid ? static_cast<int>(sizeof(T)) : 0;  // the rest is filled with zeros
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(address(to)), "l"(from),
                 "n"(sizeof(T)), "r"(bytes));
  }
  template <class T>
  __device__ void copy_wide(T* to, const T* from, bool valid) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address(to)), "l"(from),
                 "r"(valid ? 16 : 0));
  }
  __device__ void commit() const { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
  template <int Pending>
  __device__ void wait() const {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
  }

 private:
  __device__ static unsigned address(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
  }
};

}  // namespace fastfisher::cuda
