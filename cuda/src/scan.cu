// SPDX-License-Identifier: Apache-2.0
#include "gram_tiles.hpp"
#include "launch.cuh"

namespace fastfisher::cuda {
namespace {

template <class S>
using DeviceScan = Scan<S, 256>;

template <class S>
__global__ void __launch_bounds__(DeviceScan<S>::kThreads)
    scan_kernel(const __grid_constant__ ScanInput input, ScanFound* found) {
  __shared__ typename DeviceScan<S>::Shared shared;
  DeviceScan<S>::run(DeviceBlock{}, shared, input, found);
}

}  // namespace

void scan(const ArrayRef& array, ScanFound* found, cudaStream_t stream) {
  if (array.size() == 0) return;
  const ScanInput input = scan_input(array);
  visit_storage(array.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    constexpr std::int64_t kEntriesABlock = 16 * DeviceScan<S>::kThreads;
    const unsigned blocks = grid_of((input.size + kEntriesABlock - 1) / kEntriesABlock);
    scan_kernel<S><<<blocks, DeviceScan<S>::kThreads, 0, stream>>>(input, found);
  });
  check_launch("gram", stream);
}

}  // namespace fastfisher::cuda
