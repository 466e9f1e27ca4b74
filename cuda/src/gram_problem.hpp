// SPDX-License-Identifier: Apache-2.0
//
// The host's side of the dense Gram on a device: layers, target, scales and reports as the kernel
// bodies read and write them. Plain C++, so that tests run it without a device.
#pragma once

#include "fastfisher/ops.hpp"
#include "gram_body.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

namespace fastfisher::cuda {

inline constexpr int kSafeExponent = 32;

inline Rows rows_of_a(const ArrayRef& a) {
  Rows rows;
  rows.data = a.data;
  rows.outer_stride = a.stride(0);
  rows.depth = rows.run = a.extent(1);
  rows.depth_stride = a.stride(1);
  rows.across = std::abs(a.stride(0)) < std::abs(a.stride(1));
  return rows;
}

inline Rows rows_of_g(const ArrayRef& g, GramOutputs outputs) {
  const std::int64_t o = g.extent(2);
  Rows rows;
  rows.data = g.data;
  rows.outer_stride = g.stride(0);
  rows.depth = rows.run = o;
  rows.depth_stride = g.stride(2);
  rows.across = std::abs(g.stride(0)) < std::abs(g.stride(2));
  if (outputs == GramOutputs::full) {
    rows.inner = std::max<std::int64_t>(g.extent(1), 1);
    rows.inner_stride = g.stride(1);
    rows.across = rows.across || std::abs(g.stride(1)) < std::abs(g.stride(2));
  } else if (outputs == GramOutputs::trace) {
    rows.depth = g.extent(1) * o;
    rows.run = std::max<std::int64_t>(o, 1);
    rows.run_stride = g.stride(1);
    if (g.stride(1) == o * g.stride(2)) rows.run = rows.depth;  // one run over outputs and features
  } else {
    rows.plane_stride = g.stride(1);
  }
  return rows;
}

inline Target target_of(const ArrayRef& out, GramOutputs outputs) {
  Target target;
  target.data = out.data;
  target.row_outer_stride = out.stride(0);
  if (outputs == GramOutputs::full) {
    target.row_inner = std::max<std::int64_t>(out.extent(1), 1);
    target.row_inner_stride = out.stride(1);
    target.col_inner = std::max<std::int64_t>(out.extent(3), 1);
    target.col_outer_stride = out.stride(2);
    target.col_inner_stride = out.stride(3);
  } else {
    target.col_outer_stride = out.stride(1);
    if (outputs == GramOutputs::diagonal) target.plane_stride = out.stride(2);
  }
  return target;
}

inline Problem problem_of(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
                          GramOutputs outputs, const ArrayRef& out) {
  const ArrayRef& g = left.front().g;
  const ArrayRef& h = right.empty() ? g : right.front().g;
  Problem problem;
  problem.rows = g.extent(0);
  problem.cols = h.extent(0);
  if (outputs == GramOutputs::full) {
    problem.rows *= problem.left_outputs = g.extent(1);
    problem.cols *= problem.right_outputs = h.extent(1);
  }
  if (outputs == GramOutputs::diagonal) problem.planes = g.extent(1);
  problem.layers = static_cast<int>(left.size());
  problem.square = right.empty();
  problem.target = target_of(out, outputs);
  return problem;
}

/// Adjacent axes that lie behind one another in memory become one: mostly a single run is left.
inline ScanInput scan_input(const ArrayRef& array) {
  ScanInput input;
  input.data = array.data;
  input.size = array.size();
  int axis = 2;
  for (int r = array.rank - 1; r >= 0; --r) {
    const std::int64_t extent = array.extent(r), stride = array.stride(r);
    if (extent == 1) continue;
    if (input.extents[axis] == 1) {
      input.extents[axis] = extent;
      input.strides[axis] = stride;
    } else if (stride == input.strides[axis] * input.extents[axis]) {
      input.extents[axis] *= extent;
    } else {
      --axis;
      input.extents[axis] = extent;
      input.strides[axis] = stride;
    }
  }
  return input;
}

// The device's scratch: what the scans find, the overflow flag, the layers. Scans of argument k
// (a, g of each layer, left before right) write found[k].
struct GramMemory {
  static constexpr std::int64_t kAlign = 64;
  std::int64_t scans, flag_at, layers_at, bytes;

