// SPDX-License-Identifier: Apache-2.0
#include "bridge.hpp"
#include "fastfisher/ops.hpp"

#include <pybind11/stl.h>

#include <string>
#include <vector>

namespace fastfisher::python {
namespace py = pybind11;
namespace {

// Matrix `index` of a stack, or the array itself if it is of the rank of one.
ArrayRef matrix_of(const ArrayRef& array, int rank, std::int64_t index) {
  if (array.rank != rank + 1) return array;
  ArrayRef one = array;
  one.rank = rank;
  for (int r = 0; r < rank; ++r) {
    one.extents[static_cast<std::size_t>(r)] = array.extent(r + 1);
    one.strides[static_cast<std::size_t>(r)] = array.stride(r + 1);
  }
  one.extents[static_cast<std::size_t>(rank)] = one.strides[static_cast<std::size_t>(rank)] = 0;
  const std::int64_t offset = index * array.stride(0) * size_of(array.dtype);
  one.data = static_cast<char*>(array.data) + offset;
  return one;
}

std::vector<Borrowed> borrow_all(const py::list& list, const std::string& name, Access access,
                                 std::intptr_t stream) {
  std::vector<Borrowed> owners;
  owners.reserve(list.size());
  for (std::size_t k = 0; k < list.size(); ++k)
    owners.push_back(borrow(list[k], name + "[" + std::to_string(k) + "]", access, stream));
  return owners;
}

}  // namespace

void register_psd(py::module_& module) {
  module.def("moments_workspace", [](std::int64_t most, int dtype, bool cuda, int threads) {
    Context context;
    context.threads = threads;
    if (cuda) context.device.kind = DeviceKind::cuda;
    return moments_workspace(context, most, static_cast<DType>(dtype));
  });
  module.def("moments",
             [](const py::list& arrays, const py::list& outs, const std::vector<double>& scales,
                const py::handle& workspace, std::intptr_t stream, int threads) {
               const auto in = borrow_all(arrays, "a", Access::read, stream);
               const auto result = borrow_all(outs, "out", Access::write, stream);
               std::vector<MomentItem> items;
               for (std::size_t k = 0; k < in.size(); ++k)
                 items.push_back({in[k].ref(), result.at(k).ref(), scales.at(k)});
               if (items.empty()) return;
               const Workspace scratch(workspace, result.front().ref().device, stream);
               Context context = context_for(result.front(), stream, threads);
               context.workspace = scratch.bytes();
               const py::gil_scoped_release without_gil;
               moments(context, items);
             });
  module.def("sandwich_workspace",
             [](std::int64_t rows, std::int64_t columns, int dtype, bool cuda, int threads) {
               Context context;
               context.threads = threads;
               if (cuda) context.device.kind = DeviceKind::cuda;
               return sandwich_workspace(context, rows, columns, static_cast<DType>(dtype));
             });
  // An item is (left, w, b, right, out, out_b).
  module.def("sandwich", [](const py::list& items, const py::handle& workspace,
                            std::intptr_t stream, int threads) {
    std::vector<Borrowed> owners;
    std::vector<SandwichItem> list;
    for (std::size_t k = 0; k < items.size(); ++k) {
      const auto item = py::cast<py::sequence>(items[k]);
      const auto take = [&](std::size_t which, const char* name, Access access) {
        owners.push_back(
            borrow(item[which], name + ("[" + std::to_string(k) + "]"), access, stream));
        return owners.back().ref();
      };
      SandwichItem& one = list.emplace_back();
      one.left = take(0, "left", Access::read);
      one.w = take(1, "w", Access::read);
      one.b = take(2, "b", Access::read);
      one.right = take(3, "right", Access::read);
      one.out = take(4, "out", Access::write);
      one.out_b = take(5, "out_b", Access::write);
    }
    if (list.empty()) return;
    const Workspace scratch(workspace, list.front().out.device, stream);
    Context context = context_for(owners[4], stream, threads);
    context.workspace = scratch.bytes();
    const py::gil_scoped_release without_gil;
    sandwich(context, list);
  });
  module.def("psd_factor_size", [](std::int64_t n, int dtype, bool cuda) {
    Context context;
    if (cuda) context.device.kind = DeviceKind::cuda;
    return psd_factor_size(context, n, static_cast<DType>(dtype));
  });
  module.def("psd_workspace", [](const std::vector<std::int64_t>& sizes, int dtype, int task,
                                 bool cuda, int threads) {
    Context context;
    context.threads = threads;
    if (cuda) context.device.kind = DeviceKind::cuda;
    return psd_workspace(context, sizes, static_cast<DType>(dtype), static_cast<PsdTask>(task));
  });
  // Arrays are stacks of matrices or single ones; an item is (a, its index, out, its index, b or
  // -1, its index, damping, automatic), positions in the lists. `values` go with `outs`.
  module.def("psd", [](const py::list& matrices, const py::list& sides, const py::list& outs,
                       const py::list& values, const py::sequence& items,
                       const py::handle& workspace, int task, double p, std::intptr_t stream,
                       int threads) {
    const auto in_a = borrow_all(matrices, "a", Access::read, stream);
    const auto in_b = borrow_all(sides, "b", Access::read, stream);
    const auto result = borrow_all(outs, "out", Access::write, stream);
    const auto spectra = borrow_all(values, "values", Access::write, stream);
    std::vector<PsdItem> list;
    list.reserve(items.size());
    for (const py::handle& object : items) {
      const auto item = py::reinterpret_borrow<py::tuple>(object);
      const auto number = [&](std::size_t k) { return item[k].cast<std::int64_t>(); };
      PsdItem one;
      one.a = matrix_of(in_a.at(static_cast<std::size_t>(number(0))).ref(), 2, number(1));
      const auto out = static_cast<std::size_t>(number(2));
      one.out = matrix_of(result.at(out).ref(), 2, number(3));
      if (!spectra.empty()) one.values = matrix_of(spectra.at(out).ref(), 1, number(3));
      if (number(4) >= 0)
        one.b = matrix_of(in_b.at(static_cast<std::size_t>(number(4))).ref(), 2, number(5));
      one.damping = item[6].cast<double>();
      one.automatic = item[7].cast<bool>();
      list.push_back(one);
    }
    if (list.empty()) return py::list();
    const Workspace scratch(workspace, result.front().ref().device, stream);
    Context context = context_for(result.front(), stream, threads);
    context.workspace = scratch.bytes();
    PsdOptions options;
    options.task = static_cast<PsdTask>(task);
    options.p = p;
    std::vector<PsdReport> reports;
    {
      const py::gil_scoped_release without_gil;
      reports = psd(context, list, options);
    }
    py::list told;
    for (const PsdReport& report : reports) {
      told.append(py::make_tuple(static_cast<int>(report.kind), report.damping, report.condition,
                                 report.index));
    }
    return told;
  });
}

}  // namespace fastfisher::python
