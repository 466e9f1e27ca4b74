// SPDX-License-Identifier: Apache-2.0
#include "gram_tiles.hpp"
#include "launch.cuh"
#include "panel_body.hpp"

namespace fastfisher::cuda {
namespace {

using DevicePack = Pack<128>;

__global__ void __launch_bounds__(DevicePack::kThreads)
    pack_kernel(const __grid_constant__ PackProblem problem) {
  DevicePack::run(DeviceBlock{}, problem);
}

}  // namespace

void pack(const PackProblem& problem, cudaStream_t stream) {
  const std::int64_t panels = DevicePack::panels_of(problem);
  if (panels == 0) return;
  pack_kernel<<<grid_of(panels), DevicePack::kThreads, 0, stream>>>(problem);
  check_launch("gram", stream);
}

}  // namespace fastfisher::cuda