  GramMemory(std::size_t layers, bool square)
      : scans(static_cast<std::int64_t>(layers) * (square ? 2 : 4)),
        flag_at(scans * static_cast<std::int64_t>(sizeof(ScanFound))),
        layers_at(flag_at + static_cast<std::int64_t>(sizeof(std::uint64_t))),
        bytes(layers_at + static_cast<std::int64_t>(layers * sizeof(Layer)) + kAlign) {}
};
static_assert(alignof(Layer) == alignof(std::uint64_t));

inline const ArrayRef& argument_of(std::span<const LayerFactors> left,
                                   std::span<const LayerFactors> right, std::size_t k) {
  const LayerFactors& layer = k < 2 * left.size() ? left[k / 2] : right[k / 2 - left.size()];
  return k % 2 == 0 ? layer.a : layer.g;
}

/// The exponent that is divided out of entries up to `largest`: 0 inside [2^-32, 2^32], where
/// products of type T neither underflow nor overflow.
template <class T>
int exponent_of(double largest) {
  if (largest == 0) return 0;
  const int e = std::ilogb(largest);
  constexpr int kMost = std::is_same_v<T, float> ? 126 : 1000;  // so that 2^-e is a normal T
  return std::abs(e) <= kSafeExponent ? 0 : std::clamp(e, -kMost, kMost);
}

/// First argument with an entry that is not finite, in the order of the CPU's report.
inline GramReport report_of(std::span<const ScanFound> found, std::size_t layers) {
  for (std::size_t layer = 0; layer < layers; ++layer) {
    for (std::size_t side = 0; side < found.size() / (2 * layers); ++side) {
      for (std::size_t argument = 0; argument < 2; ++argument) {
        const std::uint64_t bad = found[2 * (side * layers + layer) + argument].bad;
        if (bad == 0) continue;
        return {GramReport::Kind::non_finite, static_cast<int>(side), static_cast<int>(layer),
                static_cast<int>(argument), static_cast<std::int64_t>(ScanFound::kFirst - bad)};
      }
    }
  }
  return {};
}

/// The layers as the kernel reads them, with the scales that follow from the scans.
template <class S, class T>
std::vector<Layer> layers_of(std::span<const LayerFactors> left,
                             std::span<const LayerFactors> right, GramOutputs outputs,
                             std::span<const ScanFound> found) {
  const auto exponent = [&](std::size_t k, bool bias) {
    using Bits = std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint64_t>;
    const double largest = std::bit_cast<S>(static_cast<Bits>(found[k].largest));
    // The bias joins the inner product of a, so it takes part in its scale.
    return -exponent_of<T>(bias ? std::max(largest, 1.0) : largest);
  };
  std::vector<Layer> layers(left.size());
  for (std::size_t index = 0; index < left.size(); ++index) {
    Layer& layer = layers[index];
    int exponents_a = 0, total = 0;
    for (std::size_t side = 0; side < 2; ++side) {
      const bool mirrored = side == 1 && right.empty();
      const LayerFactors& factors = side == 0 || mirrored ? left[index] : right[index];
      const std::size_t k = 2 * (index + (side == 1 && !mirrored ? left.size() : 0));
      const int of_a = exponent(k, factors.bias), of_g = exponent(k + 1, false);
      layer.a[side] = rows_of_a(factors.a);
      layer.a[side].scale = std::ldexp(1.0, of_a);
      layer.g[side] = rows_of_g(factors.g, outputs);
      layer.g[side].scale = std::ldexp(1.0, of_g);
      exponents_a += of_a;
      total += of_a + of_g;
    }
    layer.fold_bias = left[index].bias ? std::ldexp(1.0, exponents_a) : 0;
    // Beyond float64's range every entry over- or underflows whatever the exact exponent.
    layer.fold_scale = std::ldexp(1.0, std::clamp(-total, -1020, 1020));
  }
  return layers;
}

}  // namespace fastfisher::cuda
