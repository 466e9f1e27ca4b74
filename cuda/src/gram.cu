// SPDX-License-Identifier: Apache-2.0
//
// Dense Gram (S0):  K[n,c,m,d] = sum_l (<a_l[n], a_l[m]> + bias_l) <g_l[n,c], g_l[m,d]>.
//
// Rows of K are (n,c) for outputs = full and n otherwise, so each layer is an entrywise product of
// two ordinary products: Q = G G^T of depth o (or c o for the trace) and P = A A^T of depth i, an
// entry of P serving c x d entries.
//
//   scan each factor: largest magnitude, first entry that is not finite         one launch each
//   wait; return if one is bad, else scales and layers go to the workspace
//   for each tile of the output (only on and below the diagonal when square)    one block each
//     for each layer: P of the tile's samples, Q, then acc += P o Q in float64  registers, shared
//     store the tile and its mirror image
//   wait; report overflow
//
// Multiply-adds a pair of samples: i + c^2 o a layer, halved when square; P is computed anew in
// each tile that the pair touches, and for every c of the diagonal. Bytes: each factor is read once
// a row of tiles, the output written once. As on the CPU, factors outside [2^-32, 2^32] are read
// times a power of two, which the fold takes out again; the CPU adds the depth in chunks, here it
// runs in order: the two may differ in the last bits. There is no check for interrupts: a launch
// runs to its end. Portable arithmetic only, no tensor cores.
#include "device_guard.hpp"
#include "fastfisher/ops.hpp"
#include "gram_problem.hpp"
#include "launch.cuh"

#include <string>

