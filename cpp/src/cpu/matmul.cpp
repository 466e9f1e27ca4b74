// SPDX-License-Identifier: Apache-2.0
//
// out[n,m] = a[n,k] b[k,m]: 2 n k m flops. Rows are shared out among the threads; each calls the
// BLAS at one thread. Without a BLAS, or for strides it does not take, plain loops give the same
// result slowly.
#include "backend.hpp"
#include "blas.hpp"
#include "parallel.hpp"

#include <algorithm>

namespace fastfisher::cpu {
namespace {

constexpr double kSerialWork = 1e6;

template <class T>
void rows_plain(const View<const T, 2>& a, const View<const T, 2>& b, const View<T, 2>& out,
                std::int64_t from, std::int64_t to) {
  for (std::int64_t n = from; n < to; ++n) {
    for (std::int64_t m = 0; m < out.extent(1); ++m) out(n, m) = 0;
    for (std::int64_t k = 0; k < a.extent(1); ++k) {
      const T left = a(n, k);
      for (std::int64_t m = 0; m < out.extent(1); ++m) out(n, m) += left * b(k, m);
    }
  }
}

template <class T>
bool row_major(const View<T, 2>& view) {
  return view.stride(1) == 1 && view.stride(0) >= std::max<std::int64_t>(1, view.extent(1));
}

template <class T>
void matmul_typed(const Context& ctx, const View<const T, 2>& a, const View<const T, 2>& b,
                  const View<T, 2>& out) {
  const std::int64_t n = out.extent(0), m = out.extent(1), k = a.extent(1);
  const double work = static_cast<double>(n) * static_cast<double>(m) * static_cast<double>(k);
  const int threads = work < kSerialWork ? 1 : thread_count(ctx);
  const bool blas = has_blas() && k > 0 && row_major(a) && row_major(b) && row_major(out);
  // One stretch a thread: the BLAS packs all of b for each.
  const std::int64_t rows = std::max<std::int64_t>(1, (n + threads - 1) / threads);
  parallel_for(ctx, threads, (n + rows - 1) / rows, [&](std::int64_t task, int) {
    const std::int64_t from = task * rows, to = std::min(n, from + rows);
    if (!blas) return rows_plain<T>(a, b, out, from, to);
    gemm(to - from, m, k, &a(from, 0), a.stride(0), b.data, b.stride(0), &out(from, 0),
         out.stride(0));
  });
}

}  // namespace

void matmul(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out) {
  if (out.size() == 0) return;
  visit_dtype(out.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    matmul_typed<T>(ctx, view_of<const T, 2>(a), view_of<const T, 2>(b), view_of<T, 2>(out));
  });
}

}  // namespace fastfisher::cpu
