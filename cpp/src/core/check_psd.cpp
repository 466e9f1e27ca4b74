// SPDX-License-Identifier: Apache-2.0
#include "checks.hpp"

#include <cmath>
#include <cstddef>
#include <string>
#include <utility>

namespace fastfisher::checks {
namespace {

void packed_out(const char* op, const std::string& name, const ArrayRef& out, std::int64_t columns,
                std::int64_t rows) {
  expect_rank(op, name, out, 2, "(n, n) or (n, k)");
  expect_extent(op, name, out, 0, rows, "rows of the matrix");
  expect_extent(op, name, out, 1, columns, "columns of the result");
  if (out.size() > 0 && (out.stride(1) != 1 || out.stride(0) != out.extent(1)))
    fail(ErrorCode::shape, op, name, "expected packed rows");
}

// A factor of n rows: packed numbers in the backend's own form.
void factor_of(const char* op, const std::string& name, const ArrayRef& factor, const Context& ctx,
               std::int64_t n) {
  expect_rank(op, name, factor, 1, "(psd_factor_size(n),)");
  expect_extent(op, name, factor, 0, fastfisher::psd_factor_size(ctx, n, factor.dtype),
                "numbers of a factor");
  if (factor.size() > 1 && factor.stride(0) != 1)
    fail(ErrorCode::shape, op, name, "expected packed numbers");
}

}  // namespace

void psd_factor_size(std::int64_t n, DType dtype) {
  if (n < 0 || n > 32000)
    fail(ErrorCode::shape, "psd_factor_size", "n",
         "got " + std::to_string(n) + ", expected 0 to 32000");
  if (dtype != DType::f32 && dtype != DType::f64)
    fail(ErrorCode::dtype, "psd_factor_size", "dtype", "expected float32 or float64");
}

void psd(const Context& ctx, std::span<const PsdItem> items, const PsdOptions& options) {
  if (options.task == PsdTask::inverse_root && !(options.p > 0 && std::isfinite(options.p)))
    fail(ErrorCode::shape, "psd", "p", "expected a positive number");
  for (std::size_t k = 0; k < items.size(); ++k) {
    const PsdItem& item = items[k];
    std::string at("[");
    at.append(std::to_string(k)).append("]");
    const DType storage = items.front().a.dtype, dtype = result_of(storage);
    expect_rank("psd", "a" + at, item.a, 2, "(n, n)");
    const std::int64_t n = item.a.extent(0);
    expect_extent("psd", "a" + at, item.a, 1, n, "rows");
    expect_like("psd", "a" + at, item.a, ctx, storage);
    expect_like("psd", "out" + at, item.out, ctx, dtype);
    if (!(item.damping >= 0 && std::isfinite(item.damping)))
      fail(ErrorCode::shape, "psd", "damping" + at,
           "expected a finite number that is not negative");
    std::int64_t columns = n;
    if (options.task == PsdTask::solve) {
      expect_rank("psd", "b" + at, item.b, 2, "(n, k)");
      expect_extent("psd", "b" + at, item.b, 0, n, "rows of the matrix");
      expect_like("psd", "b" + at, item.b, ctx, dtype);
      columns = item.b.extent(1);
      if (share_memory(item.out, item.b))
        fail(ErrorCode::shape, "psd", "out" + at, "overlaps the memory of b");
    }
    if (options.task == PsdTask::factor) {
      factor_of("psd", "out" + at, item.out, ctx, n);
    } else {
      packed_out("psd", "out" + at, item.out, columns, n);
    }
    if (options.task == PsdTask::eigh) {
      expect_rank("psd", "values" + at, item.values, 1, "(n,)");
      expect_extent("psd", "values" + at, item.values, 0, n, "rows of the matrix");
      expect_like("psd", "values" + at, item.values, ctx, dtype);
    }
    if (share_memory(item.out, item.a))
      fail(ErrorCode::shape, "psd", "out" + at, "overlaps the memory of a");
  }
}

void moments(const Context& ctx, std::span<const MomentItem> items) {
  for (std::size_t k = 0; k < items.size(); ++k) {
    const MomentItem& item = items[k];
    std::string at = "[";  // not "[" + ...: gcc 12 warns of an overlap in that
    at.append(std::to_string(k)).append("]");
    const DType dtype = items.front().a.dtype;
    expect_rank("moments", "a" + at, item.a, 2, "(n, i)");
    expect_like("moments", "a" + at, item.a, ctx, dtype);
    expect_like("moments", "out" + at, item.out, ctx, dtype);
    if (dtype != DType::f32 && dtype != DType::f64)
      fail(ErrorCode::dtype, "moments", "a" + at, "expected dtype float32 or float64");
    expect_rank("moments", "out" + at, item.out, 2, "(i, i) or (i + 1, i + 1)");
    const std::int64_t columns = item.a.extent(1), one = item.out.extent(0) == columns ? 0 : 1;
    packed_out("moments", "out" + at, item.out, columns + one, columns + one);
    if (!std::isfinite(item.scale))
      fail(ErrorCode::shape, "moments", "scale" + at, "expected a finite number");
    if (share_memory(item.out, item.a))
      fail(ErrorCode::shape, "moments", "out" + at, "overlaps the memory of a");
  }
}

void sandwich(const Context& ctx, std::span<const SandwichItem> items) {
  for (std::size_t k = 0; k < items.size(); ++k) {
    const SandwichItem& item = items[k];
    std::string at("[");
    at.append(std::to_string(k)).append("]");
    const DType dtype = items.front().left.dtype;
    if (dtype != DType::f32 && dtype != DType::f64)
      fail(ErrorCode::dtype, "sandwich", "left" + at, "expected dtype float32 or float64");
    const auto expect = [&](const char* name, const ArrayRef& array, int rank, const char* shape) {
      expect_rank("sandwich", name + at, array, rank, shape);
      expect_like("sandwich", name + at, array, ctx, dtype);
    };
    const bool factors = item.left.rank == 1;
    expect("left", item.left, factors ? 1 : 2, "(o, o), or a factor's");
    expect("w", item.w, 2, "(o, i)");
    expect("b", item.b, 1, "(o,) or (0,)");
    expect("right", item.right, factors ? 1 : 2,
           factors ? "a factor's, as the left" : "(i, i) or (i + 1, i + 1)");
    expect("out", item.out, 2, "(o, i)");
    expect("out_b", item.out_b, 1, "(o,) or (0,)");
    const std::int64_t o = item.w.extent(0), i = item.w.extent(1);
    // Without rows the entries of b do not tell.
    std::int64_t one = item.right.extent(0) == i ? 0 : 1;
    if (factors && o > 0) one = item.b.extent(0) > 0 ? 1 : 0;
    if (factors && o == 0)
      one = item.right.extent(0) == fastfisher::psd_factor_size(ctx, i, dtype) ? 0 : 1;
    const auto extent = [&](const char* name, const ArrayRef& array, int axis, std::int64_t size,
                            const char* as) {
      expect_extent("sandwich", name + at, array, axis, size, as);
    };
    for (int axis = 0; axis < 2; ++axis) {
      if (!factors) {
        extent("left", item.left, axis, o, "rows of w");
        extent("right", item.right, axis, i + one, "columns of w, or one more");
      }
      extent("out", item.out, axis, item.w.extent(axis), "as in w");
    }
    if (factors) {
      factor_of("sandwich", "left" + at, item.left, ctx, o);
      factor_of("sandwich", "right" + at, item.right, ctx, i + one);
    }
    extent("b", item.b, 0, one * o, "rows of w, or none without a bias");
    extent("out_b", item.out_b, 0, one * o, "rows of w, or none without a bias");
    for (const auto& [name, out] : {std::pair{"out", &item.out}, {"out_b", &item.out_b}}) {
      if (overlaps(*out))
        fail(ErrorCode::shape, "sandwich", name + at, "has entries that share memory");
      for (const ArrayRef* in : {&item.left, &item.w, &item.b, &item.right}) {
        if (share_memory(*out, *in))
          fail(ErrorCode::shape, "sandwich", name + at, "overlaps the memory of an input");
      }
    }
  }
}

}  // namespace fastfisher::checks
