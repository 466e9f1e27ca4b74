// SPDX-License-Identifier: Apache-2.0
#include "checks.hpp"

#include <algorithm>
#include <string>
#include <vector>

namespace fastfisher::checks {
namespace {

void one_conv(const char* op, const std::string& name, const LayerFactors& layer) {
  const ConvGeometry& conv = layer.conv;
  const int rank = conv.rank;
  if (rank < 1 || rank > 3)
    fail(ErrorCode::shape, op, name + "conv", "expected 1 to 3 spatial axes");
  expect_rank(op, name + "x", layer.a, 2 + rank, "(n, i, *space)");
  if (layer.separable()) {
    expect_rank(op, name + "m", layer.g, 2 + rank, "(n, o, *space)");
  } else {
    expect_rank(op, name + "g", layer.g, 3 + rank, "(n, c, o, *space)");
  }
  bool positive = conv.groups > 0;
  for (std::size_t r = 0; r < 3; ++r) {
    positive = positive && conv.kernel[r] > 0 && conv.stride[r] > 0 && conv.dilation[r] > 0 &&
               conv.padding[r] >= 0;
  }
  if (!positive) fail(ErrorCode::shape, op, name + "conv", "has an extent that is not positive");
  // So that no product of extents overflows.
  std::int64_t entries = std::max<std::int64_t>(1, layer.a.extent(1) / conv.groups);
  for (const std::int64_t taps : conv.kernel) {
    if (entries >= (std::int64_t{1} << 31) / taps + 1)
      fail(ErrorCode::shape, op, name + "kernel", "makes patches of 2^31 entries or more");
    entries *= taps;
  }
  const std::int64_t o = layer.g.extent(layer.separable() ? 1 : 2);
  if (layer.a.extent(1) % conv.groups != 0 || o % conv.groups != 0)
    fail(ErrorCode::shape, op, name + "groups", "does not divide the channels");
  for (int r = 0; r < rank; ++r) {
    expect_extent(op, name + "g", layer.g, layer.g.rank - rank + r,
                  conv.output_extent(r, layer.a.extent(2 + r)), "the geometry gives");
  }
}

void one_layer(const char* op, const std::string& name, const LayerFactors& layer) {
  switch (layer.form) {
  case LayerForm::dense:
    expect_rank(op, name + "a", layer.a, 2, "(n, i)");
    expect_rank(op, name + "g", layer.g, 3, "(n, c, o)");
    if (layer.separable())
      fail(ErrorCode::shape, op, name + "w", "separable cotangents need a shared layer");
    break;
  case LayerForm::jacobian:
    expect_rank(op, name + "j", layer.g, 3, "(n, c, p)");
    if (layer.bias || layer.separable())
      fail(ErrorCode::shape, op, name + "bias", "an explicit Jacobian has neither bias nor w");
    return;
  case LayerForm::shared: {
    const bool separable = layer.separable();
    expect_rank(op, name + "a", layer.a, 3, "(n, s, i)");
    expect_rank(op, name + "g", layer.g, separable ? 3 : 4,
                separable ? "(n, s, o)" : "(n, c, s, o)");
    expect_extent(op, name + "g", layer.g, separable ? 1 : 2, layer.a.extent(1), "positions of a");
    break;
  }
  case LayerForm::conv:
    one_conv(op, name, layer);
    break;
  }
  expect_extent(op, name + "a", layer.a, 0, layer.g.extent(0), "samples of g");
  if (layer.separable()) {
    expect_rank(op, name + "w", layer.w, 2, "(c, o)");
    expect_extent(op, name + "w", layer.w, 1, sizes_of(layer).out, "units of m");
  }
}

std::vector<std::int64_t> gram_shape(const LayerSizes& left, const LayerSizes& right,
                                     GramOutputs outputs) {
  switch (outputs) {
  case GramOutputs::full:
    return {left.samples, left.outputs, right.samples, right.outputs};
  case GramOutputs::trace:
    return {left.samples, right.samples};
  case GramOutputs::diagonal:
    return {left.samples, right.samples, left.outputs};
  }
  return {};
}

}  // namespace

void layers(const char* op, const Context& ctx, std::span<const LayerFactors> list,
            const std::string& side) {
  if (list.empty()) fail(ErrorCode::shape, op, side, "expected at least one layer, got none");
  const DType dtype = list.front().g.dtype;
  LayerSizes first;
  for (std::size_t index = 0; index < list.size(); ++index) {
    const std::string name = side + "[" + std::to_string(index) + "].";
    const LayerFactors& layer = list[index];
    one_layer(op, name, layer);
    expect_like(op, name + "g", layer.g, ctx, dtype);
    if (layer.form != LayerForm::jacobian) expect_like(op, name + "a", layer.a, ctx, dtype);
    if (layer.separable()) expect_like(op, name + "w", layer.w, ctx, dtype);
    const LayerSizes sizes = sizes_of(layer);
    if (index == 0) {
      first = sizes;
    } else if (sizes.samples != first.samples || sizes.outputs != first.outputs) {
      fail(ErrorCode::shape, op, name + "g",
           "got " + std::to_string(sizes.samples) + " samples and " +
               std::to_string(sizes.outputs) + " outputs, expected " +
               std::to_string(first.samples) + " and " + std::to_string(first.outputs) +
               " as in the first layer");
    }
  }
}

std::int64_t networks(const char* op, std::span<const LayerFactors> left,
                      std::span<const LayerFactors> right) {
  std::int64_t count = -1;
  for (const auto side : {left, right}) {
    for (const LayerFactors& layer : side) {
      for (const ArrayRef* array : {&layer.a, &layer.g, &layer.w}) {
        if (array->rank == 0) continue;
        if (count < 0) count = array->extent(0);
        if (array->extent(0) != count) {
          fail(ErrorCode::shape, op, "left",
               "holds arrays for " + std::to_string(count) + " and for " +
                   std::to_string(array->extent(0)) + " networks");
        }
      }
    }
  }
  return std::max<std::int64_t>(count, 0);
}

void gram(const Context& ctx, std::span<const LayerFactors> left,
          std::span<const LayerFactors> right, const GramOptions& options) {
  if (options.batched) {
    networks("gram", left, right);
    std::vector<LayerFactors> first, other;
    for (const LayerFactors& layer : left) first.push_back(network_of(layer, 0));
    for (const LayerFactors& layer : right) other.push_back(network_of(layer, 0));
    GramOptions one = options;
    one.batched = false;
    return gram(ctx, first, other, one);
  }
  layers("gram", ctx, left, "left");
  if (right.empty()) return;
  if (right.size() != left.size()) {
    fail(ErrorCode::shape, "gram", "right",
         "got " + std::to_string(right.size()) + " layers, expected " +
             std::to_string(left.size()) + " as in left");
  }
  layers("gram", ctx, right, "right");
  if (left.front().g.dtype != right.front().g.dtype)
    fail(ErrorCode::dtype, "gram", "right", "has another dtype than left");
  for (std::size_t index = 0; index < left.size(); ++index) {
    const std::string name = "right[" + std::to_string(index) + "]";
    const LayerSizes x = sizes_of(left[index]), y = sizes_of(right[index]);
    if (left[index].form != right[index].form || x.in != y.in || x.out != y.out ||
        x.groups != y.groups || left[index].bias != right[index].bias ||
        left[index].separable() != right[index].separable() ||
        (left[index].form == LayerForm::conv &&
         left[index].conv.kernel != right[index].conv.kernel)) {
      fail(ErrorCode::shape, "gram", name, "is another layer than left's");
    }
    if (options.outputs != GramOutputs::full && x.outputs != y.outputs) {
      fail(ErrorCode::shape, "gram", name,
           "has other outputs than left, which outputs other than full need");
    }
  }
}

void gram_out(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
              const GramOptions& options, const ArrayRef& out) {
  const auto sizes = [&](const LayerFactors& layer) {
    return sizes_of(options.batched ? network_of(layer, 0) : layer);
  };
  const LayerSizes rows = sizes(left.front());
  const LayerSizes cols = right.empty() ? rows : sizes(right.front());
  ArrayRef expected;
  if (options.batched)
    expected.extents[static_cast<std::size_t>(expected.rank++)] = left.front().g.extent(0);
  for (const std::int64_t extent : gram_shape(rows, cols, options.outputs))
    expected.extents[static_cast<std::size_t>(expected.rank++)] = extent;
  if (out.rank != expected.rank || out.extents != expected.extents) {
    fail(ErrorCode::shape, "gram", "out",
         "expected shape " + shape_of(expected) + ", got " + shape_of(out));
  }
  const DType dtype = result_of(left.front().g.dtype);
  if (out.dtype != dtype) {
    fail(ErrorCode::dtype, "gram", "out",
         std::string("expected dtype ") + name_of(dtype) + ", got dtype " + name_of(out.dtype));
  }
  if (overlaps(out)) fail(ErrorCode::shape, "gram", "out", "has entries that share memory");
  for (const auto side : {left, right}) {
    for (const LayerFactors& layer : side) {
      for (const ArrayRef* input : {&layer.a, &layer.g, &layer.w}) {
        if (input->rank != 0 && share_memory(out, *input)) {
          fail(ErrorCode::shape, "gram", "out",
               "overlaps the memory of an input, expected memory of its own");
        }
      }
    }
  }
}

}  // namespace fastfisher::checks
