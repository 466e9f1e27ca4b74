// SPDX-License-Identifier: Apache-2.0
#include "checks.hpp"

#include <string>
#include <utility>

namespace fastfisher::checks {
namespace {

// LAPACK counts entries in 32 bits.
constexpr std::int64_t kMostRows = 32000;
// Vectors of a block of lanczos_steps.
constexpr std::int64_t kMostBlock = 8;

void expect_batch(const char* op, const std::string& name, const ArrayRef& array,
                  std::int64_t networks) {
  expect_extent(op, name, array, 0, networks, "the batch");
}

void expect_float(const char* op, const char* name, const ArrayRef& array) {
  if (array.dtype != DType::f32 && array.dtype != DType::f64) {
    fail(ErrorCode::dtype, op, name,
         std::string("expected dtype float32 or float64, got dtype ") + name_of(array.dtype));
  }
}

void expect_own(const char* op, const char* name, const ArrayRef& out,
                std::initializer_list<const ArrayRef*> inputs) {
  if (overlaps(out)) fail(ErrorCode::shape, op, name, "has entries that share memory");
  for (const ArrayRef* input : inputs) {
    if (share_memory(out, *input)) fail(ErrorCode::shape, op, name, "overlaps an input");
  }
}

void expect_unit_stride(const char* op, const char* name, const ArrayRef& array) {
  if (array.size() > 0 && array.extent(2) > 1 && array.stride(2) != 1)
    fail(ErrorCode::shape, op, name, "expected vectors without gaps along the last axis");
}

void matrices(const char* op, const Context& ctx, const ArrayRef& a) {
  expect_rank(op, "a", a, 3, "(e, n, n)");
  expect_float(op, "a", a);
  expect_like(op, "a", a, ctx, a.dtype);
  expect_extent(op, "a", a, 2, a.extent(1), "a square matrix");
}

void panels(const char* op, const Context& ctx, const ArrayRef& x, const ArrayRef& y,
            const ArrayRef& small, const char* name, bool square = false) {
  expect_rank(op, "x", x, 3, "(e, i, n)");
  expect_rank(op, "y", y, 3, "(e, j, n)");
  expect_rank(op, name, small, 3, square ? "(e, j, i + j)" : "(e, j, i)");
  expect_float(op, "y", y);
  expect_like(op, "x", x, ctx, y.dtype);
  expect_like(op, "y", y, ctx, y.dtype);
  expect_like(op, name, small, ctx, DType::f64);
  expect_batch(op, "x", x, y.extent(0));
  expect_batch(op, name, small, y.extent(0));
  expect_extent(op, "x", x, 2, y.extent(2), "n of y");
  expect_extent(op, name, small, 1, y.extent(1), "vectors of y");
  if (square)
    expect_extent(op, name, small, 2, x.extent(1) + y.extent(1), "vectors of x and y");
  else
    expect_extent(op, name, small, 2, x.extent(1), "vectors of x");
  expect_unit_stride(op, "x", x);
  expect_unit_stride(op, "y", y);
}

}  // namespace

void eigh_ends(const Context& ctx, const ArrayRef& a, const ArrayRef& scale, const ArrayRef& values,
               const ArrayRef& vectors, const ArrayRef& residual_norms, const ArrayRef& norm) {
  const char* const op = "eigh_ends";
  matrices(op, ctx, a);
  expect_rank(op, "scale", scale, 1, "(e,)");
  expect_rank(op, "values", values, 2, "(e, k)");
  expect_rank(op, "vectors", vectors, 3, "(e, k, n)");
  expect_rank(op, "residual_norms", residual_norms, 2, "(e, k)");
  expect_rank(op, "norm", norm, 1, "(e,)");
  expect_like(op, "vectors", vectors, ctx, a.dtype);
  expect_extent(op, "vectors", vectors, 1, values.extent(1), "values");
  expect_extent(op, "vectors", vectors, 2, a.extent(1), "n of a");
  expect_extent(op, "residual_norms", residual_norms, 1, values.extent(1), "values");
  for (const auto& [name, array] :
       {std::pair{"scale", &scale}, std::pair{"values", &values},
        std::pair{"residual_norms", &residual_norms}, std::pair{"norm", &norm}})
    expect_like(op, name, *array, ctx, DType::f64);
  for (const auto& [name, array] :
       {std::pair{"scale", &scale}, std::pair{"values", &values}, std::pair{"vectors", &vectors},
        std::pair{"residual_norms", &residual_norms}, std::pair{"norm", &norm}})
    expect_batch(op, name, *array, a.extent(0));
  eigh_ends_workspace(ctx, a, values.extent(1));
  expect_own(op, "values", values, {&a, &scale, &vectors, &residual_norms, &norm});
  expect_own(op, "vectors", vectors, {&a, &scale, &residual_norms, &norm});
  expect_own(op, "residual_norms", residual_norms, {&a, &scale, &norm});
  expect_own(op, "norm", norm, {&a, &scale});
}

void eigh_ends_workspace(const Context& ctx, const ArrayRef& a, std::int64_t k) {
  matrices("eigh_ends", ctx, a);
  if (a.extent(1) > kMostRows)
    fail(ErrorCode::shape, "eigh_ends", "a",
         "got " + std::to_string(a.extent(1)) + " rows, expected at most " +
             std::to_string(kMostRows));
  if (k < 0 || k > a.extent(1))
    fail(ErrorCode::shape, "eigh_ends", "values",
         "got " + std::to_string(k) + " pairs of " + std::to_string(a.extent(1)));
}

void small_eigh(const Context& ctx, const ArrayRef& a, const ArrayRef& values,
                const ArrayRef& vectors) {
  matrices("small_eigh", ctx, a);
  expect_rank("small_eigh", "values", values, 2, "(e, m)");
  expect_rank("small_eigh", "vectors", vectors, 3, "(e, m, m)");
  for (const ArrayRef* array : {&a, &values, &vectors})
    expect_like("small_eigh", array == &a ? "a" : "values", *array, ctx, DType::f64);
  for (int r = 0; r < 3; ++r) expect_extent("small_eigh", "vectors", vectors, r, a.extent(r), "a");
  for (int r = 0; r < 2; ++r) expect_extent("small_eigh", "values", values, r, a.extent(r), "a");
  expect_own("small_eigh", "values", values, {&a, &vectors});
  expect_own("small_eigh", "vectors", vectors, {&a});
}

void lanczos_steps(const Context& ctx, const ArrayRef& a, const ArrayRef& scale,
                   const ArrayRef& basis, std::int64_t first, const ArrayRef& small) {
  const char* const op = "lanczos_steps";
  matrices(op, ctx, a);
  expect_rank(op, "scale", scale, 1, "(e,)");
  expect_rank(op, "basis", basis, 3, "(e, rows, n)");
  expect_rank(op, "small", small, 4, "(count + 1, e, b, width)");
  expect_like(op, "scale", scale, ctx, DType::f64);
  expect_like(op, "basis", basis, ctx, a.dtype);
  expect_like(op, "small", small, ctx, DType::f64);
  expect_batch(op, "scale", scale, a.extent(0));
  expect_batch(op, "basis", basis, a.extent(0));
  expect_extent(op, "small", small, 1, a.extent(0), "the batch");
  expect_extent(op, "basis", basis, 2, a.extent(1), "n of a");
  expect_unit_stride(op, "basis", basis);
  const std::int64_t rows = first + small.extent(0) * small.extent(2);
  if (first < 0 || small.extent(0) < 1)
    fail(ErrorCode::shape, op, "small", "expected a row for each step and one before them");
  checks::lanczos_steps_workspace(ctx, a, small.extent(2), rows);
  if (rows > basis.extent(1) || rows > a.extent(1))
    fail(ErrorCode::shape, op, "basis",
         "expected room for " + std::to_string(rows) + " vectors, got " +
             std::to_string(basis.extent(1)) + " of length " + std::to_string(a.extent(1)));
  if (rows >= small.extent(3))
    fail(ErrorCode::shape, op, "small",
         "expected a last extent above " + std::to_string(rows) + ", got " +
             std::to_string(small.extent(3)));
  expect_own(op, "basis", basis, {&a, &scale});
  expect_own(op, "small", small, {&a, &scale, &basis});
}

void lanczos_steps_workspace(const Context& ctx, const ArrayRef& a, std::int64_t b,
                             std::int64_t rows) {
  matrices("lanczos_steps", ctx, a);
  if (b < 1 || b > kMostBlock || rows < 0)
    fail(ErrorCode::shape, "lanczos_steps", "small",
         "expected blocks of 1 to " + std::to_string(kMostBlock) + " vectors, got " +
             std::to_string(b));
}

void symm(const Context& ctx, const ArrayRef& a, const ArrayRef& x, const ArrayRef& scale,
          const ArrayRef& out) {
  matrices("symm", ctx, a);
  expect_rank("symm", "x", x, 3, "(e, k, n)");
  expect_rank("symm", "scale", scale, 1, "(e,)");
  expect_rank("symm", "out", out, 3, "(e, k, n)");
  expect_like("symm", "x", x, ctx, a.dtype);
  expect_like("symm", "scale", scale, ctx, DType::f64);
  expect_like("symm", "out", out, ctx, a.dtype);
  for (int r = 0; r < 3; ++r) expect_extent("symm", "out", out, r, x.extent(r), "x");
  expect_batch("symm", "x", x, a.extent(0));
  expect_batch("symm", "scale", scale, a.extent(0));
  expect_extent("symm", "x", x, 2, a.extent(1), "n of a");
  expect_own("symm", "out", out, {&a, &x, &scale});
}

void symm_workspace(const Context& ctx, const ArrayRef& a, std::int64_t vectors) {
  matrices("symm_workspace", ctx, a);
  if (vectors < 0)
    fail(ErrorCode::shape, "symm_workspace", "vectors", "expected a number that is not negative");
}

void largest(const Context& ctx, const ArrayRef& x) {
  expect_like("largest", "x", x, ctx, x.dtype);
}

void symmetry(const Context& ctx, const ArrayRef& a, const ArrayRef& out) {
  matrices("symmetry", ctx, a);
  expect_rank("symmetry", "out", out, 2, "(e, 2)");
  expect_like("symmetry", "out", out, ctx, DType::f64);
  expect_batch("symmetry", "out", out, a.extent(0));
  expect_extent("symmetry", "out", out, 1, 2, "magnitude and asymmetry");
  expect_own("symmetry", "out", out, {&a});
}

void panel_dots(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& out) {
  panels("panel_dots", ctx, x, y, out, "out");
  expect_own("panel_dots", "out", out, {&x, &y});
}

void panel_remove(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& small) {
  panels("panel_remove", ctx, x, y, small, "small", true);
  expect_own("panel_remove", "small", small, {&x, &y});
  expect_own("panel_remove", "y", y, {&x});
}

void panel_remove_workspace(std::int64_t networks, std::int64_t i, std::int64_t j, std::int64_t n) {
  if (networks < 0 || i < 0 || j < 0 || n < 0)
    fail(ErrorCode::shape, "panel_remove", "small", "expected extents that are not negative");
}

void panel_combine(const Context& ctx, const ArrayRef& weights, const ArrayRef& x,
                   const ArrayRef& y) {
  panels("panel_combine", ctx, x, y, weights, "weights");
  expect_own("panel_combine", "y", y, {&x, &weights});
}

}  // namespace fastfisher::checks
