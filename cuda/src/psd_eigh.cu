// SPDX-License-Identifier: Apache-2.0
//
// Eigenvectors and inverse roots of matrices that fit in the shared memory of a multiprocessor, a
// block a matrix: see psd_eigh_body.hpp. Larger ones are the caller's library's.
#include "psd_device.cuh"
#include "psd_eigh_flow.hpp"

#include <algorithm>
#include <string>

namespace fastfisher::cuda {
namespace {

// Matrix and eigenvectors in 227 KiB: all of the rows on Hopper, fewer where there is less. Few
// pieces a thread leave registers for more blocks.
template <class T>
using DeviceEigen = PsdEigen<T, sizeof(T) == 4 ? 160 : 112, 384>;
template <class T>
using SmallEigen = PsdEigen<T, sizeof(T) == 4 ? 108 : 76, 384>;
template <class T>
using EigenFlow = PsdEigenFlow<T, SmallEigen<T>, DeviceEigen<T>, PsdPass, PsdDevice>;
static_assert(sizeof(DeviceEigen<float>::Shared) <= 227 << 10);
static_assert(sizeof(DeviceEigen<double>::Shared) <= 227 << 10);

}  // namespace

std::int64_t psd_eigh_workspace(const Context& ctx, std::span<const std::int64_t> sizes,
                                DType dtype) {
  int shared = 0;
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, ctx.device.index),
        "psd", "shared memory of the device");
  return visit_dtype(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::int64_t most = DeviceEigen<T>::kMost;
    while (most > 0 &&
           std::max(DeviceEigen<T>::bytes(most),
                    most <= SmallEigen<T>::kMost ? SmallEigen<T>::bytes(most) : 0) > shared)
      --most;
    for (const std::int64_t n : sizes) {
      if (n <= most) continue;
      throw Error(ErrorCode::missing, "psd", "a",
                  "got a matrix of " + std::to_string(n) + " rows, the CUDA backend has " +
                      "eigenvectors of up to " + std::to_string(most) + " in " + name_of(dtype));
    }
    return EigenFlow<T>::workspace(sizes);
  });
}

std::vector<PsdReport> psd_eigh(PsdDevice& device, const Context& ctx,
                                std::span<const PsdItem> items, const PsdOptions& options) {
  return visit_dtype(result_of(items.front().a.dtype), [&](auto tag) {
    using T = typename decltype(tag)::type;
    return EigenFlow<T>::run(device, items, options, ctx.workspace.data());
  });
}

}  // namespace fastfisher::cuda
