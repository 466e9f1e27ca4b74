// SPDX-License-Identifier: Apache-2.0
#include "bridge.hpp"
#include "fastfisher/ops.hpp"

namespace fastfisher::python {
namespace py = pybind11;

namespace {

using Product = void(const Context&, const ArrayRef&, const ArrayRef&, const ArrayRef&);

template <Product& op>
void product(py::handle a, py::handle b, py::handle out, std::intptr_t stream, int threads) {
  const Borrowed in_a = borrow(a, "a", Access::read, stream),
                 in_b = borrow(b, "b", Access::read, stream);
  const Borrowed result = borrow(out, "out", Access::write, stream);
  const Context context = context_for(result, stream, threads);
  const py::gil_scoped_release without_gil;
  op(context, in_a.ref(), in_b.ref(), result.ref());
}

/// A matrix as the only one of many.
ArrayRef as_many(const ArrayRef& array) {
  if (array.rank != 2) return array;
  ArrayRef many = array;
  many.rank = 3;
  many.extents = {1, array.extent(0), array.extent(1)};
  many.strides = {0, array.stride(0), array.stride(1)};
  return many;
}

void bmm_of_any(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out) {
  bmm(ctx, as_many(a), as_many(b), as_many(out));
}

}  // namespace

void register_matmul(py::module_& module) {
  module.def("matmul", &product<matmul>);
  module.def("bmm", &product<bmm_of_any>);
}

}  // namespace fastfisher::python
