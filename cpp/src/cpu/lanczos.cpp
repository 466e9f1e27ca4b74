// SPDX-License-Identifier: Apache-2.0
//
// lanczos_steps out of the other steps: symm, what lies in the p rows before taken out, then twice
// what was missed and the Cholesky factor of the rest. A pass costs 2 n^2 b flops and 12 n b p.
#include "backend.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

namespace fastfisher::cpu {
namespace {

constexpr std::size_t kAlignment = 64;

ArrayRef rows_of(const ArrayRef& basis, std::int64_t first, std::int64_t count) {
  ArrayRef rows = basis;
  const std::int64_t step = basis.stride(1) * size_of(basis.dtype);
  rows.data = static_cast<std::byte*>(basis.data) + first * step;
  rows.extents[1] = count;
  return rows;
}

// Lower factor of the Gram matrix; false, and the unit matrix, where it is singular or not finite.
bool factorise(const View<double, 2>& gram, const View<double, 2>& lower) {
  const std::int64_t b = gram.extent(0);
  bool positive = true;
  for (std::int64_t c = 0; c < b && positive; ++c) {
    for (std::int64_t r = c; r < b; ++r) {
      double sum = gram(r, c);
      for (std::int64_t k = 0; k < c; ++k) sum -= lower(r, k) * lower(c, k);
      if (r == c) positive = sum > 0 && std::isfinite(sum);
      lower(r, c) = r == c ? std::sqrt(sum) : sum / lower(c, c);
    }
  }
  for (std::int64_t r = 0; r < b; ++r) {
    for (std::int64_t c = positive ? r + 1 : 0; c < b; ++c) lower(r, c) = r == c ? 1 : 0;
  }
  return positive;
}

// Uniform numbers, counted through the rows: SplitMix64 of seed and count, its high 24 bits.
void draw(const ArrayRef& rows, std::int64_t seed) {
  visit_dtype(rows.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto to = view_of<T, 3>(rows);
    std::uint64_t count = static_cast<std::uint64_t>(seed) << 32U;
    for (std::int64_t e = 0; e < to.extent(0); ++e) {
      for (std::int64_t j = 0; j < to.extent(1); ++j) {
        for (std::int64_t i = 0; i < to.extent(2); ++i) {
          std::uint64_t z = ++count * 0x9e3779b97f4a7c15U;
          z = (z ^ z >> 30U) * 0xbf58476d1ce4e5b9U;
          z = (z ^ z >> 27U) * 0x94d049bb133111ebU;
          const auto high = static_cast<std::int64_t>((z ^ z >> 31U) >> 40U);
          to(e, j, i) = (static_cast<T>(high - (1 << 23)) + T{0.5}) / T{1 << 23};
        }
      }
    }
  });
}

class Pass {
 public:
  Pass(const Context& ctx, const ArrayRef& basis, const ArrayRef& small, double* scratch)
      : ctx_(ctx), basis_(basis), small_(small), scratch_(scratch), b_(small.extent(2)) {}

  // Makes the rows [p, p + b) orthonormal and orthogonal to those before, in terms of small[step].
  void normalise(std::int64_t p, std::int64_t step) {
    const std::int64_t e = basis_.extent(0);
    const ArrayRef w = rows_of(basis_, p, b_), before = rows_of(basis_, 0, p);
    View<double, 4> small = view_of<double, 4>(small_);
    small.data += step * small.stride(0);
    small.extents[0] = 1;
    if (p > 0) {
      const ArrayRef some = array_ref(scratch_, e, b_, p);
      const auto part = view_of<double, 3>(some);
      cpu::panel_dots(ctx_, before, w, some);
      each(p, [&](std::int64_t n, std::int64_t j, std::int64_t i) {
        small(0, n, j, i) = part(n, j, i);
        part(n, j, i) = -part(n, j, i);
      });
      cpu::panel_combine(ctx_, some, before, true, w);
    }
    const ArrayRef all = array_ref(scratch_, e, b_, p + b_);
    const auto dots = view_of<double, 3>(all);
    ArrayRef missed = all;
    missed.extents[2] = p;
    for (const bool again : {false, true}) {
      cpu::panel_dots(ctx_, rows_of(basis_, 0, p + b_), w, all);
      std::vector<double> lower(static_cast<std::size_t>(e * b_ * b_));
      for (std::int64_t n = 0; n < e; ++n) {
        const ArrayRef mine = array_ref(lower.data() + n * b_ * b_, b_, b_);
        turn(p, n, again, dots, view_of<double, 2>(mine), small);
      }
      each(p, [&](std::int64_t n, std::int64_t j, std::int64_t i) { dots(n, j, i) *= -1; });
      if (p > 0) cpu::panel_combine(ctx_, missed, before, true, w);
      substitute(view_of<const double, 3>(array_ref(lower.data(), e, b_, b_)), w);
    }
  }

 private:
  template <class Body>
  void each(std::int64_t width, const Body& body) const {
    for (std::int64_t n = 0; n < basis_.extent(0); ++n) {
      for (std::int64_t j = 0; j < b_; ++j) {
        for (std::int64_t i = 0; i < width; ++i) body(n, j, i);
      }
    }
  }

