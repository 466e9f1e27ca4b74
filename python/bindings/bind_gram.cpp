// SPDX-License-Identifier: Apache-2.0
#include "bridge.hpp"
#include "fastfisher/ops.hpp"

#include <vector>

namespace fastfisher::python {
namespace py = pybind11;
namespace {

// Borrowed layers of one side; the arrays outlive the views.
struct Layers {
  std::vector<Borrowed> owners;
  std::vector<GramLayer> layers;

  // `list` holds tuples (a, g, bias).
  Layers(const py::list& list, const char* side, std::intptr_t stream) {
    owners.reserve(2 * list.size());
    layers.reserve(list.size());
    for (const py::handle item : list) {
      const auto layer = py::reinterpret_borrow<py::tuple>(item);
      const std::string name = std::string(side) + "[" + std::to_string(layers.size()) + "].";
      owners.push_back(borrow(layer[0], name + "a", Access::read, stream));
      owners.push_back(borrow(layer[1], name + "g", Access::read, stream));
      layers.push_back(
          {owners[owners.size() - 2].ref(), owners.back().ref(), layer[2].cast<bool>()});
    }
  }
};

ArrayRef shape_of(const py::handle& extents, DType dtype, Device device) {
  ArrayRef array;
  array.dtype = dtype;
  array.device = device;
  for (const py::handle extent : extents) array.extents[array.rank++] = extent.cast<std::int64_t>();
  return array;
}

std::vector<GramLayer> shapes_of(const py::list& list, DType dtype, Device device) {
  std::vector<GramLayer> layers;
  layers.reserve(list.size());
  for (const py::handle item : list) {
    const auto shapes = py::reinterpret_borrow<py::tuple>(item);
    layers.push_back(
        {shape_of(shapes[0], dtype, device), shape_of(shapes[1], dtype, device), false});
  }
  return layers;
}

GramOptions options_of(int outputs, bool exact, std::int64_t memory_limit) {
  GramOptions options;
  options.outputs = static_cast<GramOutputs>(outputs);
  options.precision = exact ? GramPrecision::exact : GramPrecision::highest;
  options.memory_limit = memory_limit;
  return options;
}

}  // namespace

void register_gram(py::module_& module) {
  // From shapes alone (tuples (a.shape, g.shape)): the arrays are borrowed once, by gram itself.
  module.def("gram_workspace",
             [](const py::list& left, const py::list& right, int item_bytes, bool cuda, int outputs,
                bool exact, std::int64_t memory_limit, int threads) {
               Context context;
               context.threads = threads;
               if (cuda) context.device.kind = DeviceKind::cuda;
               const DType dtype = item_bytes == 4 ? DType::f32 : DType::f64;
               return gram_workspace(context, shapes_of(left, dtype, context.device),
                                     shapes_of(right, dtype, context.device),
                                     options_of(outputs, exact, memory_limit));
             });
  module.def("gram", [](const py::list& left, const py::list& right, const py::handle& out,
                        const py::handle& workspace, int outputs, bool exact,
                        std::int64_t memory_limit, std::intptr_t stream, int threads) {
    const Layers in_left(left, "left", stream), in_right(right, "right", stream);
    const Borrowed result = borrow(out, "out", Access::write, stream);
    const Workspace scratch(workspace, result.ref().device, stream);
    Context context = context_for(result, stream, threads);
    context.workspace = scratch.bytes();
    GramReport report;
    {
      const py::gil_scoped_release without_gil;
      report = gram(context, in_left.layers, in_right.layers,
                    options_of(outputs, exact, memory_limit), result.ref());
    }
    return py::make_tuple(static_cast<int>(report.kind), report.side, report.layer, report.argument,
                          report.index);
  });
}

}  // namespace fastfisher::python
