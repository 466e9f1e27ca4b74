// SPDX-License-Identifier: Apache-2.0
//
// The steps of an eigenvalue iteration against plain float64 loops, over drawn sizes and strides:
// what the sanitizers run.
#include "check.hpp"
#include "draw.hpp"
#include "fastfisher/ops.hpp"
#include "rounds.hpp"

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

namespace {

using namespace fastfisher;
using test::draw;
using test::Strided;

template <class T>
void symmetric_products() {
  const std::int64_t e = draw(1, 3), n = draw(1, 90), k = draw(1, 19);
  const Strided<T> a({e, n, n}), x({e, k, n}), out({e, k, n});
  std::vector<double> scale(static_cast<std::size_t>(e), 0.5), found(2 * scale.size());
  Context ctx;
  ctx.threads = static_cast<int>(draw(1, 3));
  std::vector<std::byte> workspace(static_cast<std::size_t>(symm_workspace(ctx, a.ref, k)));
  ctx.workspace = workspace;
  symm(ctx, a.ref, x.ref, array_ref(scale.data(), e), out.ref);
  symmetry(ctx, a.ref, array_ref(found.data(), e, 2));
  const double eps = std::numeric_limits<T>::epsilon();
  // Which triangle is read depends on the strides; both are one matrix for a caller.
  const bool turn = a.ref.stride(1) == 1 && a.ref.stride(2) != 1;
  for (std::int64_t b = 0; b < e; ++b) {
    for (std::int64_t v = 0; v < k; ++v) {
      for (std::int64_t i = 0; i < n; ++i) {
        double sum = 0, size = 0;
        for (std::int64_t j = 0; j < n; ++j) {
          const std::int64_t low = std::min(i, j), high = std::max(i, j);
          const double term =
              0.25 * a.at({b, turn ? low : high, turn ? high : low}) * x.at({b, v, j});
          sum += term;
          size += std::abs(term);
        }
        FF_CHECK(std::abs(out.at({b, v, i}) - sum) <= static_cast<double>(n + 4) * eps * size);
      }
    }
    double largest = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < n; ++j) largest = std::max(largest, std::abs(a.at({b, i, j})));
    }
    FF_CHECK(found[static_cast<std::size_t>(2 * b)] == largest);
  }
}

template <class T>
void ends_of_spectra() {
  const std::int64_t e = draw(1, 3), n = draw(1, 70), k = draw(0, n);
  const auto end = static_cast<SpectrumEnd>(draw(0, 3));
  const Strided<T> a({e, n, n}), vectors({e, k, n});
  const Strided<double> values({e, k}), norms({e, k});
  std::vector<double> scale(static_cast<std::size_t>(e), 0.5), norm(scale);
  Context ctx;
  ctx.threads = static_cast<int>(draw(1, 3));
  std::vector<std::byte> workspace(
      static_cast<std::size_t>(eigh_ends_workspace(ctx, a.ref, end, k)));
  ctx.workspace = workspace;
  eigh_ends(ctx, a.ref, array_ref(scale.data(), e), end, values.ref, vectors.ref, norms.ref,
            array_ref(norm.data(), e));
  const bool turn = a.ref.stride(1) == 1 && a.ref.stride(2) != 1;
  const double eps = 8 * static_cast<double>(n + 4) * std::numeric_limits<T>::epsilon();
  for (std::int64_t b = 0; b < e; ++b) {
    double trace = 0, sum_of_values = 0;
    for (std::int64_t r = 0; r < k; ++r) {
      for (std::int64_t i = 0; i < n; ++i) {
        double sum = 0;
        for (std::int64_t j = 0; j < n; ++j) {
          const std::int64_t low = std::min(i, j), high = std::max(i, j);
          sum += 0.25 * a.at({b, turn ? low : high, turn ? high : low}) * vectors.at({b, r, j});
        }
        const double apart = sum - values.at({b, r}) * vectors.at({b, r, i});
        FF_CHECK(std::abs(apart) <= eps * norm[static_cast<std::size_t>(b)]);
      }
      for (std::int64_t s = 0; s <= r; ++s) {
        double product = 0;
        for (std::int64_t i = 0; i < n; ++i)
          product += vectors.at({b, r, i}) * vectors.at({b, s, i});
        FF_CHECK(std::abs(product - (r == s ? 1 : 0)) <= eps);
      }
      FF_CHECK(norms.at({b, r}) <= eps * norm[static_cast<std::size_t>(b)]);
      sum_of_values += values.at({b, r});
    }
    for (std::int64_t i = 0; i < n; ++i) trace += 0.25 * a.at({b, i, i});
    if (k == n && n > 0)
      FF_CHECK(std::abs(trace - sum_of_values) <=
               static_cast<double>(n) * eps * norm[static_cast<std::size_t>(b)]);
  }
}

