// SPDX-License-Identifier: Apache-2.0
//
// What a kernel body asks of its thread block. Bodies are templates over it, so that the same code
// runs on a device (launch.cuh) and in the tests of a machine without one, where every CUDA thread
// is a std::thread.
#pragma once

#include <concepts>
#include <cstdint>

#if defined(__CUDACC__)
#define FF_HD __host__ __device__
#else
#define FF_HD
#endif

namespace fastfisher::cuda {

template <class B>
concept BlockContext = requires(const B& block, std::uint64_t* address, std::uint64_t value) {
  { block.thread() } -> std::same_as<int>;           // index within the block
  { block.index() } -> std::same_as<std::int64_t>;   // of the block within the launch
  { block.blocks() } -> std::same_as<std::int64_t>;  // of the launch
  block.sync();                                      // barrier of the block's threads
  block.atomic_max(address, value);                  // *address = max(*address, value), any order
};

}  // namespace fastfisher::cuda
