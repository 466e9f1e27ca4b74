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
#include "device_guard.hpp"
#include "fastfisher/ops.hpp"
#include "jvp_steps.hpp"
#include "product_machine.hpp"
#include "verdict.hpp"

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
  JvpSteps<S, T, MeasuringMachine<T>>(
      machine, layers, shape_only({parameters, columns}, dtype_of<T>),
      shape_only({first.samples, first.outputs, columns}, dtype_of<T>))
      .run();
  return machine.memory();
}

}  // namespace

ProductReport jvp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& v,
                  const ArrayRef& out) {
  const DeviceGuard guard(ctx.device.index, "jvp");
  return visit_storage(layers.front().g.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = Arithmetic<S>;
    const ProductMemory memory = memory_of<S>(layers, out.extent(out.rank - 1));
    DeviceMachine<T> machine(ctx, "jvp", memory, product_limits<T>());
    JvpSteps<S, T, DeviceMachine<T>>(machine, layers, v, out).run();
    return verdict(ctx, "jvp", machine.head(), layers, v, out);
  });
}

std::int64_t jvp_workspace(const Context&, std::span<const LayerFactors> layers,
                           std::int64_t columns) {
  return visit_storage(layers.front().g.dtype, [&](auto tag) {
    return memory_of<typename decltype(tag)::type>(layers, columns).bytes();
  });
}

}  // namespace fastfisher::cuda