void small_problems() {
  const std::int64_t e = draw(1, 3), m = draw(1, 40);
  const Strided<double> a({e, m, m}), values({e, m}), vectors({e, m, m});
  Context ctx;
  ctx.threads = 2;
  small_eigh(ctx, a.ref, values.ref, vectors.ref);
  for (std::int64_t b = 0; b < e; ++b) {
    for (std::int64_t r = 0; r < m; ++r) {
      for (std::int64_t i = 0; i < m; ++i) {
        double sum = 0;
        for (std::int64_t j = 0; j < m; ++j)
          sum += a.at({b, std::max(i, j), std::min(i, j)}) * vectors.at({b, r, j});
        FF_CHECK(std::abs(sum - values.at({b, r}) * vectors.at({b, r, i})) < 1e-12 * 40);
      }
    }
  }
}

template <class T>
void panels() {
  const std::int64_t e = draw(1, 2), i = draw(1, 9), j = draw(1, 9), n = draw(1, 1100);
  std::vector<T> x(static_cast<std::size_t>(e * i * n), T{1}),
      y(static_cast<std::size_t>(e * j * n), T{2});
  std::vector<double> out(static_cast<std::size_t>(e * j * i)), weights(out.size(), 0.5);
  Context ctx;
  ctx.threads = 2;
  panel_dots(ctx, array_ref(x.data(), e, i, n), array_ref(y.data(), e, j, n),
             array_ref(out.data(), e, j, i));
  for (const double value : out) FF_CHECK(value == 2.0 * static_cast<double>(n));
  panel_combine(ctx, array_ref(weights.data(), e, j, i), array_ref(x.data(), e, i, n), true,
                array_ref(y.data(), e, j, n));
  for (const T value : y) FF_CHECK(value == T{2} + T{0.5} * static_cast<T>(i));
}

template <class T>
void second_moments() {
  const std::int64_t count = draw(1, 3);
  std::vector<Strided<T>> a;
  std::vector<std::vector<T>> out;
  std::vector<MomentItem> items;
  std::int64_t most = 0;
  for (std::int64_t k = 0; k < count; ++k) {
    const std::int64_t n = draw(0, 300), i = draw(0, 130), m = i + draw(0, 1);
    a.emplace_back(std::vector<std::int64_t>{n, i});
    out.emplace_back(static_cast<std::size_t>(m * m));
    items.push_back({a.back().ref, array_ref(out.back().data(), m, m), 0.5});
    most = std::max(most, m);
  }
  Context ctx;
  ctx.threads = static_cast<int>(draw(1, 3));
  std::vector<std::byte> workspace(
      static_cast<std::size_t>(moments_workspace(ctx, most, dtype_of<T>)));
  ctx.workspace = workspace;
  moments(ctx, items);
  const double eps = std::numeric_limits<T>::epsilon();
  for (std::size_t k = 0; k < items.size(); ++k) {
    const std::int64_t n = a[k].ref.extent(0), i = a[k].ref.extent(1), m = items[k].out.extent(0);
    for (std::int64_t p = 0; p < m; ++p) {
      for (std::int64_t q = 0; q < m; ++q) {
        double sum = 0, size = 0;
        for (std::int64_t l = 0; l < n; ++l) {
          const double term = 0.5 * (p < i ? a[k].at({l, p}) : 1) * (q < i ? a[k].at({l, q}) : 1);
          sum += term;
          size += std::abs(term);
        }
        const T found = out[k][static_cast<std::size_t>(p * m + q)];
        FF_CHECK(std::abs(static_cast<double>(found) - sum) <=
                 static_cast<double>(n + 4) * eps * size);
        FF_CHECK(found == out[k][static_cast<std::size_t>(q * m + p)]);
      }
    }
  }
}

