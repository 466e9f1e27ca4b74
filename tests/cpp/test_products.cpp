// SPDX-License-Identifier: Apache-2.0
//
// jvp, vjp and bmm against plain float64 loops over drawn layers, strides and threads: what
// the sanitizers run.
#include "check.hpp"
#include "draw_layers.hpp"
#include "fastfisher/ops.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace {

using namespace fastfisher;
using namespace fastfisher::test;

template <class T>
void check_layers(Arrays<T>& arrays, const std::vector<LayerFactors>& layers, std::int64_t n,
                  std::int64_t c, std::int64_t k) {
  std::int64_t parameters = 0;
  for (const LayerFactors& layer : layers) parameters += sizes_of(layer).parameters;

  const ArrayRef v = arrays.make({parameters, k}), u = arrays.make({n, c, k});
  const ArrayRef out = arrays.make({n, c, k}), back = arrays.make({parameters, k});
  Context ctx;
  ctx.threads = static_cast<int>(draw(1, 3));
  std::vector<std::byte> workspace(static_cast<std::size_t>(
      std::max(jvp_workspace(ctx, layers, k), vjp_workspace(ctx, layers, k))));
  ctx.workspace = workspace;
  FF_CHECK(jvp(ctx, layers, v, out).kind == ProductReport::Kind::ok);
  FF_CHECK(vjp(ctx, layers, u, back).kind == ProductReport::Kind::ok);

  std::vector<double> expected_out(static_cast<std::size_t>(n * c * k), 0);
  std::vector<double> expected_back(static_cast<std::size_t>(parameters * k), 0);
  for (std::int64_t row = 0; row < n * c; ++row) {
    std::int64_t start = 0;
    for (const LayerFactors& layer : layers) {
      const std::vector<double> j = jacobian_row<T>(layer, row / c, row % c);
      for (std::size_t p = 0; p < j.size(); ++p) {
        const std::int64_t parameter = start + static_cast<std::int64_t>(p);
        for (std::int64_t q = 0; q < k; ++q) {
          expected_out[static_cast<std::size_t>(row * k + q)] += j[p] * at<T>(v, {parameter, q});
          expected_back[static_cast<std::size_t>(parameter * k + q)] +=
              j[p] * at<T>(u, {row / c, row % c, q});
        }
      }
      start += static_cast<std::int64_t>(j.size());
    }
  }
  double error = 0, size = 0;
  const auto compare = [&](double got, double expected) {
    error += (got - expected) * (got - expected);
    size += expected * expected;
  };
  for (std::int64_t row = 0; row < n * c; ++row) {
    for (std::int64_t q = 0; q < k; ++q)
      compare(at<T>(out, {row / c, row % c, q}),
              expected_out[static_cast<std::size_t>(row * k + q)]);
  }
  FF_CHECK(std::sqrt(error) <= 20 * std::numeric_limits<T>::epsilon() * std::sqrt(size));
  error = size = 0;
  for (std::int64_t p = 0; p < parameters; ++p) {
    for (std::int64_t q = 0; q < k; ++q)
      compare(at<T>(back, {p, q}), expected_back[static_cast<std::size_t>(p * k + q)]);
  }
  FF_CHECK(std::sqrt(error) <= 20 * std::numeric_limits<T>::epsilon() * std::sqrt(size));
}

template <class T>
void one_problem() {
  Arrays<T> arrays;
  const std::int64_t n = draw(0, 7), c = draw(0, 19), k = draw(0, 9) == 0 ? 37 : draw(0, 6);
  std::vector<LayerFactors> layers;
  for (std::int64_t count = draw(1, 3); count > 0; --count)
    layers.push_back(draw_layer(arrays, n, c));
  check_layers(arrays, layers, n, c, k);
}

// Many rows and a small W, with few channels and with enough of them to lie innermost.
template <class T>
void many_rows() {
  for (const std::int64_t channels : {3, 16}) {
    Arrays<T> arrays;
    const std::int64_t n = 3, c = 2, o = draw(1, 9), k = draw(1, 4);
    LayerFactors shared, conv;
    shared.form = LayerForm::shared;
    conv.form = LayerForm::conv;
    shared.bias = conv.bias = draw(0, 1) == 0;
    shared.a = arrays.make({n, 600, channels});
    shared.g = arrays.make({n, c, 600, o});
    conv.conv.rank = 2;
    conv.conv.kernel = {2, 3, 1};
    conv.conv.padding = {1, 1, 0};
    conv.conv.stride = {1, draw(1, 2), 1};
    conv.a = arrays.make({n, channels, 25, 41});
    conv.g = arrays.make({n, c, o, conv.conv.output_extent(0, 25), conv.conv.output_extent(1, 41)});
    check_layers(arrays, {shared, conv}, n, c, k);
  }
}

