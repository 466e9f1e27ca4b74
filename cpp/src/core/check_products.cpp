// SPDX-License-Identifier: Apache-2.0
#include "checks.hpp"

#include <initializer_list>
#include <string>

namespace fastfisher::checks {
namespace {

void expect_shape(const char* op, const std::string& name, const ArrayRef& array,
                  std::initializer_list<std::int64_t> extents) {
  ArrayRef expected;
  for (const std::int64_t extent : extents)
    expected.extents.at(static_cast<std::size_t>(expected.rank++)) = extent;
  if (array.rank != expected.rank || array.extents != expected.extents) {
    fail(ErrorCode::shape, op, name,
         "expected shape " + shape_of(expected) + ", got " + shape_of(array));
  }
}

}  // namespace

void product(const char* op, const Context& ctx, std::span<const LayerFactors> list,
             const ArrayRef& vector, const ArrayRef& out, bool forward) {
  layers(op, ctx, list, "layers");
  const LayerSizes first = sizes_of(list.front());
  std::int64_t parameters = 0;
  for (const LayerFactors& layer : list) parameters += sizes_of(layer).parameters;
  const std::int64_t columns = out.rank > 0 ? out.extent(out.rank - 1) : 0;
  const ArrayRef& in_parameters = forward ? vector : out;
  const ArrayRef& in_outputs = forward ? out : vector;
  const char* const name = forward ? "v" : "u";
  expect_shape(op, forward ? name : "out", in_parameters, {parameters, columns});
  expect_shape(op, forward ? "out" : name, in_outputs, {first.samples, first.outputs, columns});
  const DType dtype = result_of(list.front().g.dtype);
  expect_like(op, name, vector, ctx, dtype);
  expect_like(op, "out", out, ctx, dtype);
  if (overlaps(out)) fail(ErrorCode::shape, op, "out", "has entries that share memory");
  bool shared = share_memory(out, vector);
  for (const LayerFactors& layer : list) {
    for (const ArrayRef* input : {&layer.a, &layer.g, &layer.w})
      shared = shared || (input->rank != 0 && share_memory(out, *input));
  }
  if (shared) {
    fail(ErrorCode::shape, op, "out",
         "overlaps the memory of an input, expected memory of its own");
  }
}

void product_workspace(const char* op, const Context& ctx, std::span<const LayerFactors> list,
                       std::int64_t columns) {
  layers(op, ctx, list, "layers");
  if (columns < 0) fail(ErrorCode::shape, op, "columns", "expected a number that is not negative");
}

}  // namespace fastfisher::checks
