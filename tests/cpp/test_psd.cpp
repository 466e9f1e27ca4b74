// SPDX-License-Identifier: Apache-2.0
//
// psd against residuals in float64, over drawn sizes, strides, scales and threads, with bad
// matrices among good ones: what the sanitizers run.
#include "check.hpp"
#include "draw.hpp"
#include "fastfisher/ops.hpp"

#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <vector>

namespace {

using namespace fastfisher;
using test::draw;

template <class T>
struct Problem {
  std::vector<std::unique_ptr<test::Strided<T>>> a, b;
  std::vector<std::vector<T>> out, values;
  std::vector<PsdItem> items;

  // Strided matrices B B^T / k + I, times scale; of the upper triangle nothing must be read.
  void add(std::int64_t n, std::int64_t k, PsdTask task, double scale) {
    a.push_back(std::make_unique<test::Strided<T>>(std::vector<std::int64_t>{n, n}));
    b.push_back(std::make_unique<test::Strided<T>>(std::vector<std::int64_t>{n, k}));
    std::vector<double> x(static_cast<std::size_t>(n * 8));
    std::normal_distribution<double> normal;
    for (double& value : x) value = normal(test::engine);
    const auto view = view_of<T, 2>(a.back()->ref);
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        double sum = i == j ? 1 : 0;
        for (std::int64_t u = 0; u < 8; ++u)
          sum +=
              x[static_cast<std::size_t>(i * 8 + u)] * x[static_cast<std::size_t>(j * 8 + u)] / 8;
        view(i, j) = j <= i ? static_cast<T>(sum * scale) : std::numeric_limits<T>::quiet_NaN();
      }
    }
    const bool solve = task == PsdTask::solve;
    out.emplace_back(static_cast<std::size_t>(n * (solve ? k : n)));
    values.emplace_back(static_cast<std::size_t>(n));
    PsdItem item;
    item.a = a.back()->ref;
    item.out = array_ref(out.back().data(), n, solve ? k : n);
    if (solve) item.b = b.back()->ref;
    if (task == PsdTask::eigh) item.values = array_ref(values.back().data(), n);
    items.push_back(item);
  }

  std::vector<PsdReport> run(PsdTask task, int threads, double p = 2) {
    Context ctx;
    ctx.threads = threads;
    std::vector<std::int64_t> sizes;
    for (const PsdItem& item : items) sizes.push_back(item.a.extent(0));
    std::vector<std::byte> workspace(
        static_cast<std::size_t>(psd_workspace(ctx, sizes, dtype_of<T>, task)));
    ctx.workspace = workspace;
    PsdOptions options;
    options.task = task;
    options.p = p;
    return psd(ctx, items, options);
  }
};

// Largest residual of one result, relative to n eps times the sizes of what was multiplied.
template <class T>
double residual(const Problem<T>& problem, std::size_t k, PsdTask task) {
  const PsdItem& item = problem.items[k];
  const std::int64_t n = item.a.extent(0), columns = item.out.extent(1);
  const auto view = view_of<const T, 2>(item.a);
  const auto a = [&](std::int64_t i, std::int64_t j) {
    return static_cast<double>(i >= j ? view(i, j) : view(j, i)) + (i == j ? item.damping : 0);
  };
  const std::vector<T>& out = problem.out[k];
  const auto x = [&](std::int64_t i, std::int64_t j) {
    return static_cast<double>(out[static_cast<std::size_t>(i * columns + j)]);
  };
  double error = 0, left = 0, right = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) left = std::hypot(left, a(i, j));
    for (std::int64_t j = 0; j < columns; ++j) {
      double sum = 0, want = i == j ? 1 : 0;
      right = std::hypot(right, x(i, j));
      if (task == PsdTask::cholesky) {
        for (std::int64_t u = 0; u < n; ++u) sum += x(i, u) * x(j, u);
        want = a(i, j);
      } else {
        for (std::int64_t u = 0; u < n; ++u) sum += a(i, u) * x(u, j);
      }
      if (task == PsdTask::solve) want = problem.b[k]->at({i, j});
      if (task == PsdTask::eigh)
        want = x(i, j) * static_cast<double>(problem.values[k][static_cast<std::size_t>(j)]);
      error = std::hypot(error, sum - want);
    }
  }
  if (task == PsdTask::cholesky) right = 1;
  return error / (static_cast<double>(n) * static_cast<double>(std::numeric_limits<T>::epsilon()) *
                  left * right);
}

