// SPDX-License-Identifier: Apache-2.0
//
// The device as the flows of psd see it: bodies are launched on the caller's stream, bytes go to
// the workspace and come back.
#pragma once

#include "launch.cuh"
#include "psd_pass_body.hpp"

#include <cstddef>
#include <cstdint>
#include <limits>

namespace fastfisher::cuda {

template <class Body>
__global__ void __launch_bounds__(Body::kThreads, Body::kMinBlocks) psd_kernel(Body body) {
  extern __shared__ __align__(16) std::byte psd_shared[];
  body.run(DeviceBlock{}, *reinterpret_cast<typename Body::Shared*>(psd_shared));
}

using PsdPass = PassSize<64, 256>;

struct PsdDevice {
  cudaStream_t stream;

  template <class Body>
  void launch(const Body& body, std::int64_t blocks) const {
    launch(body, blocks, static_cast<std::int64_t>(sizeof(typename Body::Shared)));
  }
  template <class Body>
  void launch(const Body& body, std::int64_t blocks, std::int64_t shared) const {
    constexpr std::int64_t kOrdinary = std::int64_t{48} << 10;
    if (shared > kOrdinary) {
      check(cudaFuncSetAttribute(psd_kernel<Body>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared)),
            "psd", "shared memory");
    }
    unsigned grid = grid_of(blocks);
    if constexpr (requires { Body::kTaskABlock; }) {
      if (blocks > std::numeric_limits<std::int32_t>::max())
        throw Error(ErrorCode::memory, "psd", "a", "got more tiles than one launch can have");
      grid = static_cast<unsigned>(blocks);
    }
    psd_kernel<Body><<<grid, Body::kThreads, static_cast<std::size_t>(shared), stream>>>(body);
    check_launch("psd", stream);
  }

  // From pageable memory: the runtime has read it when the call returns.
  void write(void* to, const void* from, std::int64_t bytes) const {
    check(
        cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, stream),
        "psd", "writing the tables");
  }
  void read(void* to, const void* from, std::int64_t bytes) const {
    check(
        cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, stream),
        "psd", "reading the reports");
    check(cudaStreamSynchronize(stream), "psd", "kernels");
  }
};

}  // namespace fastfisher::cuda
