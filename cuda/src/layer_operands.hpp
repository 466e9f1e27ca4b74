// SPDX-License-Identifier: Apache-2.0
//
// A layer's factors as operands of products and reductions: positions and features of its inputs
// (for convolutions of their patches), cotangents by their positions and units. Host code.
#pragma once

#include "fastfisher/error.hpp"
#include "fastfisher/layer.hpp"
#include "product_plan.hpp"

#include <cstdint>

namespace fastfisher::cuda {

inline void* advanced(const ArrayRef& array, std::int64_t elements) {
  // Arrays without entries may have no memory at all.
  if (array.data == nullptr || elements == 0) return array.data;
  return static_cast<char*>(array.data) + elements * size_of(array.dtype);
}

/// Where the inputs of a layer lie: `places` are (sample, position), or positions of one sample,
/// `features` those of one group; `group` is the stride between groups.
struct InputAxes {
  Axis places, features;
  std::int64_t sample = 0, group = 0;
  std::int32_t extents[3] = {1, 1, 1};
  bool patch = false;
};

inline InputAxes inputs_of(const LayerFactors& layer, std::int64_t samples, bool one_sample) {
  const ArrayRef& a = layer.a;
  InputAxes inputs;
  inputs.sample = a.stride(0);
  if (layer.form != LayerForm::conv) {
    const bool shared = layer.form == LayerForm::shared;
    if (shared) inputs.places.nest(a.extent(1), a.stride(1));
    if (!one_sample) inputs.places.nest(samples, a.stride(0));
    inputs.features.nest(a.extent(shared ? 2 : 1), a.stride(shared ? 2 : 1));
    return inputs;
  }
  const ConvGeometry& conv = layer.conv;
  inputs.patch = true;
  Axis& places = inputs.places;
  Axis& features = inputs.features;
  places.levels = one_sample ? 3 : 4;
  features.levels = 4;
  for (int r = 0; r < conv.rank; ++r) {
    const auto axis = static_cast<std::size_t>(conv.rank - 1 - r);  // innermost first
    const std::int64_t stride = a.stride(2 + conv.rank - 1 - r);
    if (a.extent(2 + conv.rank - 1 - r) + 2 * conv.padding[axis] >= std::int64_t{1} << 31)
      throw Error(ErrorCode::shape, "conv", "a", "has a padded extent of 2^31 or more");
    inputs.extents[r] = static_cast<std::int32_t>(a.extent(2 + conv.rank - 1 - r));
    places.extents[r] = layer.g.extent(layer.g.rank - 1 - r);
    places.strides[r] = conv.stride[axis] * stride;
    places.step[r] = static_cast<std::int32_t>(conv.stride[axis]);
    places.base[r] = -static_cast<std::int32_t>(conv.padding[axis]);
    places.origin -= conv.padding[axis] * stride;
    places.count *= places.extents[r];
    features.extents[r] = conv.kernel[axis];
    features.strides[r] = conv.dilation[axis] * stride;
    features.step[r] = static_cast<std::int32_t>(conv.dilation[axis]);
  }
  if (!one_sample) {
    places.strides[3] = a.stride(0);
    places.count *= samples;
  }
  const std::int64_t channels = a.extent(1) / conv.groups;
  features.strides[3] = a.stride(1);
  features.count = channels * conv.taps();
  inputs.group = channels * a.stride(1);
  return inputs;
}

/// The inputs as an operand whose rows are the features or else the places; from sample `first`.
template <class T>
Operand input_operand(const LayerFactors& layer, const InputAxes& inputs, std::int64_t first,
                      bool rows_are_features) {
  Operand x;
  x.data = advanced(layer.a, first * inputs.sample);
  x.rows = rows_are_features ? inputs.features : inputs.places;
  x.depth = rows_are_features ? inputs.places : inputs.features;
  for (int r = 0; r < 3; ++r) x.extents[r] = inputs.extents[r];
  x.patch = inputs.patch;
  x.dtype = layer.a.dtype;
  choose_path<T>(x);
  if (x.patch) x.path = rows_are_features ? Path::along : Path::across;
  return x;
}

/// Cotangents with t = (position, unit), for convolutions (unit, position).
inline Cotangents cotangents_of(const LayerFactors& layer, std::int64_t first) {
  const ArrayRef& g = layer.g;
  const bool separable = layer.separable();
  const int next = separable ? 1 : 2;  // the axis after those of samples and outputs
  Cotangents access;
  access.data = advanced(g, first * g.stride(0));
  access.sample = g.stride(0);
  access.output = separable ? 0 : g.stride(1);
  if (separable) {
    access.w = layer.w.data;
    access.w_output = layer.w.stride(0);
    access.w_unit = layer.w.stride(1);
    access.units = std::max<std::int64_t>(layer.w.extent(1), 1);
  }
  for (int r = g.rank - 1; r >= next; --r) access.t.nest(g.extent(r), g.stride(r));
  if (layer.form == LayerForm::conv)
    access.unit_run = std::max<std::int64_t>(sizes_of(layer).positions, 1);
  return access;
}

/// Strides of the units and the positions of one sample in g, and of its positions alone.
struct CotangentAxes {
  std::int64_t unit = 0;
  Axis positions;
};

inline CotangentAxes positions_of(const LayerFactors& layer) {
  const ArrayRef& g = layer.g;
  CotangentAxes axes;
  if (layer.form == LayerForm::conv) {
    for (int r = g.rank - 1; r >= g.rank - layer.conv.rank; --r)
      axes.positions.nest(g.extent(r), g.stride(r));
    axes.unit = g.stride(g.rank - layer.conv.rank - 1);
    return axes;
  }
  axes.unit = g.stride(g.rank - 1);
  if (layer.form == LayerForm::shared)
    axes.positions.nest(g.extent(g.rank - 2), g.stride(g.rank - 2));
  return axes;
}

}  // namespace fastfisher::cuda
