// SPDX-License-Identifier: Apache-2.0
#include "checks.hpp"

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

namespace fastfisher::checks {

std::string shape_of(const ArrayRef& array) {
  std::string text = "(";
  for (int r = 0; r < array.rank; ++r) {
    if (r > 0) text += ", ";
    text += std::to_string(array.extent(r));
  }
  return text + ")";
}

void fail(ErrorCode code, const char* op, const std::string& argument, const std::string& message) {
  throw Error(code, op, argument, message);
}

void expect_rank(const char* op, const std::string& argument, const ArrayRef& array, int rank,
                 const char* shape) {
  if (array.rank != rank) {
    fail(ErrorCode::shape, op, argument,
         "expected shape " + std::string(shape) + ", got " + shape_of(array));
  }
}

void expect_like(const char* op, const std::string& argument, const ArrayRef& array,
                 const Context& ctx, DType dtype) {
  if (!(array.device == ctx.device))
    fail(ErrorCode::dtype, op, argument, "is on another device than out");
  if (array.dtype != dtype) {
    fail(ErrorCode::dtype, op, argument,
         std::string("expected dtype ") + name_of(dtype) + ", got dtype " + name_of(array.dtype));
  }
}

void expect_extent(const char* op, const std::string& argument, const ArrayRef& array, int axis,
                   std::int64_t extent, const std::string& as) {
  if (array.extent(axis) != extent) {
    fail(ErrorCode::shape, op, argument,
         "got shape " + shape_of(array) + ", expected " + std::to_string(extent) + " on axis " +
             std::to_string(axis) + " as " + as);
  }
}

// Whether the address ranges of two arrays meet.
bool share_memory(const ArrayRef& x, const ArrayRef& y) {
  if (x.size() == 0 || y.size() == 0) return false;
  const auto range = [](const ArrayRef& array) {
    std::int64_t low = 0, high = size_of(array.dtype);
    for (int r = 0; r < array.rank; ++r) {
      const std::int64_t reach = (array.extent(r) - 1) * array.stride(r) * size_of(array.dtype);
      (reach < 0 ? low : high) += reach;
    }
    const auto base = reinterpret_cast<std::intptr_t>(array.data);
    return std::pair{base + low, base + high};
  };
  const auto [x_low, x_high] = range(x);
  const auto [y_low, y_high] = range(y);
  return x_low < y_high && y_low < x_high;
}

// Two entries of `out` that share an address would be written by two threads.
bool overlaps(const ArrayRef& out) {
  if (out.size() == 0) return false;
  std::vector<int> axes;
  for (int r = 0; r < out.rank; ++r) {
    if (out.extent(r) > 1) axes.push_back(r);
  }
  std::int64_t span = 1;
  while (!axes.empty()) {
    std::size_t smallest = 0;
    for (std::size_t k = 1; k < axes.size(); ++k) {
      if (std::abs(out.stride(axes[k])) < std::abs(out.stride(axes[smallest]))) smallest = k;
    }
    const std::int64_t stride = std::abs(out.stride(axes[smallest]));
    if (stride < span) return true;
    span = stride * (out.extent(axes[smallest]) - 1) + span;
    axes.erase(axes.begin() + static_cast<std::ptrdiff_t>(smallest));
  }
  return false;
}

void matmul(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out) {
  expect_rank("matmul", "a", a, 2, "(n, k)");
  expect_rank("matmul", "b", b, 2, "(k, m)");
  expect_rank("matmul", "out", out, 2, "(n, m)");
  expect_like("matmul", "a", a, ctx, out.dtype);
  expect_like("matmul", "b", b, ctx, out.dtype);
  expect_extent("matmul", "b", b, 0, a.extent(1), "k of a");
  expect_extent("matmul", "out", out, 0, a.extent(0), "n of a");
  expect_extent("matmul", "out", out, 1, b.extent(1), "m of b");
  if (overlaps(out)) fail(ErrorCode::shape, "matmul", "out", "has entries that share memory");
}

void bmm(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out) {
  constexpr const char* kOp = "bmm";
  expect_rank(kOp, "a", a, 3, "(e, n, k)");
  expect_rank(kOp, "b", b, 3, "(e, k, m)");
  expect_rank(kOp, "out", out, 3, "(e, n, m)");
  expect_like(kOp, "a", a, ctx, out.dtype);
  expect_like(kOp, "b", b, ctx, out.dtype);
  expect_extent(kOp, "b", b, 0, a.extent(0), "e of a");
  expect_extent(kOp, "b", b, 1, a.extent(2), "k of a");
  expect_extent(kOp, "out", out, 0, a.extent(0), "e of a");
  expect_extent(kOp, "out", out, 1, a.extent(1), "n of a");
  expect_extent(kOp, "out", out, 2, b.extent(2), "m of b");
  if (overlaps(out)) fail(ErrorCode::shape, kOp, "out", "has entries that share memory");
}

}  // namespace fastfisher::checks