  // w = lower^-1 w, row after row: an inverse would lose digits.
  void substitute(const View<const double, 3>& lower, const ArrayRef& rows) const {
    visit_dtype(rows.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const auto w = view_of<T, 3>(rows);
      for (std::int64_t n = 0; n < w.extent(0); ++n) {
        for (std::int64_t j = 0; j < b_; ++j) {
          T* const row = &w(n, j, 0);
          for (std::int64_t k = 0; k < j; ++k) {
            const T factor = static_cast<T>(lower(n, j, k));
            const T* const other = &w(n, k, 0);
            for (std::int64_t i = 0; i < w.extent(2); ++i) row[i] -= factor * other[i];
          }
          const T own = static_cast<T>(lower(n, j, j));
          for (std::int64_t i = 0; i < w.extent(2); ++i) row[i] /= own;
        }
      }
    });
  }

  // Factor of a sweep from the dots of the block with the rows before and with itself.
  void turn(std::int64_t p, std::int64_t n, bool again, const View<double, 3>& dots,
            const View<double, 2>& l, const View<double, 4>& small) const {
    std::vector<double> gram(static_cast<std::size_t>(b_ * b_));
    const auto g = view_of<double, 2>(array_ref(gram.data(), b_, b_));
    double apart = 0;
    const auto meet = [&apart](double value) {
      apart = std::abs(value) <= apart ? apart : std::abs(value);
    };
    for (std::int64_t j = 0; j < b_; ++j) {
      for (std::int64_t i = 0; i < p; ++i) meet(dots(n, j, i));
      for (std::int64_t k = 0; k < b_; ++k) {
        g(j, k) = dots(n, j, p + k);
        meet(g(j, k) - (j == k ? 1 : 0));
        for (std::int64_t i = 0; i < p; ++i) g(j, k) -= dots(n, j, i) * dots(n, k, i);
      }
    }
    const bool positive = factorise(g, l);
    constexpr double kInfinite = std::numeric_limits<double>::infinity();
    const std::int64_t last = small.extent(3) - 1;
    for (std::int64_t j = 0; j < b_; ++j) {
      for (std::int64_t i = 0; i < p && !again; ++i) small(0, n, j, i) += dots(n, j, i);
      if (!again) {
        for (std::int64_t k = 0; k < b_; ++k) small(0, n, j, p + k) = l(j, k);
        small(0, n, j, last) = positive ? 0 : kInfinite;
        continue;
      }
      for (std::int64_t k = 0; k < b_; ++k) {  // in place: what is right of k has served
        double sum = 0;
        for (std::int64_t m = k; m <= j; ++m) sum += small(0, n, j, p + m) * l(m, k);
        small(0, n, j, p + k) = sum;
      }
      small(0, n, j, last) = std::max(small(0, n, j, last), positive ? apart : kInfinite);
    }
  }

  const Context& ctx_;
  const ArrayRef &basis_, &small_;
  double* scratch_;
  std::int64_t b_;
};

}  // namespace

void lanczos_steps(const Context& ctx, const ArrayRef& a, const ArrayRef& scale,
                   const ArrayRef& basis, std::int64_t first, LanczosStart start,
                   const ArrayRef& small) {
  const std::int64_t b = small.extent(2), count = small.extent(0) - 1;
  const std::int64_t rows = first + (count + 1) * b;
  if (basis.extent(0) == 0) return;
  if (static_cast<std::int64_t>(ctx.workspace.size()) <
      cpu::lanczos_steps_workspace(ctx, a, b, rows))
    throw Error(ErrorCode::memory, "lanczos_steps", "workspace",
                "is smaller than lanczos_steps_workspace");
  void* place = ctx.workspace.data();
  std::size_t room = ctx.workspace.size();
  auto* const scratch =
      static_cast<double*>(std::align(kAlignment, room - kAlignment, place, room));
  const std::int64_t own = a.extent(0) * b * rows * size_of(DType::f64);
  Context rest = ctx;
  rest.workspace = {static_cast<std::byte*>(place) + own, room - static_cast<std::size_t>(own)};
  Pass pass(ctx, basis, small, scratch);
  if (start.fresh && start.seed >= 0) draw(rows_of(basis, first, b), start.seed);
  if (start.fresh) pass.normalise(first, 0);
  for (std::int64_t step = 1; step <= count; ++step) {
    const std::int64_t p = first + step * b;
    cpu::symm(rest, a, rows_of(basis, p - b, b), scale, rows_of(basis, p, b));
    pass.normalise(p, step);
  }
}

std::int64_t lanczos_steps_workspace(const Context& ctx, const ArrayRef& a, std::int64_t b,
                                     std::int64_t rows) {
  return a.extent(0) * b * rows * size_of(DType::f64) + cpu::symm_workspace(ctx, a, b) +
         static_cast<std::int64_t>(kAlignment);
}

}  // namespace fastfisher::cpu
