// SPDX-License-Identifier: Apache-2.0
#include "bridge.hpp"
#include "fastfisher/ops.hpp"
#include "layers.hpp"

#include <vector>

namespace fastfisher::python {
namespace py = pybind11;
namespace {

GramOptions options_of(int outputs, int precision, bool batched, std::int64_t memory_limit) {
  GramOptions options;
  options.outputs = static_cast<GramOutputs>(outputs);
  options.precision = static_cast<GramPrecision>(precision);
  options.batched = batched;
  options.memory_limit = memory_limit;
  return options;
}

}  // namespace

void register_gram(py::module_& module) {
  // From shapes alone: the arrays are borrowed once, by gram itself.
  module.def("gram_workspace", [](const py::list& left, const py::list& right, int dtype, bool cuda,
                                  int outputs, int precision, bool batched,
                                  std::int64_t memory_limit, int threads) {
    Context context;
    context.threads = threads;
    if (cuda) context.device.kind = DeviceKind::cuda;
    const GramEstimate estimate =
        gram_workspace(context, layer_shapes(left, static_cast<DType>(dtype), context.device),
                       layer_shapes(right, static_cast<DType>(dtype), context.device),
                       options_of(outputs, precision, batched, memory_limit));
    py::list choices;
    for (const GramChoice& choice : estimate.layers) {
      choices.append(
          py::make_tuple(static_cast<int>(choice.method), choice.multiply_adds, choice.seconds));
    }
    return py::make_tuple(estimate.bytes, estimate.blocks, estimate.slabs, choices);
  });
  module.def("gram",
             [](const py::list& left, const py::list& right, const py::handle& out,
                const py::handle& workspace, const py::handle& progress, int outputs, int precision,
                bool batched, std::int64_t memory_limit, std::intptr_t stream, int threads) {
               const Layers in_left(left, "left", stream), in_right(right, "right", stream);
               const Borrowed result = borrow(out, "out", Access::write, stream);
               const Workspace scratch(workspace, result.ref().device, stream);
               const Progress counter(progress);
               Context context = context_for(result, stream, threads);
               context.workspace = scratch.bytes();
               context.progress = counter.numbers();
               GramReport report;
               {
                 const py::gil_scoped_release without_gil;
                 report = gram(context, in_left.layers, in_right.layers,
                               options_of(outputs, precision, batched, memory_limit), result.ref());
               }
               return py::make_tuple(static_cast<int>(report.kind), report.side, report.layer,
                                     report.argument, report.index, report.network);
             });
}

}  // namespace fastfisher::python
