// SPDX-License-Identifier: Apache-2.0
//
// The matrix product of the Jacobian products and moments, see product_body.hpp.
//
// One block of 256 threads a tile of 128 x 128 entries, or of 64 threads a tile of 64 x 64, for
// small products; 64 a thread in registers. Operands come through three stages of shared memory by
// asynchronous copies, transposed on the way where depths lie together. float32 runs two or six
// blocks a multiprocessor, float64 one or four. 2 rows cols depth flops; each operand is read once
// for each row or column of tiles, neighbours at the same time.
#include "pipelined_block.cuh"
#include "product_launch.hpp"

namespace fastfisher::cuda {
namespace {

template <class T, int Edge>
using DeviceTile = ProductTile<T, Edge, sizeof(T) == 4 ? 16 : 8, Edge / 8>;
template <class T, int Edge>
constexpr int kBlocks = Edge == 128 ? (sizeof(T) == 4 ? 2 : 1) : (sizeof(T) == 4 ? 6 : 4);
template <class T>
using DeviceSum = ProductSum<T, 256>;

// Tiles, or blocks of sums, of each product of a list: from[k] is the first of product k.
struct Ranges {
  std::int64_t count = 0;
  std::int64_t from[kProductTable + 1] = {0};

  [[nodiscard]] __device__ std::int64_t find(std::int64_t at) const {
    std::int64_t low = 0, high = count;
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (from[middle] <= at ? low : high) = middle;
    }
    return low;
  }
};

template <class T, int Edge>
__global__ void __launch_bounds__(DeviceTile<T, Edge>::kThreads, kBlocks<T, Edge>)
    product_kernel(const __grid_constant__ Product<T> one, const Product<T>* __restrict__ table,
                   const __grid_constant__ Ranges tiles) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<typename DeviceTile<T, Edge>::Shared*>(memory);
  for (std::int64_t tile = blockIdx.x; tile < tiles.from[tiles.count]; tile += gridDim.x) {
    const std::int64_t item = tiles.find(tile);
    DeviceTile<T, Edge>::run(PipelinedDeviceBlock{}, shared, table == nullptr ? one : table[item],
                             tile - tiles.from[item]);
  }
}

template <class T>
__global__ void __launch_bounds__(DeviceSum<T>::kThreads)
    sum_kernel(const __grid_constant__ Product<T> one, const Product<T>* __restrict__ table,
               const __grid_constant__ Ranges blocks) {
  for (std::int64_t at = blockIdx.x; at < blocks.from[blocks.count]; at += gridDim.x) {
    const std::int64_t item = blocks.find(at);
    DeviceSum<T>::run(DeviceBlock{}, table == nullptr ? one : table[item], at - blocks.from[item]);
  }
}

template <class T, int Edge>
void launch_tiles(std::span<const Product<T>> products, const Product<T>* table,
                  cudaStream_t stream, const char* op) {
  using Tile = DeviceTile<T, Edge>;
  using Shared = typename Tile::Shared;
  Ranges tiles;
  for (const Product<T>& p : products) {
    tiles.from[tiles.count + 1] = tiles.from[tiles.count] + Tile::tiles_of(p);
    ++tiles.count;
  }
  const std::int64_t all = tiles.from[tiles.count];
  if (all == 0) return;
  check(cudaFuncSetAttribute(product_kernel<T, Edge>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(sizeof(Shared))),
        op, "shared memory of the product");
  product_kernel<T, Edge>
      <<<grid_of(all), Tile::kThreads, sizeof(Shared), stream>>>(products.front(), table, tiles);
  check_launch(op, stream);
}

// All products of a list have tiles of one size.
template <class T>
void launch(std::span<const Product<T>> products, const Product<T>* table, cudaStream_t stream,
            const char* op) {
  if (products.front().edge == 64) {
    launch_tiles<T, 64>(products, table, stream, op);
  } else {
    launch_tiles<T, 128>(products, table, stream, op);
  }
  Ranges sums;
  for (const Product<T>& p : products) {
    const std::int64_t blocks = p.splits > 1 ? parts_of(p.entries(), DeviceSum<T>::kThreads) : 0;
    sums.from[sums.count + 1] = sums.from[sums.count] + blocks;
    ++sums.count;
  }
  if (sums.from[sums.count] == 0) return;
  sum_kernel<T><<<grid_of(sums.from[sums.count]), DeviceSum<T>::kThreads, 0, stream>>>(
      products.front(), table, sums);
  check_launch(op, stream);
}

}  // namespace

template <class T>
void launch_product(const Product<T>& product, void* stream, const char* op) {
  launch<T>({&product, 1}, nullptr, static_cast<cudaStream_t>(stream), op);
}

template <class T>
void launch_products(std::span<const Product<T>> products, Product<T>* table, void* stream,
                     const char* op) {
  if (products.empty()) return;
  const auto on = static_cast<cudaStream_t>(stream);
  // From pageable memory: the runtime has read the list when the call returns.
  check(cudaMemcpyAsync(table, products.data(), products.size_bytes(), cudaMemcpyHostToDevice, on),
        op, "writing the list of products");
  launch<T>(products, table, on, op);
}

template void launch_product(const Product<float>&, void*, const char*);
template void launch_product(const Product<double>&, void*, const char*);
template void launch_products(std::span<const Product<float>>, Product<float>*, void*, const char*);
template void launch_products(std::span<const Product<double>>, Product<double>*, void*,
                              const char*);

}  // namespace fastfisher::cuda
