// SPDX-License-Identifier: Apache-2.0
//
// Drawn lists of matrices for psd and the residuals of its results.
#pragma once

#include "draw.hpp"
#include "fastfisher/ops.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <vector>

namespace fastfisher::test {

template <class T>
struct Problem {
  std::vector<std::unique_ptr<Strided<T>>> a, b;
  std::vector<std::vector<T>> out, values;
  std::vector<PsdItem> items;

  // Strided matrices B B^T / k + I, times scale; of the upper triangle nothing must be read.
  void add(std::int64_t n, std::int64_t k, PsdTask task, double scale) {
    a.push_back(std::make_unique<Strided<T>>(std::vector<std::int64_t>{n, n}));
    b.push_back(std::make_unique<Strided<T>>(std::vector<std::int64_t>{n, k}));
    std::vector<double> x(static_cast<std::size_t>(n * 8));
    std::normal_distribution<double> normal;
    for (double& value : x) value = normal(engine);
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

}  // namespace fastfisher::test