template <class T>
void sandwiches() {
  const std::int64_t count = draw(1, 3);
  std::vector<Strided<T>> in;
  std::vector<std::vector<T>> out;
  std::vector<SandwichItem> items;
  std::int64_t rows = 0, columns = 0;
  for (std::int64_t k = 0; k < count; ++k) {
    const std::int64_t o = draw(0, 110), i = draw(0, 110), bias = draw(0, 1), r = i + bias;
    for (const auto& shape : {std::vector{o, o}, {o, i}, {bias * o}, {r, r}})
      in.emplace_back(shape);
    out.emplace_back(static_cast<std::size_t>(o * i));
    out.emplace_back(static_cast<std::size_t>(bias * o));
    const std::size_t at = in.size() - 4, to = out.size() - 2;
    items.push_back({in[at].ref, in[at + 1].ref, in[at + 2].ref, in[at + 3].ref,
                     array_ref(out[to].data(), o, i), array_ref(out[to + 1].data(), bias * o)});
    rows = std::max(rows, o);
    columns = std::max(columns, r);
  }
  Context ctx;
  ctx.threads = static_cast<int>(draw(1, 3));
  std::vector<std::byte> workspace(
      static_cast<std::size_t>(sandwich_workspace(ctx, rows, columns, dtype_of<T>)));
  ctx.workspace = workspace;
  sandwich(ctx, items);
  const double eps = std::numeric_limits<T>::epsilon();
  for (std::size_t k = 0; k < items.size(); ++k) {
    const auto &left = in[4 * k], &w = in[4 * k + 1], &b = in[4 * k + 2], &right = in[4 * k + 3];
    const std::int64_t o = w.ref.extent(0), i = w.ref.extent(1), r = right.ref.extent(0);
    std::vector<double> inner(static_cast<std::size_t>(o * r)), sizes(inner.size());
    for (std::int64_t p = 0; p < o; ++p) {
      for (std::int64_t q = 0; q < r; ++q) {
        for (std::int64_t l = 0; l < r; ++l) {
          const double term = (l < i ? w.at({p, l}) : b.at({p})) * right.at({l, q});
          inner[static_cast<std::size_t>(p * r + q)] += term;
          sizes[static_cast<std::size_t>(p * r + q)] += std::abs(term);
        }
      }
    }
    for (std::int64_t p = 0; p < o; ++p) {
      for (std::int64_t q = 0; q < r; ++q) {
        double sum = 0, size = 0;
        for (std::int64_t l = 0; l < o; ++l) {
          sum += left.at({p, l}) * inner[static_cast<std::size_t>(l * r + q)];
          size += std::abs(left.at({p, l})) * sizes[static_cast<std::size_t>(l * r + q)];
        }
        const T found = q < i ? out[2 * k][static_cast<std::size_t>(p * i + q)]
                              : out[2 * k + 1][static_cast<std::size_t>(p)];
        FF_CHECK(std::abs(static_cast<double>(found) - sum) <=
                 static_cast<double>(o + r + 4) * eps * size);
      }
    }
  }
}

