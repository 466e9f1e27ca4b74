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

  __device__ void mma(float (&d)[4], const float (&a)[4], const float (&b)[2]) const {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])),
                   "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
                   "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
  }

  __device__ void mma(float (&d)[4], const std::uint32_t (&a)[4],
                      const std::uint32_t (&b)[2]) const {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }

  __device__ void mma(double (&d)[4], const double (&a)[4], const double (&b)[2]) const {
#if __CUDA_ARCH__ >= 900
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+d"(d[0]), "+d"(d[1]), "+d"(d[2]), "+d"(d[3])
                 : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#else
    for (int half = 0; half < 2; ++half) {
      for (int k = 0; k < 2; ++k) {
        asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
                     : "+d"(d[2 * half]), "+d"(d[2 * half + 1])
                     : "d"(a[2 * k + half]), "d"(b[k]));
      }
    }
#endif
  }

  template <int Bytes>
  __device__ void copy(void* to, const void* from, bool valid) const {
    const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const int size = valid ? Bytes : 0;
    if constexpr (Bytes == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(size));
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(Bytes),
                   "r"(size));
    }
  }
  __device__ void commit() const { asm volatile("cp.async.commit_group;" ::); }
  template <int Pending>
  __device__ void wait() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
  }
};
static_assert(WarpContext<DeviceBlock>);

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
