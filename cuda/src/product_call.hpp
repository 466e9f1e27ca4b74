// SPDX-License-Identifier: Apache-2.0
//
// A call of jvp or vjp: the same steps run twice, once to measure the workspace and once to work.
#pragma once

#include "device_guard.hpp"
#include "fastfisher/ops.hpp"
#include "product_machine.hpp"
#include "verdict.hpp"

#include <type_traits>

namespace fastfisher::cuda {

template <class S>
using Arithmetic = std::conditional_t<std::is_same_v<S, double>, double, float>;

/// Of a product whose vector is [p,k] and whose result is [n,c,k] (`forward`), or the other way
/// round.
template <class S, template <class, class, class> class Steps>
ProductMemory product_memory(std::span<const LayerFactors> layers, std::int64_t columns,
                             bool forward) {
  using T = Arithmetic<S>;
  const LayerSizes first = sizes_of(layers.front());
  std::int64_t parameters = 0;
  for (const LayerFactors& layer : layers) parameters += sizes_of(layer).parameters;
  MeasuringMachine<T> machine(product_limits<T>());
  const ArrayRef flat = shape_only({parameters, columns}, dtype_of<T>);
  const ArrayRef rows = shape_only({first.samples, first.outputs, columns}, dtype_of<T>);
  Steps<S, T, MeasuringMachine<T>>(machine, layers, forward ? flat : rows, forward ? rows : flat)
      .run();
  return machine.memory();
}

template <template <class, class, class> class Steps>
ProductReport product_call(const Context& ctx, const char* op, std::span<const LayerFactors> layers,
                           const ArrayRef& vector, const ArrayRef& out, bool forward) {
  const DeviceGuard guard(ctx.device.index, op);
  return visit_storage(layers.front().g.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = Arithmetic<S>;
    const ProductMemory memory =
        product_memory<S, Steps>(layers, out.extent(out.rank - 1), forward);
    DeviceMachine<T> machine(ctx, op, memory, product_limits<T>());
    Steps<S, T, DeviceMachine<T>>(machine, layers, vector, out).run();
    return verdict(ctx, op, machine.head(), layers, vector, out);
  });
}

template <template <class, class, class> class Steps>
std::int64_t product_call_workspace(std::span<const LayerFactors> layers, std::int64_t columns,
                                    bool forward) {
  return visit_storage(layers.front().g.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    return product_memory<S, Steps>(layers, columns, forward).bytes();
  });
}

}  // namespace fastfisher::cuda
