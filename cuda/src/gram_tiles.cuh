// SPDX-License-Identifier: Apache-2.0
//
// The kernel of the Gram and its launch, for the files that instantiate one arithmetic each.
#pragma once

#include "gram_tiles.hpp"
#include "launch.cuh"

#include <algorithm>

namespace fastfisher::cuda {

template <class Product>
__global__ void __launch_bounds__(Product::kThreads, 1)
    gram_kernel(const __grid_constant__ Problem problem, const Layer* __restrict__ layers,
                int stages, std::byte* slots, std::uint64_t* overflow) {
  using Tile = GramTile<Product, false>;
  __shared__ typename Tile::Shared shared;
  extern __shared__ __align__(16) unsigned char ring[];
  Product product{reinterpret_cast<typename Product::T*>(ring), stages};
  Tile::run(DeviceBlock{}, shared, product, problem, layers, slots, overflow);
}

template <class Product>
void gram_launch(const Problem& problem, const Layer* layers, std::byte* slots, std::int64_t blocks,
                 std::uint64_t* overflow, cudaStream_t stream) {
  using Tile = GramTile<Product, false>;
  const std::int64_t tiles = Tile::tiles_of(problem);
  if (tiles == 0) return;
  int device = 0, most = 0;
  check(cudaGetDevice(&device), "gram", "cudaGetDevice");
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "gram",
        "asking for the shared memory of a block");
  most -= static_cast<int>(sizeof(typename Tile::Shared)) + 1024;
  const int stages = std::clamp(most / Product::kStageBytes, 2, 4);
  const int bytes = stages * Product::kStageBytes;
  check(cudaFuncSetAttribute(gram_kernel<Product>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             bytes),
        "gram", "asking for shared memory");
  const auto grid = static_cast<unsigned>(std::min(tiles, blocks));
  gram_kernel<Product><<<grid, Tile::kThreads, static_cast<std::size_t>(bytes), stream>>>(
      problem, layers, stages, slots, overflow);
  check_launch("gram", stream);
}

}  // namespace fastfisher::cuda
