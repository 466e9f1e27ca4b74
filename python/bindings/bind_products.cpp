// SPDX-License-Identifier: Apache-2.0
#include "bridge.hpp"
#include "fastfisher/ops.hpp"
#include "layers.hpp"

namespace fastfisher::python {
namespace py = pybind11;
namespace {

using Product = decltype(&jvp);
using Query = decltype(&jvp_workspace);

// From shapes alone: the arrays are borrowed once, by the product itself.
std::int64_t query(Query op, const py::list& layers, int dtype, bool cuda, std::int64_t columns,
                   int threads) {
  Context context;
  context.threads = threads;
  if (cuda) context.device.kind = DeviceKind::cuda;
  return op(context, layer_shapes(layers, static_cast<DType>(dtype), context.device), columns);
}

py::tuple product(Product op, const py::list& layers, const py::handle& vector, const char* name,
                  const py::handle& out, const py::handle& workspace, std::intptr_t stream,
                  int threads) {
  const Layers factors(layers, "layers", stream);
  const Borrowed in = borrow(vector, name, Access::read, stream);
  const Borrowed result = borrow(out, "out", Access::write, stream);
  const Workspace scratch(workspace, result.ref().device, stream);
  Context context = context_for(result, stream, threads);
  context.workspace = scratch.bytes();
  ProductReport report;
  {
    const py::gil_scoped_release without_gil;
    report = op(context, factors.layers, in.ref(), result.ref());
  }
  return py::make_tuple(static_cast<int>(report.kind), report.layer, report.argument, report.index);
}

}  // namespace

void register_products(py::module_& module) {
  module.def("jvp_workspace",
             [](const py::list& layers, int dtype, bool cuda, std::int64_t columns, int threads) {
               return query(&jvp_workspace, layers, dtype, cuda, columns, threads);
             });
  module.def("jvp", [](const py::list& layers, const py::handle& v, const py::handle& out,
                       const py::handle& workspace, std::intptr_t stream, int threads) {
    return product(&jvp, layers, v, "v", out, workspace, stream, threads);
  });
  module.def("vjp_workspace",
             [](const py::list& layers, int dtype, bool cuda, std::int64_t columns, int threads) {
               return query(&vjp_workspace, layers, dtype, cuda, columns, threads);
             });
  module.def("vjp", [](const py::list& layers, const py::handle& u, const py::handle& out,
                       const py::handle& workspace, std::intptr_t stream, int threads) {
    return product(&vjp, layers, u, "u", out, workspace, stream, threads);
  });
}

}  // namespace fastfisher::python
