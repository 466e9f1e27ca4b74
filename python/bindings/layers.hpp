// SPDX-License-Identifier: Apache-2.0
//
// Lists of layers as Python hands them over: tuples (form, a, g, w, bias, geometry, method), where
// a, g, w are arrays (or shapes, for a workspace query) or None and geometry is None or
// (kernel, stride, padding, dilation, groups).
#pragma once

#include "bridge.hpp"
#include "fastfisher/layer.hpp"

#include <vector>

namespace fastfisher::python {

/// Borrowed layers of one side; the arrays live as long as this. Declare it before
/// py::gil_scoped_release.
struct Layers {
  Layers(const pybind11::list& list, const char* side, std::intptr_t stream);

  std::vector<Borrowed> owners;
  std::vector<LayerFactors> layers;
};

/// The same from shapes, without memory.
std::vector<LayerFactors> layer_shapes(const pybind11::list& list, DType dtype, Device device);

}  // namespace fastfisher::python
