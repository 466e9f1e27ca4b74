// SPDX-License-Identifier: Apache-2.0
#include "gram_tiles.cuh"

namespace fastfisher::cuda {

void gram_tiles_double(const Problem& problem, const Layer* layers, std::byte* slots,
                       std::int64_t blocks, std::uint64_t* overflow, cudaStream_t stream) {
  gram_launch<WideTile<DoubleSteps>>(problem, layers, slots, blocks, overflow, stream);
}

}  // namespace fastfisher::cuda