// Every edge of blocks, panels and stretches of the depth, in arrays of just their size.
template <class T>
void one_bmm() {
  Arrays<T> arrays;
  const std::int64_t n = draw(0, 210), k = draw(0, 9) == 0 ? draw(250, 600) : draw(0, 40);
  const std::int64_t m = draw(0, 2) == 0 ? 16 * draw(1, 6) : draw(0, 100);
  const std::int64_t e = draw(0, 4);
  const ArrayRef a = arrays.make({e, n, k}), b = arrays.make({e, k, m});
  const ArrayRef out = arrays.make({e, n, m});
  Context ctx;
  ctx.threads = static_cast<int>(draw(1, 3));
  ctx.openmp_team = draw(0, 1) == 1;  // there is none here: the pool does the work
  bmm(ctx, a, b, out);
  double error = 0, size = 0;
  for (std::int64_t f = 0; f < e; ++f) {
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < m; ++j) {
        double expected = 0;
        for (std::int64_t p = 0; p < k; ++p) expected += at<T>(a, {f, i, p}) * at<T>(b, {f, p, j});
        error += std::pow(at<T>(out, {f, i, j}) - expected, 2);
        size += expected * expected;
      }
    }
  }
  FF_CHECK(std::sqrt(error) <= 20 * std::numeric_limits<T>::epsilon() * std::sqrt(size));
}

void reports() {
  std::vector<float> a(12, 1), g(12, 1), v(9, 1), out(4);
  const std::vector<LayerFactors> layers = {
      {array_ref(a.data(), 4, 3), array_ref(g.data(), 4, 1, 3)}};
  const ArrayRef in = array_ref(v.data(), 9, 1), target = array_ref(out.data(), 4, 1, 1);
  Context ctx;
  const auto code = [&](const ArrayRef& given) {
    try {
      jvp(ctx, layers, given, target);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::cuda;
  };
  FF_CHECK(code(in) == ErrorCode::memory);  // no workspace given
  FF_CHECK(code(array_ref(v.data(), 8, 1)) == ErrorCode::shape);
  std::vector<std::byte> workspace(static_cast<std::size_t>(jvp_workspace(ctx, layers, 1)));
  ctx.workspace = workspace;
  FF_CHECK(jvp(ctx, layers, in, target).kind == ProductReport::Kind::ok && out[0] == 9);
  a[7] = std::numeric_limits<float>::infinity();
  ProductReport report = jvp(ctx, layers, in, target);
  FF_CHECK(report.kind == ProductReport::Kind::non_finite && report.layer == 0 &&
           report.argument == 0 && report.index == 7);
  v[2] = std::numeric_limits<float>::quiet_NaN();
  report = jvp(ctx, layers, in, target);
  FF_CHECK(report.layer == -1 && report.index == 2);
  std::fill(a.begin(), a.end(), 1e30F);
  std::fill(v.begin(), v.end(), 1e30F);
  FF_CHECK(jvp(ctx, layers, in, target).kind == ProductReport::Kind::overflow);
}

void interrupted() {
  std::vector<float> a(600 * 300, 1), g(600 * 300, 1), u(600, 1), out(300 * 300);
  const std::vector<LayerFactors> layers = {
      {array_ref(a.data(), 600, 300), array_ref(g.data(), 600, 1, 300)}};
  Context ctx;
  ctx.threads = 2;
  std::vector<std::byte> workspace(static_cast<std::size_t>(vjp_workspace(ctx, layers, 1)));
  ctx.workspace = workspace;
  int polls = 0;
  ctx.interrupted_state = &polls;
  ctx.interrupted = [](void* state) { return ++*static_cast<int*>(state) > 2; };
  bool stopped = false;
  try {
    vjp(ctx, layers, array_ref(u.data(), 600, 1, 1), array_ref(out.data(), 90000, 1));
  } catch (const Error& error) {
    stopped = error.code() == ErrorCode::interrupted;
  }
  FF_CHECK(stopped);
}

}  // namespace

int main() {
  for (int k = 0; k < 150; ++k) {
    one_problem<float>();
    one_problem<double>();
    one_bmm<float>();
    one_bmm<double>();
  }
  for (int k = 0; k < 4; ++k) {
    many_rows<float>();
    many_rows<double>();
  }
  reports();
  interrupted();
  return fastfisher::test::report();
}
