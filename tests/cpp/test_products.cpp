// SPDX-License-Identifier: Apache-2.0
//
// jvp and vjp against plain float64 loops over drawn layers, strides and threads: what the
// sanitizers run.
#include "check.hpp"
#include "fastfisher/ops.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <limits>
#include <random>
#include <vector>

namespace {

using namespace fastfisher;

std::mt19937 engine(11);

std::int64_t draw(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(engine);
}

// Arrays with drawn axis order and direction; the memory lives as long as this.
template <class T>
struct Arrays {
  std::deque<std::vector<T>> memory;

  ArrayRef make(const std::vector<std::int64_t>& extents) {
    std::vector<std::size_t> order(extents.size());
    for (std::size_t r = 0; r < order.size(); ++r) order[r] = r;
    if (draw(0, 1) == 0) std::shuffle(order.begin(), order.end(), engine);
    ArrayRef array;
    array.dtype = dtype_of<T>;
    array.rank = static_cast<int>(extents.size());
    std::int64_t size = 1, offset = 0;
    for (std::size_t k = order.size(); k-- > 0;) {
      const std::size_t axis = order[k];
      const std::int64_t step = draw(0, 5) == 0 ? 2 : 1;
      array.extents[axis] = extents[axis];
      array.strides[axis] = size * step;
      if (draw(0, 5) == 0) {
        offset += std::max<std::int64_t>(0, extents[axis] - 1) * array.strides[axis];
        array.strides[axis] = -array.strides[axis];
      }
      size *= std::max<std::int64_t>(1, extents[axis]) * step;
    }
    std::normal_distribution<T> normal;
    memory.emplace_back(static_cast<std::size_t>(size));
    for (T& value : memory.back()) value = normal(engine);
    array.data = memory.back().data() + offset;
    return array;
  }
};

template <class T>
double at(const ArrayRef& array, std::initializer_list<std::int64_t> index) {
  std::int64_t offset = 0;
  std::size_t r = 0;
  for (const std::int64_t k : index) offset += k * array.strides[r++];
  return static_cast<double>(static_cast<const T*>(array.data)[offset]);
}

template <class T>
LayerFactors draw_layer(Arrays<T>& arrays, std::int64_t n, std::int64_t c) {
  LayerFactors layer;
  layer.form = static_cast<LayerForm>(draw(0, 3));
  layer.bias = draw(0, 1) == 0 && layer.form != LayerForm::jacobian;
  std::int64_t i = draw(0, 40), o = draw(0, 30);
  const bool separable = draw(0, 3) == 0;
  std::vector<std::int64_t> rows{o};
  switch (layer.form) {
  case LayerForm::jacobian:
    layer.g = arrays.make({n, c, draw(0, 60)});
    return layer;
  case LayerForm::dense:
    layer.a = arrays.make({n, i});
    layer.g = arrays.make({n, c, o});
    return layer;
  case LayerForm::shared:
    rows = {draw(0, 9), o};
    layer.a = arrays.make({n, rows[0], i});
    break;
  case LayerForm::conv: {
    layer.conv.rank = static_cast<int>(draw(1, 3));
    layer.conv.groups = draw(1, 3);
    i = layer.conv.groups * draw(1, 3);
    o = layer.conv.groups * draw(1, 8);
    rows = {o};
    std::vector<std::int64_t> input{n, i};
    for (std::size_t r = 0; r < static_cast<std::size_t>(layer.conv.rank); ++r) {
      layer.conv.kernel[r] = draw(1, 3);
      layer.conv.stride[r] = draw(1, 3);
      layer.conv.padding[r] = draw(0, 2);
      layer.conv.dilation[r] = draw(1, 2);
      input.push_back(draw(1, 8));
      rows.push_back(layer.conv.output_extent(static_cast<int>(r), input.back()));
    }
    layer.a = arrays.make(input);
    break;
  }
  }
  if (separable) {
    layer.w = arrays.make({c, o});
    rows.insert(rows.begin(), n);
  } else {
    rows.insert(rows.begin(), {n, c});
  }
  layer.g = arrays.make(rows);
  return layer;
}

// Input of position `s` at feature i of the group, zero in the padding.
template <class T>
double patch(const LayerFactors& layer, std::int64_t n, std::int64_t channel, std::int64_t tap,
             std::int64_t s) {
  const ConvGeometry& conv = layer.conv;
  std::array<std::int64_t, 3> place{};
  for (int r = conv.rank - 1; r >= 0; --r) {
    const auto axis = static_cast<std::size_t>(r);
    const std::int64_t extent = layer.g.extent(layer.g.rank - conv.rank + r);
    place[axis] = s % extent * conv.stride[axis] - conv.padding[axis] +
                  tap % conv.kernel[axis] * conv.dilation[axis];
    s /= extent;
    tap /= conv.kernel[axis];
    if (place[axis] < 0 || place[axis] >= layer.a.extent(2 + r)) return 0;
  }
  return at<T>(layer.a, {n, channel, place[0], place[1], place[2]});
}

template <class T>
double gradient(const LayerFactors& layer, std::int64_t n, std::int64_t c, std::int64_t s,
                std::int64_t o) {
  const double w = layer.separable() ? at<T>(layer.w, {c, o}) : 1;
  if (layer.form == LayerForm::dense) return at<T>(layer.g, {n, c, o});
  if (layer.form == LayerForm::shared) {
    return layer.separable() ? w * at<T>(layer.g, {n, s, o}) : at<T>(layer.g, {n, c, s, o});
  }
  std::array<std::int64_t, 3> place{};
  for (int r = layer.conv.rank - 1; r >= 0; --r) {
    const std::int64_t extent = layer.g.extent(layer.g.rank - layer.conv.rank + r);
    place[static_cast<std::size_t>(r)] = s % extent;
    s /= extent;
  }
  if (layer.separable()) return w * at<T>(layer.g, {n, o, place[0], place[1], place[2]});
  return at<T>(layer.g, {n, c, o, place[0], place[1], place[2]});
}

// Row (n, c) of the Jacobian of one layer.
template <class T>
std::vector<double> jacobian_row(const LayerFactors& layer, std::int64_t n, std::int64_t c) {
  const LayerSizes sizes = sizes_of(layer);
  std::vector<double> row(static_cast<std::size_t>(sizes.parameters), 0);
  if (layer.form == LayerForm::jacobian) {
    for (std::int64_t p = 0; p < sizes.in; ++p)
      row[static_cast<std::size_t>(p)] = at<T>(layer.g, {n, c, p});
    return row;
  }
  const std::int64_t taps = layer.conv.taps();
  for (std::int64_t o = 0; o < sizes.out; ++o) {
    for (std::int64_t s = 0; s < sizes.positions; ++s) {
      const double g = gradient<T>(layer, n, c, s, o);
      for (std::int64_t i = 0; i < sizes.in; ++i) {
        double a = 0;
        if (layer.form == LayerForm::conv) {
          const std::int64_t group = o / (sizes.out / sizes.groups);
          a = patch<T>(layer, n, group * (sizes.in / taps) + i / taps, i % taps, s);
        } else {
          a = layer.form == LayerForm::dense ? at<T>(layer.a, {n, i}) : at<T>(layer.a, {n, s, i});
        }
        row[static_cast<std::size_t>(o * sizes.in + i)] += g * a;
      }
      if (layer.bias) row[static_cast<std::size_t>(sizes.out * sizes.in + o)] += g;
    }
  }
  return row;
}

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
  }
  for (int k = 0; k < 4; ++k) {
    many_rows<float>();
    many_rows<double>();
  }
  reports();
  interrupted();
  return fastfisher::test::report();
}