namespace fastfisher::cuda {
namespace {

template <class S>
using DeviceScan = Scan<S, 256>;

// The depth keeps the shared memory of a block below 48 KiB for products in double as well.
template <class S, class T>
using DeviceTile = GramTile<S, T, 64, sizeof(T) == 4 ? 16 : 8, 16>;

template <class S>
__global__ void __launch_bounds__(DeviceScan<S>::kThreads)
    scan_kernel(ScanInput input, ScanFound* found) {
  __shared__ typename DeviceScan<S>::Shared shared;
  DeviceScan<S>::run(DeviceBlock{}, shared, input, found);
}

template <class S, class T>
__global__ void __launch_bounds__(DeviceTile<S, T>::kThreads, 2)
    gram_kernel(Problem problem, const Layer* __restrict__ layers, std::uint64_t* overflow) {
  __shared__ typename DeviceTile<S, T>::Shared shared;
  DeviceTile<S, T>::run(DeviceBlock{}, shared, problem, layers, overflow);
}

template <class S>
void launch_scan(const ArrayRef& array, ScanFound* found, cudaStream_t stream) {
  if (array.size() == 0) return;
  constexpr std::int64_t kEntriesABlock = 8 * DeviceScan<S>::kThreads;
  const ScanInput input = scan_input(array);
  const unsigned blocks = grid_of((input.size + kEntriesABlock - 1) / kEntriesABlock);
  scan_kernel<S><<<blocks, DeviceScan<S>::kThreads, 0, stream>>>(input, found);
  check_launch("gram", stream);
}

template <class S, class T>
GramReport run(const Context& ctx, std::span<const LayerFactors> left,
               std::span<const LayerFactors> right, const GramOptions& options,
               const ArrayRef& out) {
  const GramMemory memory(left.size(), right.empty());
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  const auto start = reinterpret_cast<std::uintptr_t>(ctx.workspace.data());
  std::byte* base = ctx.workspace.data() + (GramMemory::kAlign - start % GramMemory::kAlign);
  auto* found = reinterpret_cast<ScanFound*>(base);
  auto* overflow = reinterpret_cast<std::uint64_t*>(base + memory.flag_at);
  const auto count = static_cast<std::size_t>(memory.scans);

  check(cudaMemsetAsync(base, 0, static_cast<std::size_t>(memory.layers_at), stream), "gram",
        "clearing the workspace");
  for (std::size_t k = 0; k < count; ++k)
    launch_scan<S>(argument_of(left, right, k), found + k, stream);
  std::vector<ScanFound> scanned(count);
  check(cudaMemcpyAsync(scanned.data(), found, count * sizeof(ScanFound), cudaMemcpyDeviceToHost,
                        stream),
        "gram", "reading the scans");
  check(cudaStreamSynchronize(stream), "gram", "scan");
  GramReport report = report_of(scanned, left.size());
  const Problem problem = problem_of(left, right, options.outputs, out);
  const std::int64_t tiles = DeviceTile<S, T>::tiles_of(problem);
  if (report.kind != GramReport::Kind::ok || tiles == 0) return report;

  // From pageable memory: the runtime has read `layers` when the call returns.
  const std::vector<Layer> layers = layers_of<S, T>(left, right, options.outputs, scanned);
  check(cudaMemcpyAsync(base + memory.layers_at, layers.data(), layers.size() * sizeof(Layer),
                        cudaMemcpyHostToDevice, stream),
        "gram", "writing the layers");
  gram_kernel<S, T><<<grid_of(tiles), DeviceTile<S, T>::kThreads, 0, stream>>>(
      problem, reinterpret_cast<const Layer*>(base + memory.layers_at), overflow);
  check_launch("gram", stream);
  std::uint64_t overflowed = 0;
  check(cudaMemcpyAsync(&overflowed, overflow, sizeof overflowed, cudaMemcpyDeviceToHost, stream),
        "gram", "reading the overflow flag");
  check(cudaStreamSynchronize(stream), "gram", "kernel");
  if (overflowed != 0) report.kind = GramReport::Kind::overflow;
  return report;
}

// What this backend has so far.
void expect_dense(std::span<const LayerFactors> layers, const GramOptions& options) {
  const bool known = std::all_of(layers.begin(), layers.end(), [](const LayerFactors& layer) {
    const bool stored = layer.g.dtype == DType::f32 || layer.g.dtype == DType::f64;
    const bool method = layer.method == GramMethod::automatic || layer.method == GramMethod::s0;
    return layer.form == LayerForm::dense && stored && method;
  });
  if (known && !options.batched) return;
  throw Error(ErrorCode::missing, "gram", "",
              "the CUDA backend has dense layers of float32 or float64 only, one network a call");
}

bool all_empty(std::span<const LayerFactors> layers) {
  return std::all_of(layers.begin(), layers.end(), [](const LayerFactors& layer) {
    return layer.a.size() == 0 && layer.g.size() == 0;
  });
}

}  // namespace

GramEstimate gram_workspace(const Context&, std::span<const LayerFactors> left,
                            std::span<const LayerFactors> right, const GramOptions& options) {
  expect_dense(left, options);
  GramEstimate estimate;
  estimate.bytes = GramMemory(left.size(), right.empty()).bytes;
  estimate.layers.resize(left.size(), {GramMethod::s0, 0, 0});
  if (estimate.bytes <= options.memory_limit) return estimate;
  throw Error(ErrorCode::memory, "gram", "memory_limit",
              "needs at least " + std::to_string(estimate.bytes) + " bytes of workspace, got " +
                  std::to_string(options.memory_limit));
}

GramReport gram(const Context& ctx, std::span<const LayerFactors> left,
                std::span<const LayerFactors> right, const GramOptions& options,
                const ArrayRef& out) {
  expect_dense(left, options);
  if (out.size() == 0 && all_empty(left) && all_empty(right)) return {};
  const std::int64_t needed = GramMemory(left.size(), right.empty()).bytes;
  if (static_cast<std::int64_t>(ctx.workspace.size()) < needed) {
    throw Error(ErrorCode::memory, "gram", "workspace",
                "got " + std::to_string(ctx.workspace.size()) + " bytes, expected " +
                    std::to_string(needed) + " as gram_workspace says");
  }
  const DeviceGuard guard(ctx.device.index, "gram");
  if (out.dtype == DType::f64) return run<double, double>(ctx, left, right, options, out);
  if (options.precision == GramPrecision::exact)
    return run<float, double>(ctx, left, right, options, out);
  return run<float, float>(ctx, left, right, options, out);
}

}  // namespace fastfisher::cuda
