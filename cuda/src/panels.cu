// SPDX-License-Identifier: Apache-2.0
//
// Products of few long vectors, which lie as rows: the steps of a reorthogonalisation.
//   panel_dots     out[e,j,i] = <y[e,j], x[e,i]>                       2 e i j n flops
//   panel_combine  y[e,j] = keep y[e,j] + sum_i weights[e,j,i] x[e,i]  the same
//   panel_remove   y -= (y x^T) x, twice, and the dots of what is left  8 e i j n
// Bound by reading x, which mostly lies in the second-level cache. Dots: a block takes four rows
// of x and eight of y from end to end, so that there is nothing to add up afterwards and no
// workspace (panel_remove and lanczos_steps cut rows into parts, enough for a whole device, which a
// second launch adds up in order); stretches of 64 products a thread in the dtype, sums of them in
// float64. Combine: a block takes 64 places, four groups of threads a quarter of the rows of x
// each. No atomics.
#include "device_guard.hpp"
#include "fastfisher/ops.hpp"
#include "launch.cuh"
#include "panel_launch.hpp"
#include "panel_steps_problem.hpp"

#include <cstddef>
#include <cstdint>
#include <string>

namespace fastfisher::cuda {
namespace {

constexpr std::int64_t kAlignment = 256;

template <class T>
__global__ void __launch_bounds__(DeviceDots<T>::kThreads) dots_kernel(PanelProblem problem) {
  __shared__ typename DeviceDots<T>::Shared shared;
  DeviceDots<T>::run(DeviceBlock{}, shared, problem);
}

template <class T>
__global__ void __launch_bounds__(DeviceDots<T>::kThreads) sum_kernel(PanelProblem problem) {
  DeviceDots<T>::sum(DeviceBlock{}, problem);
}

template <class T>
__global__ void __launch_bounds__(DeviceCombine<T>::kThreads) combine_kernel(PanelProblem problem) {
  __shared__ typename DeviceCombine<T>::Shared shared;
  DeviceCombine<T>::run(DeviceBlock{}, shared, problem);
}

template <class T>
void dots_typed(const PanelProblem& problem, const char* op, cudaStream_t stream) {
  const std::int64_t tasks = DeviceDots<T>::tasks(problem);
  if (tasks == 0) return;
  constexpr int kThreads = DeviceDots<T>::kThreads;
  dots_kernel<T><<<grid_of(tasks), kThreads, 0, stream>>>(problem);
  check_launch(op, stream);
  if (problem.parts == 1) return;
  const std::int64_t sums = problem.networks * problem.x.rows * problem.y.rows;
  sum_kernel<T><<<grid_of((sums + kThreads - 1) / kThreads), kThreads, 0, stream>>>(problem);
  check_launch(op, stream);
}

template <class T>
void combine_typed(const PanelProblem& problem, const char* op, cudaStream_t stream) {
  const std::int64_t tasks = DeviceCombine<T>::tasks(problem);
  if (tasks == 0) return;
  combine_kernel<T><<<grid_of(tasks), DeviceCombine<T>::kThreads, 0, stream>>>(problem);
  check_launch(op, stream);
}

}  // namespace

void launch_dots(DType dtype, const PanelProblem& problem, const char* op, void* stream) {
  visit_dtype(dtype, [&](auto tag) {
    dots_typed<typename decltype(tag)::type>(problem, op, static_cast<cudaStream_t>(stream));
  });
}

void launch_combine(DType dtype, const PanelProblem& problem, const char* op, void* stream) {
  visit_dtype(dtype, [&](auto tag) {
    combine_typed<typename decltype(tag)::type>(problem, op, static_cast<cudaStream_t>(stream));
  });
}

void panel_dots(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& out) {
  const DeviceGuard guard(ctx.device.index, "panel_dots");
  launch_dots(y.dtype, panel_problem(x, y, out, false), "panel_dots", ctx.stream);
}

void panel_combine(const Context& ctx, const ArrayRef& weights, const ArrayRef& x, bool keep,
                   const ArrayRef& y) {
  const DeviceGuard guard(ctx.device.index, "panel_combine");
  launch_combine(y.dtype, panel_problem(x, y, weights, keep), "panel_combine", ctx.stream);
}

std::int64_t panel_remove_workspace(const Context&, std::int64_t networks, std::int64_t i,
                                    std::int64_t j, std::int64_t n) {
  // Parts do not depend on the dtype.
  return PanelRemoval<DeviceDots<float>>::workspace(networks, i, j, n) * size_of(DType::f64) +
         kAlignment;
}

void panel_remove(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& small) {
  const std::int64_t needed =
      cuda::panel_remove_workspace(ctx, y.extent(0), x.extent(1), y.extent(1), y.extent(2));
  if (static_cast<std::int64_t>(ctx.workspace.size()) < needed) {
    throw Error(ErrorCode::memory, "panel_remove", "workspace",
                "got " + std::to_string(ctx.workspace.size()) + " bytes, expected " +
                    std::to_string(needed) + " as panel_remove_workspace says");
  }
  const DeviceGuard guard(ctx.device.index, "panel_remove");
  const auto start = reinterpret_cast<std::uintptr_t>(ctx.workspace.data());
  std::byte* const base = ctx.workspace.data() + (kAlignment - start % kAlignment) % kAlignment;
  // Parts do not depend on the dtype.
  const PanelRemoval<DeviceDots<float>> removal(x, y, small, reinterpret_cast<double*>(base));
  if (x.extent(1) > 0) {
    launch_dots(y.dtype, removal.first_dots, "panel_remove", ctx.stream);
    launch_combine(y.dtype, removal.first_combine, "panel_remove", ctx.stream);
    launch_dots(y.dtype, removal.second_dots, "panel_remove", ctx.stream);
    launch_combine(y.dtype, removal.second_combine, "panel_remove", ctx.stream);
  }
  launch_dots(y.dtype, removal.inner, "panel_remove", ctx.stream);
}

}  // namespace fastfisher::cuda
