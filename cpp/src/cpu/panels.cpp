// SPDX-License-Identifier: Apache-2.0
//
// Products of few long vectors, which lie as rows: the steps of a reorthogonalisation.
//   panel_dots     out[e,j,i] = <y[e,j], x[e,i]>                       2 e i j n flops
//   panel_combine  y[e,j] = keep y[e,j] + sum_i weights[e,j,i] x[e,i]  the same
//   panel_remove   y -= (y x^T) x, twice, and the dots of what is left  8 e i j n
// Bound by reading x once. Stretches of fixed length are the tasks; sums within one are in the
// dtype, sums over them in float64 and in order, so bits do not depend on the threads.
#include "backend.hpp"
#include "contract_kernels.hpp"
#include "parallel.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace fastfisher::cpu {
namespace {

constexpr std::int64_t kStretch = 512;
constexpr double kSerialWork = 1e5;
constexpr std::size_t kAlignment = 64;

int threads_for(const Context& ctx, const ArrayRef& x, const ArrayRef& y) {
  const double work = static_cast<double>(x.size()) * static_cast<double>(y.extent(1));
  return work < kSerialWork ? 1 : thread_count(ctx);
}

template <class T>
std::vector<T*> rows_of(const View<T, 3>& v, std::int64_t e, std::int64_t from) {
  std::vector<T*> rows(static_cast<std::size_t>(v.extent(1)));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = &v(e, static_cast<std::int64_t>(i), from);
  return rows;
}

template <class T>
void dots_typed(const Context& ctx, int threads, const View<const T, 3>& x,
                const View<const T, 3>& y, const View<double, 3>& out) {
  const std::int64_t xs = x.extent(1), ys = y.extent(1), n = x.extent(2);
  const std::int64_t parts = (n + kStretch - 1) / kStretch, items = xs * ys;
  std::vector<T> sums(static_cast<std::size_t>(x.extent(0) * parts * items), T{0});
  parallel_for(ctx, threads, x.extent(0) * parts, [&](std::int64_t task, int) {
    const std::int64_t e = task / parts, from = task % parts * kStretch;
    const auto left = rows_of(y, e, from), right = rows_of(x, e, from);
    contract_kernels<T>().dots(left.data(), ys, right.data(), xs, std::min(kStretch, n - from),
                               sums.data() + task * items, 0);
  });
  for (std::int64_t e = 0; e < x.extent(0); ++e) {
    for (std::int64_t item = 0; item < items; ++item) {
      double sum = 0;
      for (std::int64_t part = 0; part < parts; ++part)
        sum +=
            static_cast<double>(sums[static_cast<std::size_t>((e * parts + part) * items + item)]);
      out(e, item / xs, item % xs) = sum;
    }
  }
}

template <class T>
void combine_typed(const Context& ctx, int threads, const View<const double, 3>& weights,
                   const View<const T, 3>& x, bool keep, const View<T, 3>& y) {
  const std::int64_t xs = x.extent(1), ys = y.extent(1), n = x.extent(2);
  const std::int64_t parts = (n + kStretch - 1) / kStretch;
  std::vector<T> factors(static_cast<std::size_t>(x.extent(0) * ys * xs));
  for (std::int64_t e = 0; e < x.extent(0); ++e) {
    for (std::int64_t j = 0; j < ys; ++j) {
      for (std::int64_t i = 0; i < xs; ++i)
        factors[static_cast<std::size_t>((e * ys + j) * xs + i)] = static_cast<T>(weights(e, j, i));
    }
  }
  parallel_for(ctx, threads, x.extent(0) * parts, [&](std::int64_t task, int) {
    const std::int64_t e = task / parts, from = task % parts * kStretch;
    const auto in = rows_of(x, e, from);
    const auto to = rows_of(y, e, from);
    contract_kernels<T>().combine(in.data(), xs, factors.data() + e * ys * xs, to.data(), ys,
                                  std::min(kStretch, n - from), keep, 0);
  });
}

}  // namespace

void panel_dots(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& out) {
  if (out.size() == 0) return;
  visit_dtype(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    dots_typed<T>(ctx, threads_for(ctx, x, y), view_of<const T, 3>(x), view_of<const T, 3>(y),
                  view_of<double, 3>(out));
  });
}

void panel_combine(const Context& ctx, const ArrayRef& weights, const ArrayRef& x, bool keep,
                   const ArrayRef& y) {
  if (y.size() == 0) return;
  visit_dtype(y.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    combine_typed<T>(ctx, threads_for(ctx, x, y), view_of<const double, 3>(weights),
                     view_of<const T, 3>(x), keep, view_of<T, 3>(y));
  });
}

void panel_remove(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& small) {
  const std::int64_t e = y.extent(0), i = x.extent(1), j = y.extent(1);
  if (static_cast<std::int64_t>(ctx.workspace.size()) <
      cpu::panel_remove_workspace(ctx, e, i, j, y.extent(2)))
    throw Error(ErrorCode::memory, "panel_remove", "workspace",
                "is smaller than panel_remove_workspace");
  void* place = ctx.workspace.data();
  std::size_t room = ctx.workspace.size();
  const ArrayRef part = array_ref(
      static_cast<double*>(std::align(kAlignment, room - kAlignment, place, room)), e, j, i);
  const auto weights = view_of<double, 3>(part), total = view_of<double, 3>(small);
  for (int pass = 0; pass < 2; ++pass) {
    cpu::panel_dots(ctx, x, y, part);
    for (std::int64_t b = 0; b < e; ++b) {
      for (std::int64_t r = 0; r < j; ++r) {
        for (std::int64_t q = 0; q < i; ++q) {
          const double now = weights(b, r, q);
          total(b, r, q) = pass == 0 ? now : total(b, r, q) + now;
          weights(b, r, q) = -now;
        }
      }
    }
    if (i > 0) cpu::panel_combine(ctx, part, x, true, y);
  }
  ArrayRef inner = small;
  inner.data = static_cast<double*>(small.data) + i * small.stride(2);
  inner.extents[2] = j;
  cpu::panel_dots(ctx, y, y, inner);
}

std::int64_t panel_remove_workspace(const Context&, std::int64_t networks, std::int64_t i,
                                    std::int64_t j, std::int64_t) {
  return networks * i * j * size_of(DType::f64) + static_cast<std::int64_t>(kAlignment);
}

}  // namespace fastfisher::cpu
