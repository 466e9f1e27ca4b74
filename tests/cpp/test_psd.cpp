// SPDX-License-Identifier: Apache-2.0
//
// psd against residuals in float64, over drawn sizes, strides, scales and threads, with bad
// matrices among good ones: what the sanitizers run.
#include "check.hpp"
#include "draw.hpp"
#include "fastfisher/ops.hpp"
#include "psd_problem.hpp"

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

namespace {

using namespace fastfisher;
using test::draw;
using test::Problem;

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
    for (const PsdTask task : {PsdTask::inverse, PsdTask::solve}) {
      Problem<float> large;
      large.add(n, 35, task, 1);
      large.run(task, 3);
      if (n == 400 || task == PsdTask::solve) FF_CHECK(residual(large, 0, task) < 30);
      const auto bits = large.out;
      large.run(task, 1);
      FF_CHECK(bits == large.out);
    }
  }
  mistakes();
  return test::report();
}
