// SPDX-License-Identifier: Apache-2.0
//
// Cholesky factors, inverses and solutions of a ragged list of matrices, all of the list at once.
//
//   powers of two, one block a matrix; read, scale, sums of rows                 tiles of 64
//   L^-1 of the first diagonal blocks                                            one block a matrix
//   for each block of 128 columns (64 in float64), for all matrices that have it:
//     W^T = L^-1 V^T                                                             one launch
//     N += W W^T, the rest of the step, L^-1 of the next diagonal blocks         one launch
//   scale back, mirror, sums of rows; solutions: strips of 16 columns
//   read the reports back; another round for matrices that need more damping
//
// Multiply-adds a matrix: n^3 / 2 + 2 n^2 edge for an inverse, n^3 / 6 for a factor; bytes: its
// lower triangle is read and written once a step. A matrix of up to one block takes two launches
// of arithmetic. What is computed for a matrix, and in which order, depends on it alone. The CPU's
// steps are narrower: the two differ in the last bits.
#include "device_guard.hpp"
#include "launch.cuh"
#include "psd_device.cuh"
#include "psd_flow.hpp"

#include <string>

namespace fastfisher::cuda {

std::int64_t psd_eigh_workspace(const Context& ctx, std::span<const std::int64_t> sizes,
                                DType dtype);
std::vector<PsdReport> psd_eigh(PsdDevice& device, const Context& ctx,
                                std::span<const PsdItem> items, const PsdOptions& options);

namespace {

template <class T>
using DeviceTile = PsdTile<T, sizeof(T) == 4 ? 128 : 64, sizeof(T) == 4 ? 8 : 4, 16>;
template <class T>
using DeviceFlow = PsdFactorFlow<T, DeviceTile<T>, PsdPass, PsdDevice>;

bool is_spectral(PsdTask task) {
  return task == PsdTask::eigh || task == PsdTask::inverse_root;
}

}  // namespace

std::vector<PsdReport> psd(const Context& ctx, std::span<const PsdItem> items,
                           const PsdOptions& options) {
  if (items.empty()) return {};
  const DType dtype = result_of(items.front().a.dtype);
  std::vector<std::int64_t> sizes;
  for (const PsdItem& item : items) sizes.push_back(item.a.extent(0));
  const std::int64_t needed = psd_workspace(ctx, sizes, dtype, options.task);
  if (static_cast<std::int64_t>(ctx.workspace.size()) < needed) {
    throw Error(ErrorCode::memory, "psd", "workspace",
                "got " + std::to_string(ctx.workspace.size()) + " bytes, expected " +
                    std::to_string(needed));
  }
  const DeviceGuard guard(ctx.device.index, "psd");
  PsdDevice device{static_cast<cudaStream_t>(ctx.stream)};
  if (is_spectral(options.task)) return psd_eigh(device, ctx, items, options);
  return visit_dtype(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return DeviceFlow<T>(device, items, options.task, ctx.workspace.data()).run();
  });
}

std::int64_t psd_workspace(const Context& ctx, std::span<const std::int64_t> sizes, DType dtype,
                           PsdTask task) {
  for (const std::int64_t n : sizes) {
    if (n > 32000) {
      throw Error(ErrorCode::shape, "psd", "a",
                  "got " + std::to_string(n) + " rows, expected at most 32000");
    }
  }
  if (is_spectral(task)) return psd_eigh_workspace(ctx, sizes, dtype);
  return visit_dtype(dtype, [&](auto tag) {
    return DeviceFlow<typename decltype(tag)::type>::workspace(sizes, task);
  });
}

}  // namespace fastfisher::cuda
