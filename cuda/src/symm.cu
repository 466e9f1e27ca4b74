// SPDX-License-Identifier: Apache-2.0
//
// out[e,k,n] = scale[e]^2 A_e x_e of symmetric matrices, reading the lower triangle alone and once
// for up to 32 vectors (16 of float64): n^2 / 2 entries of traffic, 2 n^2 k flops.
//
//   pack x in panels of 8, 16, 24 or 32 vectors (4 of float64), times scale      one launch
//   for each strip of 128 rows and chunk of up to 512 columns                    one block each
//     for each tile of 128 x 128 (32 of float64), the next part on its way to shared memory
//       sums over its columns stay in registers, for the rows of the strip
//       sums over its rows, for its columns, go to the workspace
//   add the chunks of a row and the strips below it, in order, in float64        one launch
//
// float32 takes tensor cores, see symm_mma_body.hpp. By count, each 8192 entries with 8 vectors
// cost a multiprocessor of Hopper 384 products of 16 x 8 x 8, at most 800 cycles, 1150 cycles of
// issue and 1000 of shared memory; with 16 vectors twice that, 1450 and 1300. To read them from
// memory takes 1700; measured on an H200: 2500, in four blocks a multiprocessor or in two.
// Sums of a chunk or strip are in the dtype. No atomics: the bits depend on n alone, and on whether
// there are more than eight vectors.
// symmetry: largest magnitude and largest |a_ij - a_ji| in one read of the whole; maxima of
// integers, whose order does not matter.
#include "device_guard.hpp"
#include "fastfisher/ops.hpp"
#include "launch.cuh"
#include "symm_mma_body.hpp"
#include "symm_problem.hpp"
#include "symmetry_body.hpp"

#include <algorithm>
#include <string>

namespace fastfisher::cuda {
namespace {

using DoubleTile = SymmTile<double, 128, 32, 4, 128>;
// Eight vectors leave room for blocks of half as many warps, and so for twice as many blocks.
template <int Width>
using FloatTile = SymmMma<Width, Width == 8 ? 1 : 2, 4, Width == 8 ? 4 : 2>;

template <class T>
using DeviceCheck = Symmetry<T, sizeof(T) == 4 ? 64 : 32, sizeof(T) == 4 ? 4 : 8>;

// Blocks that have room in the shared memory of a multiprocessor of Hopper, and take its registers.
template <class Tile>
inline constexpr int kPlaces = sizeof(typename Tile::Shared) <= 56 * 1024    ? 4
                               : sizeof(typename Tile::Shared) <= 113 * 1024 ? 2
                                                                             : 1;

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads) pack_kernel(SymmProblem problem) {
  Tile::pack(DeviceBlock{}, problem);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, kPlaces<Tile>) symm_kernel(SymmProblem problem) {
  extern __shared__ __align__(16) unsigned char memory[];
  Tile::run(DeviceBlock{}, *reinterpret_cast<typename Tile::Shared*>(memory), problem);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads) reduce_kernel(SymmProblem problem) {
  Tile::reduce(DeviceBlock{}, problem);
}

template <class T>
__global__ void __launch_bounds__(DeviceCheck<T>::kThreads) clear_kernel(SymmetryInput input) {
  DeviceCheck<T>::clear(DeviceBlock{}, input);
}

template <class T>
__global__ void __launch_bounds__(DeviceCheck<T>::kThreads) symmetry_kernel(SymmetryInput input) {
  __shared__ typename DeviceCheck<T>::Shared shared;
  DeviceCheck<T>::run(DeviceBlock{}, shared, input);
}

// Calls visit<T, Tile>() with the tile for this many vectors: the narrowest that takes as many of
// them at a time as there are and as the device has shared memory for. Those of more than eight
// vectors give the same bits.
template <class Visit>
auto with_tile(const Context& ctx, DType dtype, std::int64_t vectors, const Visit& visit) {
  if (dtype == DType::f64) return visit.template operator()<double, DoubleTile>();
  int room = 0;
  check(cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, ctx.device.index),
        "symm", "asking for the shared memory of a block");
  const auto fits = [room]<class Tile>() {
    return sizeof(typename Tile::Shared) <= static_cast<std::size_t>(room);
  };
  if (vectors > 24 && fits.template operator()<FloatTile<32>>())
    return visit.template operator()<float, FloatTile<32>>();
  if (vectors > 16 && vectors <= 24 && fits.template operator()<FloatTile<24>>())
    return visit.template operator()<float, FloatTile<24>>();
  if (vectors > 8 && fits.template operator()<FloatTile<16>>())
    return visit.template operator()<float, FloatTile<16>>();
  return visit.template operator()<float, FloatTile<8>>();
}

