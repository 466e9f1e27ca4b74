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
#include "device_guard.hpp"
#include "fastfisher/ops.hpp"
#include "product_machine.hpp"
#include "verdict.hpp"
#include "vjp_steps.hpp"

#include <type_traits>

namespace fastfisher::cuda {
namespace {

template <class S>
using Arithmetic = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class S>
ProductMemory memory_of(std::span<const LayerFactors> layers, std::int64_t columns) {
  using T = Arithmetic<S>;
  const LayerSizes first = sizes_of(layers.front());
  std::int64_t parameters = 0;
  for (const LayerFactors& layer : layers) parameters += sizes_of(layer).parameters;
  MeasuringMachine<T> machine(product_limits<T>());
  VjpSteps<S, T, MeasuringMachine<T>>(
      machine, layers, shape_only({first.samples, first.outputs, columns}, dtype_of<T>),
      shape_only({parameters, columns}, dtype_of<T>))
      .run();
  return machine.memory();
}

}  // namespace

ProductReport vjp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& u,
                  const ArrayRef& out) {
  const DeviceGuard guard(ctx.device.index, "vjp");
  return visit_storage(layers.front().g.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = Arithmetic<S>;
    const ProductMemory memory = memory_of<S>(layers, out.extent(out.rank - 1));
    DeviceMachine<T> machine(ctx, "vjp", memory, product_limits<T>());
    VjpSteps<S, T, DeviceMachine<T>>(machine, layers, u, out).run();
    return verdict(ctx, "vjp", machine.head(), layers, u, out);
  });
}

std::int64_t vjp_workspace(const Context&, std::span<const LayerFactors> layers,
                           std::int64_t columns) {
  return visit_storage(layers.front().g.dtype, [&](auto tag) {
    return memory_of<typename decltype(tag)::type>(layers, columns).bytes();
  });
}

}  // namespace fastfisher::cuda
