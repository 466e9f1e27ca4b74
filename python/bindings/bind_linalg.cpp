// SPDX-License-Identifier: Apache-2.0
#include "bridge.hpp"
#include "fastfisher/ops.hpp"

namespace fastfisher::python {
namespace py = pybind11;

void register_linalg(py::module_& module) {
  module.def("eigh_ends", [](py::handle a, py::handle scale, int end, py::handle values,
                             py::handle vectors, py::handle residual_norms, py::handle norm,
                             py::handle workspace, std::intptr_t stream, int threads) {
    const Borrowed in_a = borrow(a, "a", Access::read, stream),
                   in_scale = borrow(scale, "scale", Access::read, stream);
    const Borrowed out_values = borrow(values, "values", Access::write, stream),
                   out_vectors = borrow(vectors, "vectors", Access::write, stream),
                   out_norms = borrow(residual_norms, "residual_norms", Access::write, stream),
                   out_norm = borrow(norm, "norm", Access::write, stream);
    const Workspace scratch(workspace, out_values.ref().device, stream);
    Context context = context_for(out_values, stream, threads);
    context.workspace = scratch.bytes();
    const py::gil_scoped_release without_gil;
    eigh_ends(context, in_a.ref(), in_scale.ref(), static_cast<SpectrumEnd>(end), out_values.ref(),
              out_vectors.ref(), out_norms.ref(), out_norm.ref());
  });
  module.def("eigh_ends_workspace",
             [](py::handle a, int end, std::int64_t k, std::intptr_t stream, int threads) {
               const Borrowed in_a = borrow(a, "a", Access::read, stream);
               return eigh_ends_workspace(context_for(in_a, stream, threads), in_a.ref(),
                                          static_cast<SpectrumEnd>(end), k);
             });
  module.def("small_eigh", [](py::handle a, py::handle values, py::handle vectors,
                              std::intptr_t stream, int threads) {
    const Borrowed in_a = borrow(a, "a", Access::read, stream);
    const Borrowed result = borrow(values, "values", Access::write, stream),
                   rows = borrow(vectors, "vectors", Access::write, stream);
    const Context context = context_for(result, stream, threads);
    const py::gil_scoped_release without_gil;
    small_eigh(context, in_a.ref(), result.ref(), rows.ref());
  });
  module.def("symm", [](py::handle a, py::handle x, py::handle scale, py::handle out,
                        py::handle workspace, std::intptr_t stream, int threads) {
    const Borrowed in_a = borrow(a, "a", Access::read, stream),
                   in_x = borrow(x, "x", Access::read, stream),
                   in_scale = borrow(scale, "scale", Access::read, stream);
    const Borrowed result = borrow(out, "out", Access::write, stream);
    const Workspace scratch(workspace, result.ref().device, stream);
    Context context = context_for(result, stream, threads);
    context.workspace = scratch.bytes();
    const py::gil_scoped_release without_gil;
    symm(context, in_a.ref(), in_x.ref(), in_scale.ref(), result.ref());
  });
  module.def("symm_workspace",
             [](py::handle a, std::int64_t vectors, std::intptr_t stream, int threads) {
               const Borrowed in_a = borrow(a, "a", Access::read, stream);
               return symm_workspace(context_for(in_a, stream, threads), in_a.ref(), vectors);
             });
  module.def("lanczos_steps",
             [](py::handle a, py::handle scale, py::handle basis, std::int64_t first, bool fresh,
                std::int64_t seed, py::handle small, py::handle workspace, std::intptr_t stream,
                int threads) {
               const Borrowed in_a = borrow(a, "a", Access::read, stream),
                              in_scale = borrow(scale, "scale", Access::read, stream);
               const Borrowed rows = borrow(basis, "basis", Access::write, stream),
                              result = borrow(small, "small", Access::write, stream);
               const Workspace scratch(workspace, result.ref().device, stream);
               Context context = context_for(result, stream, threads);
               context.workspace = scratch.bytes();
               const py::gil_scoped_release without_gil;
               lanczos_steps(context, in_a.ref(), in_scale.ref(), rows.ref(), first, {fresh, seed},
                             result.ref());
             });
  module.def("lanczos_steps_workspace", [](py::handle a, std::int64_t b, std::int64_t rows,
                                           std::intptr_t stream, int threads) {
    const Borrowed in_a = borrow(a, "a", Access::read, stream);
    return lanczos_steps_workspace(context_for(in_a, stream, threads), in_a.ref(), b, rows);
  });
  module.def("largest", [](py::handle x, int threads) {
    const Borrowed in = borrow(x, "x", Access::read, 0);
    const Context context = context_for(in, 0, threads);
    const py::gil_scoped_release without_gil;
    return largest(context, in.ref());
  });
  module.def("symmetry", [](py::handle a, py::handle out, std::intptr_t stream, int threads) {
    const Borrowed in_a = borrow(a, "a", Access::read, stream);
    const Borrowed result = borrow(out, "out", Access::write, stream);
    const Context context = context_for(result, stream, threads);
    const py::gil_scoped_release without_gil;
    symmetry(context, in_a.ref(), result.ref());
  });
  module.def("panel_dots",
             [](py::handle x, py::handle y, py::handle out, std::intptr_t stream, int threads) {
               const Borrowed in_x = borrow(x, "x", Access::read, stream),
                              in_y = borrow(y, "y", Access::read, stream);
               const Borrowed result = borrow(out, "out", Access::write, stream);
               const Context context = context_for(result, stream, threads);
               const py::gil_scoped_release without_gil;
               panel_dots(context, in_x.ref(), in_y.ref(), result.ref());
             });
  module.def("panel_remove", [](py::handle x, py::handle y, py::handle small, py::handle workspace,
                                std::intptr_t stream, int threads) {
    const Borrowed in_x = borrow(x, "x", Access::read, stream);
    const Borrowed in_y = borrow(y, "y", Access::write, stream),
                   result = borrow(small, "small", Access::write, stream);
    const Workspace scratch(workspace, result.ref().device, stream);
    Context context = context_for(result, stream, threads);
    context.workspace = scratch.bytes();
    const py::gil_scoped_release without_gil;
    panel_remove(context, in_x.ref(), in_y.ref(), result.ref());
  });
  module.def("panel_remove_workspace", [](std::int64_t networks, std::int64_t i, std::int64_t j,
                                          std::int64_t n, bool cuda, int threads) {
    Context context;
    context.threads = threads;
    if (cuda) context.device.kind = DeviceKind::cuda;
    return panel_remove_workspace(context, networks, i, j, n);
  });
  module.def("panel_combine", [](py::handle weights, py::handle x, bool keep, py::handle y,
                                 std::intptr_t stream, int threads) {
    const Borrowed in_weights = borrow(weights, "weights", Access::read, stream),
                   in_x = borrow(x, "x", Access::read, stream);
    const Borrowed result = borrow(y, "y", Access::write, stream);
    const Context context = context_for(result, stream, threads);
    const py::gil_scoped_release without_gil;
    panel_combine(context, in_weights.ref(), in_x.ref(), keep, result.ref());
  });
}

}  // namespace fastfisher::python
