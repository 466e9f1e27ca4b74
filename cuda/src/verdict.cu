// SPDX-License-Identifier: Apache-2.0
//
// The verdict on a product with a Jacobian: one read of the result, and of the inputs if it is bad.
#include "fastfisher/view.hpp"
#include "finite_body.hpp"
#include "launch.cuh"
#include "verdict.hpp"

#include <utility>

namespace fastfisher::cuda {
namespace {

template <class S>
using DeviceFinite = Finite<S, 256>;

template <class S>
__global__ void __launch_bounds__(DeviceFinite<S>::kThreads)
    finite_kernel(const __grid_constant__ FiniteInput input, std::uint64_t* bad) {
  DeviceFinite<S>::run(DeviceBlock{}, input, bad);
}

// Index of the first entry that is not finite, -1: none. Synchronises the stream.
std::int64_t first_bad(const Context& ctx, const char* op, std::uint64_t* bad,
                       const ArrayRef& array) {
  const FiniteInput input = finite_input(array);
  if (input.size == 0) return -1;
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  check(cudaMemsetAsync(bad, 0, sizeof *bad, stream), op, "clearing the report");
  visit_storage(array.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    constexpr std::int64_t kEntriesABlock = 8 * DeviceFinite<S>::kThreads;
    const unsigned blocks = grid_of((input.size + kEntriesABlock - 1) / kEntriesABlock);
    finite_kernel<S><<<blocks, DeviceFinite<S>::kThreads, 0, stream>>>(input, bad);
  });
  check_launch(op, stream);
  std::uint64_t found = 0;
  check(cudaMemcpyAsync(&found, bad, sizeof found, cudaMemcpyDeviceToHost, stream), op,
        "reading the report");
  check(cudaStreamSynchronize(stream), op, "kernel");
  return found == 0 ? -1 : static_cast<std::int64_t>(ScanFound::kFirst - found);
}

}  // namespace

ProductReport verdict(const Context& ctx, const char* op, std::byte* head,
                      std::span<const LayerFactors> layers, const ArrayRef& vector,
                      const ArrayRef& out) {
  using Kind = ProductReport::Kind;
  auto* const bad = reinterpret_cast<std::uint64_t*>(head);
  if (first_bad(ctx, op, bad, out) < 0) return {};
  if (const std::int64_t index = first_bad(ctx, op, bad, vector); index >= 0)
    return {Kind::non_finite, -1, 0, index};
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    const ArrayRef* const arrays[] = {&layers[layer].a, &layers[layer].g, &layers[layer].w};
    for (int argument = 0; argument < 3; ++argument) {
      if (const std::int64_t index = first_bad(ctx, op, bad, *arrays[argument]); index >= 0)
        return {Kind::non_finite, static_cast<int>(layer), argument, index};
    }
  }
  return {Kind::overflow, -1, 0, 0};
}

}  // namespace fastfisher::cuda