// Of G = u u^T + diagonal the inverse is known: what comes back times G is what went in.
template <class T>
void sandwiches_of_factors() {
  const std::int64_t o = draw(1, 140), i = draw(0, 140), bias = draw(0, 1), r = i + bias;
  if (r == 0) return;
  Context ctx;
  ctx.threads = static_cast<int>(draw(1, 3));
  std::vector<Strided<T>> matrices;
  std::vector<std::vector<T>> factors;
  for (const std::int64_t n : {o, r}) {
    Strided<T>& one = matrices.emplace_back(std::vector{n, n});
    std::vector<double> u(static_cast<std::size_t>(n));
    for (double& x : u) x = 0.1 * static_cast<double>(draw(-9, 9));
    for (std::int64_t p = 0; p < n; ++p) {
      for (std::int64_t q = 0; q < n; ++q)
        one.set({p, q}, static_cast<T>(u[static_cast<std::size_t>(p)] *
                                       u[static_cast<std::size_t>(q)] / static_cast<double>(n)));
    }
    factors.emplace_back(static_cast<std::size_t>(psd_factor_size(ctx, n, dtype_of<T>)));
  }
  std::vector<PsdItem> items(2);
  std::vector<std::int64_t> sizes{o, r};
  for (std::size_t k = 0; k < 2; ++k) {
    items[k].a = matrices[k].ref;
    items[k].out = array_ref(factors[k].data(), static_cast<std::int64_t>(factors[k].size()));
    items[k].damping = 0.5;
  }
  PsdOptions options;
  options.task = PsdTask::factor;
  std::vector<std::byte> workspace(
      static_cast<std::size_t>(psd_workspace(ctx, sizes, dtype_of<T>, options.task)));
  ctx.workspace = workspace;
  for (const PsdReport& report : psd(ctx, items, options))
    FF_CHECK(report.kind == PsdReport::Kind::ok);
  Strided<T> w({o, i}), b({bias * o});
  std::vector<T> out(static_cast<std::size_t>(o * i)), out_b(static_cast<std::size_t>(bias * o));
  const SandwichItem item{items[0].out,
                          w.ref,
                          b.ref,
                          items[1].out,
                          array_ref(out.data(), o, i),
                          array_ref(out_b.data(), bias * o)};
  workspace.assign(static_cast<std::size_t>(sandwich_workspace(ctx, o, r, dtype_of<T>)),
                   std::byte{0});
  ctx.workspace = workspace;
  sandwich(ctx, {&item, 1});
  const auto found = [&](std::int64_t p, std::int64_t q) {
    return static_cast<double>(q < i ? out[static_cast<std::size_t>(p * i + q)]
                                     : out_b[static_cast<std::size_t>(p)]);
  };
  const auto damped = [&](std::size_t k, std::int64_t p, std::int64_t q) {
    return static_cast<double>(matrices[k].at({p, q})) + (p == q ? 0.5 : 0.0);
  };
  std::vector<double> inner(static_cast<std::size_t>(o * r));
  double largest = 0;
  for (std::int64_t p = 0; p < o; ++p) {
    for (std::int64_t q = 0; q < r; ++q) {
      largest = std::max(largest, std::abs(found(p, q)));
      for (std::int64_t l = 0; l < o; ++l)
        inner[static_cast<std::size_t>(p * r + q)] += damped(0, p, l) * found(l, q);
    }
  }
  const double eps = std::numeric_limits<T>::epsilon();
  for (std::int64_t p = 0; p < o; ++p) {
    for (std::int64_t q = 0; q < r; ++q) {
      double sum = 0;
      for (std::int64_t l = 0; l < r; ++l)
        sum += inner[static_cast<std::size_t>(p * r + l)] * damped(1, l, q);
      const double given = static_cast<double>(q < i ? w.at({p, q}) : b.at({p}));
      FF_CHECK(std::abs(sum - given) <= 8 * static_cast<double>(o + r) * eps * largest);
    }
  }
}

}  // namespace

int main() {
  for (int round = 0; round < test::rounds(60); ++round) {
    symmetric_products<float>();
    symmetric_products<double>();
    ends_of_spectra<float>();
    ends_of_spectra<double>();
    small_problems();
    panels<float>();
    panels<double>();
    second_moments<float>();
    second_moments<double>();
    sandwiches<float>();
    sandwiches<double>();
    sandwiches_of_factors<float>();
    sandwiches_of_factors<double>();
  }
  return test::report();
}
