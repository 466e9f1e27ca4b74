// SPDX-License-Identifier: Apache-2.0
#include "layers.hpp"

#include <string>

namespace fastfisher::python {
namespace py = pybind11;
namespace {

ConvGeometry geometry_of(const py::handle& item) {
  ConvGeometry conv;
  if (item.is_none()) return conv;
  const auto given = py::reinterpret_borrow<py::tuple>(item);
  std::array<std::int64_t, 3>* const fields[] = {&conv.kernel, &conv.stride, &conv.padding,
                                                 &conv.dilation};
  for (std::size_t k = 0; k < 4; ++k) {
    conv.rank = 0;
    for (const py::handle value : given[k])
      fields[k]->at(static_cast<std::size_t>(conv.rank++)) = value.cast<std::int64_t>();
  }
  conv.groups = given[4].cast<std::int64_t>();
  return conv;
}

// All but the arrays.
LayerFactors plain(const py::tuple& item) {
  LayerFactors layer;
  layer.form = static_cast<LayerForm>(item[0].cast<int>());
  layer.bias = item[4].cast<bool>();
  layer.conv = geometry_of(item[5]);
  layer.method = static_cast<GramMethod>(item[6].cast<int>());
  return layer;
}

ArrayRef array_of_shape(const py::handle& extents, DType dtype, Device device) {
  ArrayRef array;
  if (extents.is_none()) return array;
  array.dtype = dtype;
  array.device = device;
  for (const py::handle extent : extents)
    array.extents.at(static_cast<std::size_t>(array.rank++)) = extent.cast<std::int64_t>();
  return array;
}

}  // namespace

Layers::Layers(const py::list& list, const char* side, std::intptr_t stream) {
  owners.reserve(3 * list.size());
  layers.reserve(list.size());
  for (const py::handle element : list) {
    const auto item = py::reinterpret_borrow<py::tuple>(element);
    const auto array = [&](std::size_t index, const char* name) -> ArrayRef {
      const py::handle object = item[index];
      if (object.is_none()) return {};
      // The name is for messages only: most calls have none.
      owners.push_back(borrow(object,
                              std::string(side) + "[" + std::to_string(layers.size()) + "]." + name,
                              Access::read, stream));
      return owners.back().ref();
    };
    LayerFactors layer = plain(item);
    layer.a = array(1, "a");
    layer.g = array(2, "g");
    layer.w = array(3, "w");
    layers.push_back(layer);
  }
}

std::vector<LayerFactors> layer_shapes(const py::list& list, DType dtype, Device device) {
  std::vector<LayerFactors> layers;
  layers.reserve(list.size());
  for (const py::handle element : list) {
    const auto item = py::reinterpret_borrow<py::tuple>(element);
    LayerFactors layer = plain(item);
    layer.a = array_of_shape(item[1], dtype, device);
    layer.g = array_of_shape(item[2], dtype, device);
    layer.w = array_of_shape(item[3], dtype, device);
    layers.push_back(layer);
  }
  return layers;
}

}  // namespace fastfisher::python
