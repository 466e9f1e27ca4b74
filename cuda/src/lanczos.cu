// SPDX-License-Identifier: Apache-2.0
//
// Passes of block Lanczos that wait for nothing: all decisions are left to whoever reads `small`.
//   symm                              w = A q, to the rows after q
//   dots, combine                     w -= (w x^T) x, the rows x before
//   twice: dots, turn, combine        w = L^-1 (w - (w x^T) x), L the factor of what is left
// 2 n^2 b flops and n^2 / 2 entries of traffic a pass, beside that 12 n b p flops and six reads of
// the p rows, which the second-level cache holds; about 14 launches.
#include "device_guard.hpp"
#include "fastfisher/ops.hpp"
#include "lanczos_problem.hpp"
#include "launch.cuh"
#include "panel_launch.hpp"

#include <cstddef>
#include <cstdint>
#include <string>

namespace fastfisher::cuda {

std::int64_t symm_workspace(const Context& ctx, const ArrayRef& a, std::int64_t vectors);
void symm(const Context& ctx, const ArrayRef& a, const ArrayRef& x, const ArrayRef& scale,
          const ArrayRef& out);

namespace {

constexpr std::int64_t kAlignment = 256;
constexpr const char* kOp = "lanczos_steps";
// A block of combine has all vectors, as its substitution needs them.
constexpr int kMostVectors = 8;
static_assert(DeviceCombine<float>::kVectors >= kMostVectors);

using Turn = LanczosTurn<kMostVectors, 256>;
// Parts do not depend on the dtype.
using Block = LanczosBlock<DeviceDots<float>>;

__global__ void __launch_bounds__(Turn::kThreads) turn_kernel(TurnProblem problem) {
  __shared__ Turn::Shared shared;
  Turn::run(DeviceBlock{}, shared, problem);
}

template <class T>
using Draw = DrawRows<T, 256>;

template <class T>
__global__ void __launch_bounds__(Draw<T>::kThreads)
    draw_kernel(PanelRows rows, std::int64_t networks, std::int64_t n, std::int64_t seed) {
  Draw<T>::run(DeviceBlock{}, rows, networks, n, seed);
}

void draw(const ArrayRef& rows, std::int64_t seed, cudaStream_t stream) {
  visit_dtype(rows.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kThreads = Draw<T>::kThreads;
    draw_kernel<T><<<grid_of((rows.size() + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
        {rows.data, rows.stride(0), rows.stride(1), rows.extent(1)}, rows.extent(0), rows.extent(2),
        seed);
    check_launch(kOp, stream);
  });
}

std::int64_t own_bytes(const ArrayRef& a, std::int64_t b, std::int64_t rows) {
  const std::int64_t bytes =
      Block::workspace(a.extent(0), b, rows, a.extent(1)) * size_of(DType::f64);
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

void normalise(Block problem, DType dtype, cudaStream_t stream) {
  launch_dots(dtype, problem.out_dots, kOp, stream);
  if (problem.turn.before > 0) launch_combine(dtype, problem.out_combine, kOp, stream);
  for (const bool again : {false, true}) {
    problem.turn.again = again;
    launch_dots(dtype, problem.sweep_dots, kOp, stream);
    turn_kernel<<<grid_of(problem.turn.networks), Turn::kThreads, 0, stream>>>(problem.turn);
    check_launch(kOp, stream);
    launch_combine(dtype, problem.sweep_combine, kOp, stream);
  }
}

}  // namespace

std::int64_t lanczos_steps_workspace(const Context& ctx, const ArrayRef& a, std::int64_t b,
                                     std::int64_t rows) {
  return kAlignment + own_bytes(a, b, rows) + cuda::symm_workspace(ctx, a, b);
}

void lanczos_steps(const Context& ctx, const ArrayRef& a, const ArrayRef& scale,
                   const ArrayRef& basis, std::int64_t first, LanczosStart start,
                   const ArrayRef& small) {
  const std::int64_t b = small.extent(2), count = small.extent(0) - 1;
  const std::int64_t rows = first + (count + 1) * b;
  if (basis.extent(0) == 0) return;
  const std::int64_t needed = cuda::lanczos_steps_workspace(ctx, a, b, rows);
  if (static_cast<std::int64_t>(ctx.workspace.size()) < needed) {
    throw Error(ErrorCode::memory, kOp, "workspace",
                "got " + std::to_string(ctx.workspace.size()) + " bytes, expected " +
                    std::to_string(needed) + " as lanczos_steps_workspace says");
  }
  const DeviceGuard guard(ctx.device.index, kOp);
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  const auto place = reinterpret_cast<std::uintptr_t>(ctx.workspace.data());
  const auto own = static_cast<std::size_t>(own_bytes(a, b, rows));
  const std::size_t shift = (kAlignment - place % kAlignment) % kAlignment;
  auto* const numbers = reinterpret_cast<double*>(ctx.workspace.data() + shift);
  Context rest = ctx;
  rest.workspace = ctx.workspace.subspan(shift + own);
  if (start.fresh && start.seed >= 0) draw(rows_of(basis, first, b), start.seed, stream);
  if (start.fresh) normalise(Block(basis, first, small, 0, numbers), a.dtype, stream);
  for (std::int64_t step = 1; step <= count; ++step) {
    const std::int64_t p = first + step * b;
    cuda::symm(rest, a, rows_of(basis, p - b, b), scale, rows_of(basis, p, b));
    normalise(Block(basis, p, small, step, numbers), a.dtype, stream);
  }
}

}  // namespace fastfisher::cuda
