// SPDX-License-Identifier: Apache-2.0
#include "bridge.hpp"
#include "fastfisher/ops.hpp"

namespace fastfisher::python {
namespace py = pybind11;

void register_matmul(py::module_& module) {
  module.def("matmul",
             [](py::handle a, py::handle b, py::handle out, std::intptr_t stream, int threads) {
               const Borrowed in_a = borrow(a, "a", Access::read, stream),
                              in_b = borrow(b, "b", Access::read, stream);
               const Borrowed result = borrow(out, "out", Access::write, stream);
               const Context context = context_for(result, stream, threads);
               const py::gil_scoped_release without_gil;
               matmul(context, in_a.ref(), in_b.ref(), result.ref());
             });
}

}  // namespace fastfisher::python
