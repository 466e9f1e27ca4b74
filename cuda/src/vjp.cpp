// SPDX-License-Identifier: Apache-2.0
//
// J^T u from factors, for k columns:  W[o,i,k] = sum_{n,s} h[n,s,o,k] a[n,s,i]  with
//   h[n,s,o,k] = sum_c u[n,c,k] g[n,c,s,o],  and b[o,k] = sum_{n,s} h[n,s,o,k].
//
//   for each layer, for each chunk of samples that fits into the workspace
//     h, which reads g once                                                  contract.cu
//     W += h^T a: a matrix product, its depth shared out among tiles where W is small, and the
//     sums of its left rows for b                                            product.cu
//   one read of out for the verdict; wait
//
// Explicit Jacobians are read once for every 8 columns, or from kReducedColumns columns on are one
// matrix product. Flops and bytes as for jvp. A launch runs to its end: interrupts are not polled.
#include "product_call.hpp"
#include "vjp_steps.hpp"

namespace fastfisher::cuda {

ProductReport vjp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& u,
                  const ArrayRef& out) {
  return product_call<VjpSteps>(ctx, "vjp", layers, u, out, false);
}

std::int64_t vjp_workspace(const Context&, std::span<const LayerFactors> layers,
                           std::int64_t columns) {
  return product_call_workspace<VjpSteps>(layers, columns, false);
}

}  // namespace fastfisher::cuda