template <class T, class Tile>
void symm_typed(const Context& ctx, const ArrayRef& a, const ArrayRef& x, const ArrayRef& scale,
                const ArrayRef& out) {
  constexpr auto kAlign = static_cast<std::uintptr_t>(SymmMemory<T, Tile>::kAlign);
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  const auto start = reinterpret_cast<std::uintptr_t>(ctx.workspace.data());
  std::byte* const base = ctx.workspace.data() + (kAlign - start % kAlign) % kAlign;
  constexpr int kShared = static_cast<int>(sizeof(typename Tile::Shared));
  check(
      cudaFuncSetAttribute(symm_kernel<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
      "symm", "asking for shared memory");
  const auto blocks = [](std::int64_t entries) {
    return grid_of((entries + Tile::kThreads - 1) / Tile::kThreads);
  };
  for (std::int64_t first = 0; first < x.extent(1); first += Tile::kPanels * Tile::kWidth) {
    const SymmProblem problem = symm_problem<T, Tile>(a, x, scale, out, first, base);
    const std::int64_t planes = problem.networks * problem.panels;
    pack_kernel<Tile>
        <<<blocks(planes * Tile::packed_size(problem.cut)), Tile::kThreads, 0, stream>>>(problem);
    check_launch("symm", stream);
    symm_kernel<Tile>
        <<<grid_of(planes * problem.cut.items()), Tile::kThreads, kShared, stream>>>(problem);
    check_launch("symm", stream);
    reduce_kernel<Tile>
        <<<blocks(problem.networks * problem.vectors * problem.n), Tile::kThreads, 0, stream>>>(
            problem);
    check_launch("symm", stream);
  }
}

template <class T>
void symmetry_typed(const Context& ctx, const ArrayRef& a, const ArrayRef& out) {
  using Check = DeviceCheck<T>;
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  const bool turn = a.stride(1) == 1 && a.stride(2) != 1;
  SymmetryInput input;
  input.a = a.data;
  input.network_stride = a.stride(0);
  input.row_stride = a.stride(turn ? 2 : 1);
  input.col_stride = a.stride(turn ? 1 : 2);
  input.n = a.extent(1);
  input.networks = a.extent(0);
  constexpr std::int64_t kMostBlocks = 4096;  // several for each place on a device
  input.share = std::clamp<std::int64_t>(Check::squares(input.n), 1, kMostBlocks);
  input.out = static_cast<std::uint64_t*>(out.data);
  input.out_strides[0] = out.stride(0);
  input.out_strides[1] = out.stride(1);
  clear_kernel<T><<<grid_of((2 * input.networks + Check::kThreads - 1) / Check::kThreads),
                    Check::kThreads, 0, stream>>>(input);
  check_launch("symmetry", stream);
  if (input.n == 0) return;
  symmetry_kernel<T><<<grid_of(input.networks * input.share), Check::kThreads, 0, stream>>>(input);
  check_launch("symmetry", stream);
}

}  // namespace

std::int64_t symm_workspace(const Context& ctx, const ArrayRef& a, std::int64_t vectors) {
  return with_tile(ctx, a.dtype, vectors, [&]<class T, class Tile>() {
    return SymmMemory<T, Tile>(a.extent(0), a.extent(1), vectors).bytes;
  });
}

void symm(const Context& ctx, const ArrayRef& a, const ArrayRef& x, const ArrayRef& scale,
          const ArrayRef& out) {
  if (out.size() == 0) return;
  const std::int64_t needed = cuda::symm_workspace(ctx, a, out.extent(1));
  if (static_cast<std::int64_t>(ctx.workspace.size()) < needed) {
    throw Error(ErrorCode::memory, "symm", "workspace",
                "got " + std::to_string(ctx.workspace.size()) + " bytes, expected " +
                    std::to_string(needed) + " as symm_workspace says");
  }
  const DeviceGuard guard(ctx.device.index, "symm");
  with_tile(ctx, out.dtype, out.extent(1),
            [&]<class T, class Tile>() { symm_typed<T, Tile>(ctx, a, x, scale, out); });
}

void symmetry(const Context& ctx, const ArrayRef& a, const ArrayRef& out) {
  if (out.size() == 0) return;
  const DeviceGuard guard(ctx.device.index, "symmetry");
  visit_dtype(a.dtype,
              [&](auto tag) { symmetry_typed<typename decltype(tag)::type>(ctx, a, out); });
}

}  // namespace fastfisher::cuda
