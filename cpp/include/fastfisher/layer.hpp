// SPDX-License-Identifier: Apache-2.0
//
// What a layer is to every op: the factors of its per-sample Jacobian, borrowed from the caller.
//   J[n,c] = sum over positions s of  g[n,c,s] (x) a[n,s],   parameters W[o,i] row-major, then
//   b[o].
#pragma once

#include "fastfisher/view.hpp"

#include <array>
#include <cstdint>

namespace fastfisher {

enum class LayerForm : int {
  dense,     ///< a [n,i], g [n,c,o]: one position
  shared,    ///< a [n,s,i], g [n,c,s,o]: s positions (tokens, pixels, repeated use)
  jacobian,  ///< g [n,c,p] is the Jacobian itself; no a
  conv,      ///< a [n,channels,*space], g [n,c,o,*space]: a's patches are the positions
};

/// How the Gram of one layer is computed; see gram.cpp and gram_methods.cpp of the CPU.
enum class GramMethod : int { automatic = -1, s0 = 0, s1 = 1, s2 = 2, s3 = 3, s4 = 4 };

/// A convolution as torch has it: zero padding on both ends, weight [o, channels / groups,
/// *kernel].
struct ConvGeometry {
  int rank = 0;  ///< number of spatial axes, 1 to 3
  std::array<std::int64_t, 3> kernel{1, 1, 1}, stride{1, 1, 1}, padding{0, 0, 0}, dilation{1, 1, 1};
  std::int64_t groups = 1;

  /// Extent of the output along spatial axis r for an input of `extent`; not positive: no output.
  [[nodiscard]] std::int64_t output_extent(int r, std::int64_t extent) const {
    const auto k = static_cast<std::size_t>(r);
    const std::int64_t reach = extent + 2 * padding[k] - dilation[k] * (kernel[k] - 1) - 1;
    return reach < 0 ? 0 : reach / stride[k] + 1;
  }
  /// Product of the kernel's extents.
  [[nodiscard]] std::int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

/// Factors of one layer. Separable cotangents g[n,c,s,o] = m[n,s,o] w[c,o] are given as g = m
/// (shared [n,s,o], conv [n,o,*space]) and w.
struct LayerFactors {
  ArrayRef a;         ///< in; unused by LayerForm::jacobian
  ArrayRef g;         ///< in
  bool bias = false;  ///< a gains a trailing 1
  LayerForm form = LayerForm::dense;
  ArrayRef w = {};  ///< [c,o] in; rank 0 unless separable
  ConvGeometry conv = {};
  GramMethod method = GramMethod::automatic;

  [[nodiscard]] bool separable() const { return w.rank != 0; }
};

/// The extents that all forms have in common.
struct LayerSizes {
  std::int64_t samples = 0;    ///< n
  std::int64_t outputs = 0;    ///< c
  std::int64_t positions = 1;  ///< s
  std::int64_t in = 0;         ///< i, of one group; p for LayerForm::jacobian
  std::int64_t out = 1;        ///< o, of all groups; 1 for LayerForm::jacobian
  std::int64_t groups = 1;
  std::int64_t parameters = 0;
};

/// Sizes of a layer whose ranks are right.
inline LayerSizes sizes_of(const LayerFactors& layer) {
  LayerSizes sizes;
  sizes.samples = layer.g.extent(0);
  sizes.outputs = layer.separable() ? layer.w.extent(0) : layer.g.extent(1);
  switch (layer.form) {
  case LayerForm::jacobian:
    sizes.in = sizes.parameters = layer.g.extent(2);
    return sizes;
  case LayerForm::dense:
    sizes.in = layer.a.extent(1);
    sizes.out = layer.g.extent(2);
    break;
  case LayerForm::shared:
    sizes.positions = layer.a.extent(1);
    sizes.in = layer.a.extent(2);
    sizes.out = layer.g.extent(layer.g.rank - 1);
    break;
  case LayerForm::conv:
    sizes.groups = layer.conv.groups;
    sizes.in = layer.a.extent(1) / sizes.groups * layer.conv.taps();
    sizes.out = layer.g.extent(layer.separable() ? 1 : 2);
    for (int r = 0; r < layer.conv.rank; ++r)
      sizes.positions *= layer.g.extent(layer.g.rank - layer.conv.rank + r);
    break;
  }
  sizes.parameters = sizes.out * (sizes.in + (layer.bias ? 1 : 0));
  return sizes;
}

/// `array` without its first axis, at position `index` of it.
inline ArrayRef without_axis(const ArrayRef& array, std::int64_t index) {
  if (array.rank == 0) return array;
  ArrayRef inner = array;
  inner.data = static_cast<char*>(array.data) + index * array.strides[0] * size_of(array.dtype);
  inner.rank = array.rank - 1;
  for (std::size_t r = 0; r + 1 < kMaxRank; ++r) {
    inner.extents[r] = array.extents[r + 1];
    inner.strides[r] = array.strides[r + 1];
  }
  inner.extents[kMaxRank - 1] = inner.strides[kMaxRank - 1] = 0;
  return inner;
}

/// Layer of network `index` of a batch, whose arrays have a leading axis e.
inline LayerFactors network_of(const LayerFactors& batch, std::int64_t index) {
  LayerFactors layer = batch;
  layer.a = without_axis(batch.a, index);
  layer.g = without_axis(batch.g, index);
  layer.w = without_axis(batch.w, index);
  return layer;
}

}  // namespace fastfisher
