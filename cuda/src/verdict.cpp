// SPDX-License-Identifier: Apache-2.0
//
// The verdict on a product with a Jacobian: one read of the result, and of the inputs if it is bad.
#include "verdict.hpp"

#include "check.hpp"
#include "gram_tiles.hpp"

namespace fastfisher::cuda {
namespace {

// Index of the first entry that is not finite, -1: none. Synchronises the stream.
std::int64_t first_bad(const Context& ctx, const char* op, ScanFound* found,
                       const ArrayRef& array) {
  if (array.rank == 0 || array.size() == 0) return -1;
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  check(cudaMemsetAsync(found, 0, sizeof *found, stream), op, "clearing the report");
  scan(array, found, stream);
  ScanFound scanned;
  check(cudaMemcpyAsync(&scanned, found, sizeof scanned, cudaMemcpyDeviceToHost, stream), op,
        "reading the report");
  check(cudaStreamSynchronize(stream), op, "kernel");
  return scanned.bad == 0 ? -1 : static_cast<std::int64_t>(ScanFound::kFirst - scanned.bad);
}

}  // namespace

ProductReport verdict(const Context& ctx, const char* op, std::byte* head,
                      std::span<const LayerFactors> layers, const ArrayRef& vector,
                      const ArrayRef& out) {
  using Kind = ProductReport::Kind;
  auto* const found = reinterpret_cast<ScanFound*>(head);
  if (first_bad(ctx, op, found, out) < 0) return {};
  if (const std::int64_t index = first_bad(ctx, op, found, vector); index >= 0)
    return {Kind::non_finite, -1, 0, index};
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    const ArrayRef* const arrays[] = {&layers[layer].a, &layers[layer].g, &layers[layer].w};
    for (int argument = 0; argument < 3; ++argument) {
      if (const std::int64_t index = first_bad(ctx, op, found, *arrays[argument]); index >= 0)
        return {Kind::non_finite, static_cast<int>(layer), argument, index};
    }
  }
  return {Kind::overflow, -1, 0, 0};
}

}  // namespace fastfisher::cuda
