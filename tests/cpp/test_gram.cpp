// SPDX-License-Identifier: Apache-2.0
//
// The Gram against plain float64 loops over drawn sizes, strides, threads and memory limits: what
// the sanitizers run.
#include "check.hpp"
#include "draw.hpp"
#include "fastfisher/ops.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace {

using namespace fastfisher;

using test::draw;

template <class T>
struct Side {
  std::vector<test::Strided<T>> a;
  std::vector<test::Strided<T>> g;
  std::vector<LayerFactors> layers;
};

template <class T>
Side<T> draw_side(std::int64_t n, std::int64_t c,
                  const std::vector<std::array<std::int64_t, 3>>& sizes) {
  Side<T> side;
  for (const auto& [i, o, bias] : sizes) {
    side.a.emplace_back(std::vector{n, i});
    side.g.emplace_back(std::vector{n, c, o});
    side.layers.push_back({side.a.back().ref, side.g.back().ref, bias != 0});
  }
  return side;
}

template <class T>
double exact(const std::vector<LayerFactors>& left, const std::vector<LayerFactors>& right,
             std::int64_t n, std::int64_t c, std::int64_t m, std::int64_t d) {
  double sum = 0;
  for (std::size_t layer = 0; layer < left.size(); ++layer) {
    const auto a = view_of<const T, 2>(left[layer].a), b = view_of<const T, 2>(right[layer].a);
    const auto g = view_of<const T, 3>(left[layer].g), h = view_of<const T, 3>(right[layer].g);
    double inner = left[layer].bias ? 1 : 0, outer = 0;
    for (std::int64_t i = 0; i < a.extent(1); ++i) inner += double{a(n, i)} * b(m, i);
    for (std::int64_t o = 0; o < g.extent(2); ++o) outer += double{g(n, c, o)} * h(m, d, o);
    sum += inner * outer;
  }
  return sum;
}

template <class T>
void one_problem(bool large) {
  const std::int64_t n = draw(1, large ? 150 : 12), m = draw(1, large ? 150 : 12);
  const std::int64_t c = draw(1, large ? 12 : 25);
  std::vector<std::array<std::int64_t, 3>> sizes(static_cast<std::size_t>(draw(1, 3)));
  for (auto& size : sizes) size = {draw(0, large ? 300 : 20), draw(0, large ? 40 : 20), draw(0, 1)};
  const Side<T> left = draw_side<T>(n, c, sizes), other = draw_side<T>(m, c, sizes);
  const bool square = draw(0, 1) == 0;
  const std::vector<LayerFactors>& right = square ? left.layers : other.layers;
  const std::int64_t cols = square ? n : m;

  GramOptions options;
  options.outputs = static_cast<GramOutputs>(draw(0, 2));
  Context ctx;
  ctx.threads = static_cast<int>(draw(1, 3));
  const std::span<const LayerFactors> given = square ? std::span<const LayerFactors>{} : right;
  options.memory_limit = std::int64_t{1} << draw(14, 25);
  std::int64_t bytes = 0;
  for (;;) {
    try {
      bytes = gram_workspace(ctx, left.layers, given, options).bytes;
      break;
    } catch (const Error& error) {
      FF_CHECK(error.code() == ErrorCode::memory);
      options.memory_limit *= 2;
    }
  }
  FF_CHECK(bytes <= options.memory_limit);
  std::vector<std::byte> workspace(static_cast<std::size_t>(bytes));
  ctx.workspace = workspace;

  const bool full = options.outputs == GramOutputs::full,
             trace = options.outputs == GramOutputs::trace;
  std::vector<T> out(static_cast<std::size_t>(n * cols *
                                              (full    ? c * c
                                               : trace ? 1
                                                       : c)),
                     std::numeric_limits<T>::quiet_NaN());
  const ArrayRef target = full    ? array_ref(out.data(), n, c, cols, c)
                          : trace ? array_ref(out.data(), n, cols)
                                  : array_ref(out.data(), n, cols, c);
  const GramReport report = gram(ctx, left.layers, given, options, target);
  FF_CHECK(report.kind == GramReport::Kind::ok);
  double error = 0, size = 0;
  for (std::int64_t at = 0; at < static_cast<std::int64_t>(out.size()); ++at) {
    double expected = 0;
    if (full) {
      expected = exact<T>(left.layers, right, at / (c * cols * c), at / (cols * c) % c,
                          at / c % cols, at % c);
    } else if (trace) {
      for (std::int64_t k = 0; k < c; ++k)
        expected += exact<T>(left.layers, right, at / cols, k, at % cols, k);
    } else {
      expected = exact<T>(left.layers, right, at / (cols * c), at % c, at / c % cols, at % c);
    }
    const double difference = static_cast<double>(out[static_cast<std::size_t>(at)]) - expected;
    error += difference * difference;
    size += expected * expected;
  }
  FF_CHECK(std::sqrt(error) <= 20 * std::numeric_limits<T>::epsilon() * std::sqrt(size));
}

void rejects() {
  std::vector<float> a(12, 1), g(12, 1), out(16);
  GramOptions options;
  Context ctx;
  const auto code_of = [&](const std::vector<LayerFactors>& layers, const ArrayRef& target) {
    try {
      gram(ctx, layers, {}, options, target);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::cuda;
  };
  const std::vector<LayerFactors> fine = {
      {array_ref(a.data(), 4, 3), array_ref(g.data(), 4, 1, 3)}};
  FF_CHECK(code_of({}, array_ref(out.data(), 4, 1, 4, 1)) == ErrorCode::shape);
  FF_CHECK(code_of(fine, array_ref(out.data(), 4, 4)) == ErrorCode::shape);
  FF_CHECK(code_of({{array_ref(a.data(), 3, 4), fine[0].g}}, array_ref(out.data(), 4, 1, 4, 1)) ==
           ErrorCode::shape);
  FF_CHECK(code_of(fine, array_ref(out.data(), 4, 1, 4, 1)) ==
           ErrorCode::memory);  // no workspace given
  std::vector<double> wide(12);
  FF_CHECK(code_of({{array_ref(wide.data(), 4, 3), fine[0].g}},
                   array_ref(out.data(), 4, 1, 4, 1)) == ErrorCode::dtype);
  ctx.device = {DeviceKind::cuda, 0};
  FF_CHECK(code_of(fine, array_ref(out.data(), 4, 1, 4, 1)) ==
           ErrorCode::dtype);  // arrays are on the CPU
}

void interrupted() {
  std::vector<float> a(400 * 300, 1), g(400 * 300, 1), out(400 * 400);
  const std::vector<LayerFactors> layers = {
      {array_ref(a.data(), 400, 300), array_ref(g.data(), 400, 1, 300)}};
  GramOptions options;
  options.memory_limit = 1 << 20;
  Context ctx;
  ctx.threads = 2;
  std::vector<std::byte> workspace(
      static_cast<std::size_t>(gram_workspace(ctx, layers, {}, options).bytes));
  ctx.workspace = workspace;
  int polls = 0;
  ctx.interrupted_state = &polls;
  ctx.interrupted = [](void* state) { return ++*static_cast<int*>(state) > 5; };
  bool stopped = false;
  try {
    gram(ctx, layers, {}, options, array_ref(out.data(), 400, 1, 400, 1));
  } catch (const Error& error) {
    stopped = error.code() == ErrorCode::interrupted;
  }
  FF_CHECK(stopped);
}

}  // namespace

int main() {
  for (int k = 0; k < 120; ++k) {
    one_problem<float>(k % 8 == 0);
    one_problem<double>(k % 8 == 1);
  }
  rejects();
  interrupted();
  return fastfisher::test::report();
}
