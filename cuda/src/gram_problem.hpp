// SPDX-License-Identifier: Apache-2.0
//
// The host's side of the Gram on a device: layers, target, scales and reports as the kernel bodies
// read and write them. Plain C++, so that tests run it without a device.
#pragma once

#include "fastfisher/ops.hpp"
#include "gram_body.hpp"
#include "panel_body.hpp"
#include "scan_body.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <span>
#include <vector>

namespace fastfisher::cuda {

inline constexpr int kSafeExponent = 32;

/// Products in double: of float64 factors, or where the caller asks for exact ones.
inline bool is_double(DType dtype, GramPrecision precision) {
  return dtype == DType::f64 || precision == GramPrecision::exact;
}

/// How rows can be brought in for products in double (`wide`) or float.
inline Access access_of(const Rows& rows, bool wide) {
  if (rows.dtype != (wide ? DType::f64 : DType::f32) || rows.scale != 1) return Access::convert;
  const std::int64_t piece = wide ? 2 : 4;
  const auto on_pieces = [&](std::int64_t stride) { return stride % piece == 0; };
  const bool side_by_side = rows.depth <= rows.run && (rows.depth_stride == 1 || rows.depth <= 1);
  const bool aligned = reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 &&
                       on_pieces(rows.outer_stride) && on_pieces(rows.inner_stride) &&
                       on_pieces(rows.plane_stride) && on_pieces(rows.depth);
  return side_by_side && aligned ? Access::vectors : Access::elements;
}

inline Rows rows_of_a(const ArrayRef& a) {
  Rows rows;
  rows.data = a.data;
  rows.dtype = a.dtype;
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
  rows.dtype = g.dtype;
  rows.outer_stride = g.stride(0);
  rows.depth = rows.run = o;
  rows.depth_stride = g.stride(2);
  rows.across = std::abs(g.stride(0)) < std::abs(g.stride(2));
  if (outputs == GramOutputs::full) {
    rows.inner = std::max<std::int64_t>(g.extent(1), 1);
    rows.inner_stride = g.stride(1);
    rows.across = rows.across || (rows.inner > 1 && std::abs(g.stride(1)) < std::abs(g.stride(2)));
    if (g.stride(0) == g.extent(1) * g.stride(1)) {  // one run of rows
      rows.inner = 1;
      rows.outer_stride = g.stride(1);
      rows.inner_stride = 0;
    }
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
  target.wide = out.dtype == DType::f64;
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
  const LayerSizes sizes = sizes_of(left.front());
  const LayerSizes others = right.empty() ? sizes : sizes_of(right.front());
  Problem problem;
  problem.rows = sizes.samples;
  problem.cols = others.samples;
  if (outputs == GramOutputs::full) {
    problem.rows *= problem.left_outputs = sizes.outputs;
    problem.cols *= problem.right_outputs = others.outputs;
  }
  if (outputs == GramOutputs::diagonal) problem.planes = sizes.outputs;
  problem.square = right.empty();
  problem.target = target_of(out, outputs);
  return problem;
}

/// Whether the inner products of inputs are computed once and stored: where several rows share a
/// sample, or several planes do.
inline bool stores_inner(const Problem& problem) {
  return problem.left_outputs > 1 || problem.right_outputs > 1 || problem.planes > 1;
}

/// Adjacent axes that lie behind one another in memory become one: mostly a single run is left.
inline ScanInput scan_input(const ArrayRef& array) {
  ScanInput input;
  input.data = array.data;
  input.size = array.size();
  std::int64_t extents[kMaxRank], strides[kMaxRank];
  int runs = 0;
  for (int r = array.rank - 1; r >= 0; --r) {
    const std::int64_t extent = array.extent(r), stride = array.stride(r);
    if (extent == 1) continue;
    if (runs > 0 && stride == strides[runs - 1] * extents[runs - 1]) {
      extents[runs - 1] *= extent;
    } else {
      extents[runs] = extent;
      strides[runs++] = stride;
    }
  }
  for (int r = 0; r < runs; ++r) {
    input.extents[kMaxRank - 1 - r] = extents[r];
    input.strides[kMaxRank - 1 - r] = strides[r];
  }
  input.runs = std::max(runs, 1);
  return input;
}

/// One array to read before anything else, and who it is.
struct ScanArgument {
  int side, layer, argument;  // as GramReport counts them
  ArrayRef array;
};

/// In the order of the report: layers, sides of one, arguments of that.
inline std::vector<ScanArgument> scan_arguments(std::span<const LayerFactors> left,
                                                std::span<const LayerFactors> right) {
  std::vector<ScanArgument> arguments;
  for (std::size_t layer = 0; layer < left.size(); ++layer) {
    for (int side = 0; side < (right.empty() ? 1 : 2); ++side) {
      const LayerFactors& factors = side == 0 ? left[layer] : right[layer];
      const ArrayRef* const arrays[] = {&factors.a, &factors.g, &factors.w};
      for (int argument = 0; argument < 3; ++argument) {
        if (arrays[argument]->rank > 0)
          arguments.push_back({side, static_cast<int>(layer), argument, *arrays[argument]});
      }
    }
  }
  return arguments;
}

inline GramReport report_of(std::span<const ScanArgument> arguments,
                            std::span<const ScanFound> found) {
  for (std::size_t k = 0; k < found.size(); ++k) {
    if (found[k].bad == 0) continue;
    GramReport report{GramReport::Kind::non_finite, arguments[k].side, arguments[k].layer,
                      arguments[k].argument};
    report.index = static_cast<std::int64_t>(ScanFound::kFirst - found[k].bad);
    return report;
  }
  return {};
}

/// Largest magnitudes of the factors of one layer and side.
struct Magnitudes {
  double a = 0, g = 0, w = 0;
  bool separable = false;
};

/// [side][layer].
inline std::vector<Magnitudes> magnitudes_of(std::span<const ScanArgument> arguments,
                                             std::span<const ScanFound> found,
                                             std::span<const LayerFactors> left) {
  std::vector<Magnitudes> magnitudes(2 * left.size());
  for (std::size_t k = 0; k < found.size(); ++k) {
    const ScanArgument& argument = arguments[k];
    double largest = argument.array.dtype == DType::f64
                         ? std::bit_cast<double>(found[k].largest)
                         : std::bit_cast<float>(static_cast<std::uint32_t>(found[k].largest));
    const auto layer = static_cast<std::size_t>(argument.layer);
    Magnitudes& of = magnitudes[layer + (argument.side == 1 ? left.size() : 0)];
    of.separable = left[layer].separable();
    // The bias joins the inner product of a, so it takes part in its scale.
    if (argument.argument == 0 && left[layer].bias) largest = std::max(largest, 1.0);
    (argument.argument == 0 ? of.a : argument.argument == 1 ? of.g : of.w) = largest;
  }
  return magnitudes;
}

/// Exponents of two that factors are multiplied with when read: 0 for entries inside [2^-32, 2^32],
/// whose products neither underflow nor overflow.
struct Exponents {
  int a = 0, g = 0;
};

inline int exponent_of(int e, bool wide) {
  const int most = wide ? 1000 : 126;  // so that 2^-e is a normal number
  return std::abs(e) <= kSafeExponent ? 0 : -std::clamp(e, -most, most);
}

inline int log_of(double magnitude) {
  return magnitude == 0 ? 0 : std::ilogb(magnitude);
}

inline Exponents exponents_of(const Magnitudes& of, bool wide) {
  return {exponent_of(log_of(of.a), wide), exponent_of(log_of(of.g), wide)};
}

/// Of gradients that have been formed: they are near the product of their factors.
inline Exponents formed_exponents(const Magnitudes& of, bool wide) {
  const int e = log_of(of.a) + log_of(of.g) + (of.separable ? log_of(of.w) : 0);
  return {0, exponent_of(e, wide)};
}

/// A dense layer or an explicit Jacobian as the kernel reads it; `right` is `left` when square.
inline Layer layer_of(const LayerFactors& left, const LayerFactors& right, Exponents of_left,
                      Exponents of_right, GramOutputs outputs, bool wide) {
  Layer layer;
  const LayerFactors* const sides[] = {&left, &right};
  const Exponents exponents[] = {of_left, of_right};
  const auto scaled = [&](Rows rows, int exponent) {
    rows.scale = std::ldexp(1.0, exponent);
    rows.access = access_of(rows, wide);
    return rows;
  };
  const bool dense = left.form == LayerForm::dense;
  for (std::size_t side = 0; side < 2; ++side) {
    if (dense) layer.a[side] = scaled(rows_of_a(sides[side]->a), exponents[side].a);
    layer.g[side] = scaled(rows_of_g(sides[side]->g, outputs), exponents[side].g);
  }
  layer.inner = dense ? Inner::computed : Inner::none;
  const int inner = of_left.a + of_right.a;
  if (left.bias) layer.fold_bias = std::ldexp(1.0, inner);
  const int total = inner + of_left.g + of_right.g;
  // Beyond float64's range every entry over- or underflows whatever the exact exponent.
  layer.fold_scale = std::ldexp(1.0, std::clamp(-total, -1020, 1020));
  return layer;
}

/// What is packed of a layer.
inline std::vector<PackProblem> pack_problems(const LayerFactors& layer, GramOutputs outputs) {
  const LayerSizes sizes = sizes_of(layer);
  std::vector<PackProblem> problems;
  if (layer.form == LayerForm::dense) {
    PackProblem& inputs = problems.emplace_back();
    inputs.rows = rows_of_a(layer.a);
    inputs.count = sizes.samples;
    inputs.inputs = true;
  }
  PackProblem& cotangents = problems.emplace_back();
  cotangents.rows = rows_of_g(layer.g, outputs);
  cotangents.count = sizes.samples * (outputs == GramOutputs::full ? sizes.outputs : 1);
  if (outputs == GramOutputs::diagonal) cotangents.planes = sizes.outputs;
  return problems;
}

template <int Edge>
std::int64_t panels_bytes(const PackProblem& problem) {
  return problem.planes * Panels<Edge>::bytes(problem.count, problem.rows.depth);
}

inline bool is_few(const Problem& problem, std::span<const Layer> layers) {
  return (problem.layer_planes || layers.size() <= kFewLayers) &&
         std::all_of(layers.begin(), layers.end(),
                     [](const Layer& layer) { return layer.fold_scale == 1; });
}

/// Samples [from, to) of the left, and where the inner products of their inputs go: [layer, to -
/// from, others] in the type of the products.
struct Strip {
  std::byte* data;
  bool wide;
  std::int64_t from, to, others;
};

/// The rows of `problem` that belong to the samples of `strip`.
inline Problem rows_of(const Problem& problem, const Strip& strip) {
  Problem part = problem;
  part.first_row = strip.from * problem.left_outputs;
  part.rows = strip.to * problem.left_outputs;
  return part;
}

/// Inner products of all dense layers as a problem of its own, one plane a layer.
struct InnerProducts {
  Problem problem;
  std::vector<Layer> layers;
};

/// Inner products of a strip of samples, which the dense ones of `layers` then read.
inline InnerProducts store_inner(const Problem& problem, const Strip& strip,
                                 std::vector<Layer>& layers) {
  InnerProducts inner;
  Problem& p = inner.problem;
  p.first_row = strip.from;
  p.rows = strip.to;
  p.cols = strip.others;
  p.square = problem.square;
  p.mirror = false;
  p.layer_planes = true;
  p.target.data = strip.data;
  p.target.wide = strip.wide;
  p.target.row_outer_stride = strip.others;
  p.target.col_outer_stride = 1;
  p.target.plane_stride = (strip.to - strip.from) * strip.others;
  p.target.offset = -strip.from * strip.others;
  for (Layer& layer : layers) {
    if (layer.inner == Inner::none) continue;
    layer.inner = Inner::stored;
    layer.stored = strip.data + static_cast<std::int64_t>(inner.layers.size()) *
                                    p.target.plane_stride * (strip.wide ? 8 : 4);
    layer.stored_first = strip.from;
    layer.stored_stride = strip.others;
    Layer plane;
    for (std::size_t side = 0; side < 2; ++side) plane.g[side] = layer.a[side];
    inner.layers.push_back(plane);
  }
  p.planes = static_cast<std::int64_t>(inner.layers.size());
  return inner;
}

}  // namespace fastfisher::cuda
