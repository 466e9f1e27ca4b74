// SPDX-License-Identifier: Apache-2.0
//
// Forming of gradients, see form.hpp: one batched product over samples for each stretch of units.
#include "form.hpp"

#include "form_steps.hpp"
#include "product_machine.hpp"

namespace fastfisher::cuda {

template <class T>
void form(const Context& ctx, const LayerFactors& layer, std::int64_t first, std::int64_t count,
          T* destination, std::int64_t row_stride) {
  DeviceMachine<T> machine(ctx, "form", product_limits<T>());
  FormSteps<T, DeviceMachine<T>>(machine, layer, first, count, destination, row_stride).run();
}

std::int64_t form_workspace(const LayerFactors& layer, std::int64_t count) {
  return visit_dtype(layer.g.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    MeasuringMachine<T> machine(product_limits<T>());
    // No memory is touched; not null, for entries are counted from it.
    auto* const nowhere = reinterpret_cast<T*>(std::uintptr_t{ProductMemory::kAlign});
    FormSteps<T, MeasuringMachine<T>>(machine, layer, 0, count, nowhere, count).run();
    return ProductMemory::kAlign + ProductMemory::padded(machine.memory().partial);
  });
}

template void form(const Context&, const LayerFactors&, std::int64_t, std::int64_t, float*,
                   std::int64_t);
template void form(const Context&, const LayerFactors&, std::int64_t, std::int64_t, double*,
                   std::int64_t);

}  // namespace fastfisher::cuda
