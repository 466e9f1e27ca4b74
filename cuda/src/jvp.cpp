// SPDX-License-Identifier: Apache-2.0
//
// J v from factors, for k columns:  out[n,c,k] = sum_{s,o} g[n,c,s,o] z[n,s,o,k]  with
//   z[n,s,o,k] = sum_i a[n,s,i] V[o,i,k] + b[o,k],  the change of the pre-activations.
//
//   for each layer, for each chunk of samples that fits into the workspace
//     z: a matrix product, convolutions unfolded as their tiles are read     product.cu
//     out += g z                                                             contract.cu
//   one read of out for the verdict; wait
//
// Explicit Jacobians are read once for every 8 outputs and 4 columns, which the second cache level
// serves, or from kReducedColumns columns on are one matrix product. Flops a sample and column: 2
// (s i o + c s o). Bytes: g once, z twice, a once for each 128 units and columns. Layers and chunks
// are added in their order in the dtype of out. A launch runs to its end: interrupts are not
// polled.
#include "jvp_steps.hpp"
#include "product_call.hpp"

namespace fastfisher::cuda {

ProductReport jvp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& v,
                  const ArrayRef& out) {
  return product_call<JvpSteps>(ctx, "jvp", layers, v, out, true);
}

std::int64_t jvp_workspace(const Context&, std::span<const LayerFactors> layers,
                           std::int64_t columns) {
  return product_call_workspace<JvpSteps>(layers, columns, true);
}

}  // namespace fastfisher::cuda
