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
#if defined(__CUDA_ARCH__)
#define FF_UNROLL _Pragma("unroll")
#else
#define FF_UNROLL
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

// What products on tensor cores ask for beside that.
//
// mma: d[16][8] += a[16][8] b[8][8], by a whole warp. With g = lane / 4 and t = lane % 4 a thread
// holds a[g][t], a[g+8][t], a[g][t+4], a[g+8][t+4]; b[t][g], b[t+4][g]; and d[g][2t], d[g][2t+1],
// d[g+8][2t], d[g+8][2t+1]. Of a float in a and b the low 13 bits are not read (TF32). With words
// of two bfloat16 each element of a and b is such a pair, the first in the low half: depth is 16.
//
// copy: Bytes from device to shared memory in the background; where `valid` is false zeros, and
// `from` is not read. commit closes a group of copies; wait<Pending> returns when all but the
// thread's last Pending groups have landed.
template <class B>
concept WarpContext =
    BlockContext<B> &&
    requires(const B& block, float (&d)[4], const float (&a)[4], const float (&b)[2],
             double (&e)[4], const double (&p)[4], const double (&q)[2],
             const std::uint32_t (&u)[4], const std::uint32_t (&v)[2], void* to, const void* from) {
      block.mma(d, a, b);
      block.mma(d, u, v);
      block.mma(e, p, q);
      block.template copy<16>(to, from, true);
      block.commit();
      block.template wait<1>();
    };

}  // namespace fastfisher::cuda