template <class T>
void good_lists(PsdTask task) {
  Problem<T> one;
  for (const std::int64_t n : {0, 1, 2, 7, 33, 129, 140})
    one.add(n, draw(0, 5), task, std::exp2(static_cast<double>(draw(-20, 20))));
  one.items[3].damping = 0.25;
  for (const PsdReport& report : one.run(task, 1)) FF_CHECK(report.kind == PsdReport::Kind::ok);
  for (std::size_t k = 1; k < one.items.size(); ++k) {
    if (one.out[k].empty() || task == PsdTask::inverse_root) continue;
    FF_CHECK(residual(one, k, task) < 30);
  }
  const auto bits = one.out;
  one.run(task, 3);
  FF_CHECK(bits == one.out);
}

template <class T>
void bad_matrices(PsdTask task) {
  Problem<T> one;
  for (int k = 0; k < 6; ++k) one.add(40, 2, task, 1);
  one.run(task, 2);
  const auto bits = one.out;
  const auto nan = view_of<T, 2>(one.items[1].a), negative = view_of<T, 2>(one.items[3].a);
  nan(20, 11) = std::numeric_limits<T>::infinity();
  negative(5, 5) = -100;
  for (std::int64_t i = 0; i < 40; ++i) {
    for (std::int64_t j = 0; j < 40; ++j) view_of<T, 2>(one.items[4].a)(i, j) = 1;
  }
  one.items[3].automatic = one.items[4].automatic = true;
  const auto reports = one.run(task, 2);
  using Kind = PsdReport::Kind;
  for (const std::size_t k : {std::size_t{0}, std::size_t{2}, std::size_t{5}}) {
    FF_CHECK(reports[k].kind == Kind::ok);
    FF_CHECK(bits[k] == one.out[k]);
  }
  FF_CHECK(reports[1].kind == Kind::non_finite && reports[1].index == 20 * 40 + 11);
  FF_CHECK(std::isnan(one.out[1].front()) && std::isnan(one.out[1].back()));
  FF_CHECK(reports[3].kind == Kind::indefinite);
  FF_CHECK(reports[4].kind == Kind::damped && reports[4].damping > 0);
}

void mistakes() {
  Problem<double> one;
  one.add(3, 1, PsdTask::inverse, 1);
  Context ctx;
  int raised = 0;
  const auto fails = [&](const PsdItem& item, PsdOptions options) {
    try {
      psd(ctx, {&item, 1}, options);
    } catch (const Error&) {
      ++raised;
    }
  };
  PsdOptions options;
  fails(one.items[0], options);  // no workspace
  PsdItem item = one.items[0];
  item.damping = -1;
  fails(item, options);
  item = one.items[0];
  item.out.extents[1] = 2;
  fails(item, options);
  options.task = PsdTask::inverse_root;
  options.p = 0;
  fails(one.items[0], options);
  FF_CHECK(raised == 4);
}

}  // namespace

int main() {
  for (const PsdTask task : {PsdTask::cholesky, PsdTask::inverse, PsdTask::solve, PsdTask::eigh,
                             PsdTask::inverse_root}) {
    good_lists<float>(task);
    good_lists<double>(task);
    bad_matrices<float>(task);
    bad_matrices<double>(task);
  }
  // Large enough for threads inside one matrix, and for blocks of either size; the last ones end
  // within a panel.
  for (const std::int64_t n : {400, 1301}) {
    Problem<float> large;
    large.add(n, 1, PsdTask::inverse, 1);
    large.run(PsdTask::inverse, 3);
    if (n == 400) FF_CHECK(residual(large, 0, PsdTask::inverse) < 30);
    const auto bits = large.out;
    large.run(PsdTask::inverse, 1);
    FF_CHECK(bits == large.out);
  }
  mistakes();
  return test::report();
}
