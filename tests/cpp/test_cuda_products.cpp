// SPDX-License-Identifier: Apache-2.0
//
// J v, J^T u, moments and the forming of gradients as the CUDA backend computes them: its steps and
// kernel bodies on the host, one std::thread per CUDA thread, against plain float64 loops. It says
// nothing about a device: occupancy, speed and the launches themselves need one.
#include "check.hpp"
#include "draw_layers.hpp"
#include "form_steps.hpp"
#include "host_machine.hpp"
#include "jvp_steps.hpp"
#include "moments_steps.hpp"
#include "vjp_steps.hpp"

#include <cmath>
#include <limits>
#include <span>
#include <vector>

namespace {

using namespace fastfisher;
using namespace fastfisher::test;
using cuda::ProductTile;

template <class T>
using Machine = HostMachine<T, ProductTile<T, 8, 4, 4>, ProductTile<T, 4, 4, 2>>;

int shared_out = 0, wide = 0, patches = 0, small = 0, large = 0;

template <class Some>
void count(const Some& machine) {
  shared_out += machine.shared_out;
  wide += machine.wide;
  patches += machine.patches;
  small += machine.small;
  large += machine.large;
}

template <class T>
void spoil(std::vector<T>& memory) {
  for (T& value : memory) value = std::numeric_limits<T>::quiet_NaN();
}

bool near(const std::vector<double>& got, const std::vector<double>& expected, double epsilon) {
  double error = 0, size = 0;
  for (std::size_t k = 0; k < got.size(); ++k) {
    error += (got[k] - expected[k]) * (got[k] - expected[k]);
    size += expected[k] * expected[k];
  }
  return std::sqrt(error) <= 20 * epsilon * std::sqrt(size);
}

// All rows of the Jacobian of a list of layers.
template <class S>
std::vector<std::vector<double>> jacobian(std::span<const LayerFactors> layers, std::int64_t n,
                                          std::int64_t c) {
  std::vector<std::vector<double>> rows(static_cast<std::size_t>(n * c));
  for (std::int64_t row = 0; row < n * c; ++row) {
    for (const LayerFactors& layer : layers) {
      const std::vector<double> part = jacobian_row<S>(layer, row / c, row % c);
      auto& to = rows[static_cast<std::size_t>(row)];
      to.insert(to.end(), part.begin(), part.end());
    }
  }
  return rows;
}

// The list as the query of the workspace sees it.
std::vector<LayerFactors> shapes_of(std::span<const LayerFactors> layers) {
  std::vector<LayerFactors> shapes(layers.begin(), layers.end());
  for (LayerFactors& layer : shapes) {
    for (ArrayRef* array : {&layer.a, &layer.g, &layer.w}) {
      array->data = nullptr;
      array->strides = {};
    }
  }
  return shapes;
}

template <template <class, class, class> class Steps, class S, class T>
void run_twice(std::span<const LayerFactors> layers, const ArrayRef& vector, const ArrayRef& out,
               std::vector<T>& memory, const ArrayRef& vector_shape, const ArrayRef& out_shape) {
  std::vector<T> first;
  for (const std::int64_t blocks : {1, 3}) {
    spoil(memory);
    Machine<T> machine(small_limits());
    machine.blocks = blocks;
    machine.late = blocks == 1;
    Steps<S, T, Machine<T>>(machine, layers, vector, out).run();
    count(machine);
    if (blocks == 1) first = memory;
    // What the query says is enough, and it never looks at memory or strides.
    cuda::MeasuringMachine<T> measuring(small_limits());
    const std::vector<LayerFactors> shapes = shapes_of(layers);
    Steps<S, T, cuda::MeasuringMachine<T>>(measuring, shapes, vector_shape, out_shape).run();
    FF_CHECK(machine.most_partial <= measuring.memory().partial);
    FF_CHECK(machine.most_middle <= measuring.memory().middle);
  }
  // To the bit, the gaps too.
  FF_CHECK(std::memcmp(first.data(), memory.data(), memory.size() * sizeof(T)) == 0);
}

template <class S, class T>
void one_product(const std::vector<LayerFactors>& layers, std::int64_t n, std::int64_t c,
                 std::int64_t k) {
  Arrays<T> arrays;
  const auto rows = jacobian<S>(layers, n, c);
  std::int64_t parameters = 0;
  for (const LayerFactors& layer : layers) parameters += sizes_of(layer).parameters;
  const ArrayRef v = arrays.make({parameters, k}), u = arrays.make({n, c, k});
  const ArrayRef out = arrays.make({n, c, k});
  run_twice<cuda::JvpSteps, S, T>(layers, v, out, arrays.memory.back(),
                                  cuda::shape_only({parameters, k}, dtype_of<T>),
                                  cuda::shape_only({n, c, k}, dtype_of<T>));
  std::vector<double> got, expected;
  for (std::int64_t row = 0; row < n * c; ++row) {
    for (std::int64_t q = 0; q < k; ++q) {
      double sum = 0;
      for (std::int64_t p = 0; p < parameters; ++p)
        sum += rows[static_cast<std::size_t>(row)][static_cast<std::size_t>(p)] * at<T>(v, {p, q});
      expected.push_back(sum);
      got.push_back(at<T>(out, {row / c, row % c, q}));
    }
  }
  FF_CHECK(near(got, expected, std::numeric_limits<T>::epsilon()));

  const ArrayRef back = arrays.make({parameters, k});
  run_twice<cuda::VjpSteps, S, T>(layers, u, back, arrays.memory.back(),
                                  cuda::shape_only({n, c, k}, dtype_of<T>),
                                  cuda::shape_only({parameters, k}, dtype_of<T>));
  got.clear();
  expected.clear();
  for (std::int64_t p = 0; p < parameters; ++p) {
    for (std::int64_t q = 0; q < k; ++q) {
      double sum = 0;
      for (std::int64_t row = 0; row < n * c; ++row)
        sum += rows[static_cast<std::size_t>(row)][static_cast<std::size_t>(p)] *
               at<T>(u, {row / c, row % c, q});
      expected.push_back(sum);
      got.push_back(at<T>(back, {p, q}));
    }
  }
  FF_CHECK(near(got, expected, std::numeric_limits<T>::epsilon()));
}

// A stretch of the parameters, in memory with a gap behind each row that stays as it is.
template <class S, class T>
void one_form(const LayerFactors& layer, std::int64_t n, std::int64_t c, bool all) {
  const std::int64_t parameters = sizes_of(layer).parameters;
  const std::int64_t first = all ? 0 : draw(0, parameters);
  const std::int64_t length = all ? parameters : draw(0, parameters - first);
  const std::int64_t stride = length + draw(0, 3);
  std::vector<T> to(static_cast<std::size_t>(n * c * stride + 1), T(-77));
  for (const bool late : {false, true}) {
    Machine<T> machine(small_limits());
    machine.late = late;
    cuda::FormSteps<T, Machine<T>>(machine, layer, first, length, to.data(), stride).run();
    count(machine);
  }
  const auto rows = jacobian<S>(std::span(&layer, 1), n, c);
  std::vector<double> got, expected;
  bool gaps = to.back() == T(-77);
  for (std::int64_t row = 0; row < n * c; ++row) {
    for (std::int64_t p = 0; p < stride; ++p) {
      const T value = to[static_cast<std::size_t>(row * stride + p)];
      if (p >= length) {
        gaps = gaps && value == T(-77);
        continue;
      }
      got.push_back(static_cast<double>(value));
      expected.push_back(rows[static_cast<std::size_t>(row)][static_cast<std::size_t>(first + p)]);
    }
  }
  FF_CHECK(gaps);
  FF_CHECK(near(got, expected, std::numeric_limits<T>::epsilon()));
}

template <class S, class T>
void one_problem() {
  Arrays<S> arrays;
  const std::int64_t n = draw(0, 5), c = draw(0, 11), k = draw(0, 9) == 0 ? 35 : draw(0, 6);
  std::vector<LayerFactors> layers;
  for (std::int64_t left = draw(1, 2); left > 0; --left)
    layers.push_back(draw_layer<S>(arrays, n, c));
  one_product<S, T>(layers, n, c, k);
  one_form<S, T>(layers.front(), n, c, false);
  one_form<S, T>(layers.back(), n, c, true);
}

template <class T>
void one_moment(std::int64_t n, std::int64_t i, bool ones, double scale) {
  Arrays<T> arrays;
  const ArrayRef a = arrays.make({n, i});
  const std::int64_t m = i + (ones ? 1 : 0);
  std::vector<T> first;
  for (const std::int64_t blocks : {1, 3}) {
    std::vector<T> memory(static_cast<std::size_t>(m * m));
    spoil(memory);
    const MomentItem item{a, array_ref(memory.data(), m, m), scale};
    cuda::Product<T> product = cuda::moment_of<T>(item);
    Machine<T> machine(small_limits());
    machine.blocks = blocks;
    machine.product(product);
    count(machine);
    if (blocks == 1) {
      first = memory;
      continue;
    }
    FF_CHECK(first == memory);
    std::vector<double> got, expected;
    bool symmetric = true;
    for (std::int64_t p = 0; p < m; ++p) {
      for (std::int64_t q = 0; q < m; ++q) {
        double sum = 0;
        for (std::int64_t s = 0; s < n; ++s)
          sum += (p < i ? at<T>(a, {s, p}) : 1) * (q < i ? at<T>(a, {s, q}) : 1);
        expected.push_back(scale * sum);
        got.push_back(static_cast<double>(memory[static_cast<std::size_t>(p * m + q)]));
        symmetric = symmetric && memory[static_cast<std::size_t>(p * m + q)] ==
                                     memory[static_cast<std::size_t>(q * m + p)];
      }
    }
    FF_CHECK(symmetric);
    FF_CHECK(near(got, expected, std::numeric_limits<T>::epsilon()));
  }
}

// Shares of a list cover every depth, lie side by side in memory and are no more than fit.
void list_of_moments() {
  for (int round = 0; round < 200; ++round) {
    cuda::ProductLimits limits = small_limits();
    limits.partial_bytes = draw(0, 3) * 2000;
    std::vector<cuda::Product<float>> products(static_cast<std::size_t>(draw(1, 9)));
    for (auto& p : products) {
      p.rows = p.cols = draw(0, 40);
      p.depth = draw(0, 500);
      p.square = true;
    }
    std::vector<float> partial(static_cast<std::size_t>(limits.partial_bytes / 4) + 1);
    cuda::share_list<float>(products, limits, partial.data());
    bool covered = true, apart = true;
    const float* end = partial.data();
    for (const auto& p : products) {
      covered = covered && p.splits * p.split_depth >= p.depth &&
                (p.splits == 1 || (p.splits - 1) * p.split_depth < p.depth);
      if (p.splits == 1) continue;
      apart = apart && p.partial >= end;
      end = p.partial + p.splits * p.entries();
    }
    FF_CHECK(covered);
    FF_CHECK(apart && end - partial.data() <= limits.partial_bytes / 4);
  }
}

// The tile with the shape that a device runs, 256 threads of it.
template <class T, int Edge, int Depth, int Lanes>
void device_tile() {
  using Tile = ProductTile<T, Edge, Depth, Lanes>;
  cuda::ProductLimits limits = small_limits();
  limits.kinds = {{{Edge, 2, 1}, {Edge, 2, 1}}};
  limits.step = Depth;
  for (const std::int64_t transposed : {0, 1, 2}) {
    const std::int64_t rows = transposed == 2 ? Edge + 8 : Edge + 3, cols = 9,
                       depth = 2 * Depth + 3;
    Arrays<T> arrays;
    const ArrayRef a = transposed != 0 ? arrays.make({depth, rows}) : arrays.make({rows, depth});
    const ArrayRef b = arrays.make({cols, depth});
    std::vector<T> out(static_cast<std::size_t>(rows * cols));
    std::vector<T> packed;  // rows together, aligned: the wide path
    cuda::Product<T> p;
    if (transposed == 2) {
      for (std::int64_t q = 0; q < depth; ++q) {
        for (std::int64_t r = 0; r < rows; ++r) packed.push_back(static_cast<T>(at<T>(a, {q, r})));
      }
    }
    p.left.data = transposed == 2 ? packed.data() : a.data;
    p.left.rows.nest(rows, transposed == 2 ? 1 : a.stride(transposed == 1 ? 1 : 0));
    p.left.depth.nest(depth, transposed == 2 ? rows : a.stride(transposed == 1 ? 0 : 1));
    cuda::choose_path<T>(p.left);
    p.right.data = b.data;
    p.right.rows.nest(cols, b.stride(0));
    p.right.depth.nest(depth, b.stride(1));
    cuda::choose_path<T>(p.right);
    p.rows = rows;
    p.cols = cols;
    p.depth = depth;
    p.out = out.data();
    p.out_row = {1, cols, 0};
    p.out_col = {1, 1, 0};
    HostMachine<T, Tile> machine(limits);
    machine.blocks = 1;
    machine.late = transposed == 1;
    machine.product(p);
    count(machine);
    std::vector<double> got, expected;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t q = 0; q < cols; ++q) {
        double sum = 0;
        for (std::int64_t s = 0; s < depth; ++s) {
          const double x = transposed != 0 ? at<T>(a, {s, r}) : at<T>(a, {r, s});
          sum += x * at<T>(b, {q, s});
        }
        expected.push_back(sum);
        got.push_back(static_cast<double>(out[static_cast<std::size_t>(r * cols + q)]));
      }
    }
    FF_CHECK(near(got, expected, std::numeric_limits<T>::epsilon()));
  }
}

}  // namespace

int main() {
  for (int k = 0; k < 40; ++k) {
    one_problem<float, float>();
    one_problem<double, double>();
    if (k % 2 == 0) one_problem<BFloat16, float>();
    if (k % 2 == 1) one_problem<Float16, float>();
    one_moment<float>(draw(0, 30), draw(0, 20), k % 2 == 0, 0.5);
    one_moment<double>(draw(0, 30), draw(0, 20), k % 2 == 1, 1);
  }
  one_moment<float>(7, 0, true, 2);
  one_moment<float>(0, 5, true, 2);
  list_of_moments();
  device_tile<float, 128, 16, 16>();
  device_tile<double, 128, 8, 16>();
  device_tile<float, 64, 16, 8>();
  device_tile<double, 64, 8, 8>();
  // The paths that sizes decide on were all taken.
  FF_CHECK(shared_out > 20 && wide > 5 && patches > 20 && small > 20 && large > 20);
  return fastfisher::test::report();
}
