// SPDX-License-Identifier: Apache-2.0
//
// The flows and kernel bodies of the CUDA psd on the host, with small tiles and blocks of a few
// std::threads, judged by residuals as the CPU's op is. It says nothing about a device: occupancy,
// speed and the launches themselves need one.
#include "check.hpp"
#include "draw.hpp"
#include "host_block.hpp"
#include "psd_eigh_flow.hpp"
#include "psd_flow.hpp"
#include "psd_problem.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

namespace {

using namespace fastfisher;
using Kind = PsdReport::Kind;
using test::draw;
using test::HostBlock;
using test::Problem;

// What PsdDevice does, with host memory for the device's and at most `most` blocks a launch
// of a body that loops over its tasks.
struct HostDevice {
  std::int64_t most = 3;

  template <class Body>
  void launch(const Body& body, std::int64_t blocks, std::int64_t = 0) const {
    FF_CHECK(blocks > 0);
    constexpr bool kAll = requires { Body::kTaskABlock; };
    test::launch<Body>(
        kAll ? blocks : std::min(blocks, most),
        [&](const HostBlock& block, typename Body::Shared& shared) { body.run(block, shared); });
  }
  void write(void* to, const void* from, std::int64_t bytes) const {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
  void read(void* to, const void* from, std::int64_t bytes) const { write(to, from, bytes); }
};

using Pass = cuda::PassSize<8, 4>;
// Two groups of four rows a thread in float32, one in float64, as on a device.
template <class T>
using Tile =
    std::conditional_t<sizeof(T) == 4, cuda::PsdTile<T, 16, 8, 4>, cuda::PsdTile<T, 8, 4, 4>>;
template <class T>
using Flow = cuda::PsdFactorFlow<T, Tile<T>, Pass, HostDevice>;
template <class T>
using EigenFlow =
    cuda::PsdEigenFlow<T, cuda::PsdEigen<T, 20, 4>, cuda::PsdEigen<T, 36, 5>, Pass, HostDevice>;

bool is_spectral(PsdTask task) {
  return task == PsdTask::eigh || task == PsdTask::inverse_root;
}

// Rubbish before: nothing may be read that was not written.
template <class T>
std::vector<PsdReport> run(Problem<T>& problem, PsdTask task, std::int64_t most = 3) {
  HostDevice device{most};
  PsdOptions options;
  options.task = task;
  std::vector<std::int64_t> sizes;
  for (const PsdItem& item : problem.items) sizes.push_back(item.a.extent(0));
  for (auto& out : problem.out) std::fill(out.begin(), out.end(), std::nan(""));
  const std::int64_t bytes =
      is_spectral(task) ? EigenFlow<T>::workspace(sizes) : Flow<T>::workspace(sizes, task);
  std::vector<std::byte> memory(static_cast<std::size_t>(bytes), std::byte{0xff});
  if (is_spectral(task)) return EigenFlow<T>::run(device, problem.items, options, memory.data());
  return Flow<T>(device, problem.items, task, memory.data()).run();
}

// ||X X A - I|| relative to n eps and the sizes of what was multiplied.
template <class T>
double root_residual(const Problem<T>& problem, std::size_t k) {
  const PsdItem& item = problem.items[k];
  const auto n = static_cast<std::size_t>(item.a.extent(0));
  const auto view = view_of<const T, 2>(item.a);
  std::vector<double> a(n * n), x(n * n), xx(n * n);
  double left = 0, right = 0, error = 0;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      a[i * n + j] = static_cast<double>(i >= j ? view(i, j) : view(j, i));
      if (i == j) a[i * n + j] += item.damping;
      x[i * n + j] = static_cast<double>(problem.out[k][i * n + j]);
      FF_CHECK(problem.out[k][i * n + j] == problem.out[k][j * n + i]);
      left = std::hypot(left, a[i * n + j]);
      right = std::hypot(right, x[i * n + j]);
    }
  }
  const auto product = [&](const std::vector<double>& p, const std::vector<double>& q,
                           std::size_t i, std::size_t j) {
    double sum = 0;
    for (std::size_t u = 0; u < n; ++u) sum += p[i * n + u] * q[u * n + j];
    return sum;
  };
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) xx[i * n + j] = product(x, x, i, j);
  }
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j)
      error = std::hypot(error, product(xx, a, i, j) - (i == j ? 1 : 0));
  }
  return error / (static_cast<double>(n) * static_cast<double>(std::numeric_limits<T>::epsilon()) *
                  left * right * right);
}

template <class T>
double error_of(const Problem<T>& problem, std::size_t k, PsdTask task) {
  return task == PsdTask::inverse_root ? root_residual(problem, k)
                                       : test::residual(problem, k, task);
}

// Sizes below, at and beyond a tile; some with rows that begin at multiples of 16 bytes.
template <class T>
void good_lists(PsdTask task) {
  Problem<T> one;
  std::vector<std::int64_t> sizes = {0, 1, 2, 5, 8, 12, 16, 17, 33};
  if (!is_spectral(task)) sizes.insert(sizes.end(), {48, 52, 61});
  for (const std::int64_t n : sizes)
    one.add(n, draw(0, 3) == 0 ? draw(14, 19) : draw(0, 3), task,
            std::exp2(static_cast<double>(draw(-20, 20))));
  one.items[3].damping = 0.25;
  const auto reports = run(one, task);
  for (std::size_t k = 0; k < one.items.size(); ++k) {
    FF_CHECK(reports[k].kind == Kind::ok);
    FF_CHECK(reports[k].damping == one.items[k].damping);
    FF_CHECK(reports[k].condition > 0.9999 && reports[k].condition < 1e4);
    if (one.out[k].empty()) continue;
    FF_CHECK(error_of(one, k, task) < 30);
    const auto n = static_cast<std::size_t>(one.items[k].a.extent(0));
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < i && task == PsdTask::inverse; ++j)
        FF_CHECK(one.out[k][i * n + j] == one.out[k][j * n + i]);
      for (std::size_t j = i + 1; j < n && task == PsdTask::cholesky; ++j)
        FF_CHECK(one.out[k][i * n + j] == 0);
      if (task == PsdTask::eigh && i > 0) FF_CHECK(one.values[k][i - 1] <= one.values[k][i]);
    }
  }
  // Other launches, and each matrix alone: the same bits.
  const auto bits = one.out;
  run(one, task, 1000);
  FF_CHECK(bits == one.out);
  for (std::size_t k = 0; k < one.items.size(); ++k) {
    HostDevice device;
    PsdOptions options;
    options.task = task;
    const std::int64_t n = one.items[k].a.extent(0);
    std::vector<std::byte> memory(static_cast<std::size_t>(
        is_spectral(task) ? EigenFlow<T>::workspace({&n, 1}) : Flow<T>::workspace({&n, 1}, task)));
    const std::span<const PsdItem> item(&one.items[k], 1);
    std::fill(one.out[k].begin(), one.out[k].end(), T(0));
    if (is_spectral(task)) {
      EigenFlow<T>::run(device, item, options, memory.data());
    } else {
      Flow<T>(device, item, task, memory.data()).run();
    }
    FF_CHECK(bits[k] == one.out[k]);
  }
}

// The condition in the infinity norm, and eigenvalues, against the CPU's op.
template <class T>
void as_on_the_cpu(PsdTask task) {
  Problem<T> one;
  for (const std::int64_t n : {3, 16, 29}) one.add(n, 1, task, 3);
  one.items[1].damping = 0.5;
  const auto want = one.run(task, 1);
  const auto values = one.values;
  const auto got = run(one, task);
  for (std::size_t k = 0; k < one.items.size(); ++k) {
    FF_CHECK(std::abs(got[k].condition / want[k].condition - 1) < 1e-3);
    for (std::size_t i = 0; i < values[k].size() && task == PsdTask::eigh; ++i)
      FF_CHECK(std::abs(values[k][i] - one.values[k][i]) <
               100 * std::numeric_limits<T>::epsilon() * values[k].back());
  }
}

template <class T>
void bad_matrices(PsdTask task) {
  Problem<T> one;
  for (int k = 0; k < 7; ++k) one.add(35, 2, task, 1);
  run(one, task);
  const auto bits = one.out;
  const auto nan = view_of<T, 2>(one.items[1].a), negative = view_of<T, 2>(one.items[3].a);
  nan(20, 11) = std::numeric_limits<T>::infinity();
  nan(20, 12) = nan(30, 1) = std::numeric_limits<T>::quiet_NaN();
  negative(21, 21) = -100;
  for (std::int64_t i = 0; i < 35; ++i) {
    for (std::int64_t j = 0; j < 35; ++j) {
      view_of<T, 2>(one.items[4].a)(i, j) = 1;
      view_of<T, 2>(one.items[6].a)(i, j) = 0;
    }
  }
  one.items[3].automatic = one.items[4].automatic = one.items[6].automatic = true;
  if (task == PsdTask::solve) view_of<T, 2>(one.items[2].b)(7, 1) = nan(20, 12);
  const auto reports = run(one, task);
  for (const std::size_t k : {std::size_t{0}, std::size_t{2}, std::size_t{5}}) {
    if (k == 2 && task == PsdTask::solve) {
      FF_CHECK(reports[k].kind == Kind::non_finite && reports[k].index == -1 - (7 * 2 + 1));
      FF_CHECK(std::isnan(one.out[k].front()) && std::isnan(one.out[k].back()));
      continue;
    }
    FF_CHECK(reports[k].kind == Kind::ok);
    FF_CHECK(bits[k] == one.out[k]);
  }
  FF_CHECK(reports[1].kind == Kind::non_finite && reports[1].index == 20 * 35 + 11);
  for (const std::size_t k : {std::size_t{1}, std::size_t{3}}) {
    FF_CHECK(std::isinf(reports[k].condition));
    for (const T x : one.out[k]) FF_CHECK(std::isnan(x));
    if (task == PsdTask::eigh) FF_CHECK(std::isnan(one.values[k].front()));
  }
  FF_CHECK(reports[3].kind == Kind::indefinite && reports[3].damping > 0);
  FF_CHECK(reports[3].index == (is_spectral(task) ? 0 : 22));
  for (const std::size_t k : {std::size_t{4}, std::size_t{6}}) {
    FF_CHECK(reports[k].kind == Kind::damped && reports[k].damping > 0);
    one.items[k].damping = reports[k].damping;
    FF_CHECK(error_of(one, k, task) < 30);
  }
}

// Near the ends of the range; condition near 1 / eps; results that overflow.
template <class T>
void hard_matrices(PsdTask task) {
  constexpr double kLeast = static_cast<double>(std::numeric_limits<T>::min());
  constexpr double kMost = static_cast<double>(std::numeric_limits<T>::max());
  Problem<T> one;
  if (task == PsdTask::cholesky) {
    one.add(30, 1, task, kLeast * 64);
    one.add(30, 1, task, kMost / 64);
  }
  one.add(30, 1, task, 1);
  one.add(30, 1, task, 1);
  const double condition = 0.01 / static_cast<double>(std::numeric_limits<T>::epsilon());
  const auto graded = view_of<T, 2>(one.items.back().a);
  // A reflection of a graded diagonal.
  std::vector<double> v(30);
  for (double& x : v) x = std::normal_distribution<double>()(test::engine);
  double square = 0;
  for (const double x : v) square += x * x;
  for (std::int64_t i = 0; i < 30; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (std::int64_t u = 0; u < 30; ++u) {
        const auto h = [&](std::int64_t r) {
          return (r == u ? 1 : 0) -
                 2 * v[static_cast<std::size_t>(r)] * v[static_cast<std::size_t>(u)] / square;
        };
        sum += h(i) * h(j) * std::pow(condition, -static_cast<double>(u) / 29);
      }
      graded(i, j) = static_cast<T>(sum);
    }
  }
  one.items.back().automatic = true;
  const auto reports = run(one, task);
  for (std::size_t k = 0; k < one.items.size(); ++k) {
    FF_CHECK(reports[k].kind == Kind::ok || reports[k].kind == Kind::damped);
    one.items[k].damping = reports[k].damping;
    FF_CHECK(error_of(one, k, task) < 30);
  }
  if (task == PsdTask::cholesky) return;
  Problem<T> small;
  small.add(5, 1, task, 1);
  const auto view = view_of<T, 2>(small.items[0].a);
  for (std::int64_t i = 0; i < 5; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) view(i, j) = 0;
    view(i, i) =
        task == PsdTask::eigh ? static_cast<T>(kMost) : std::numeric_limits<T>::denorm_min();
  }
  if (task == PsdTask::eigh) small.items[0].damping = kMost;
  const Kind kind = run(small, task)[0].kind;
  // The root of the least number does not overflow.
  FF_CHECK(kind == (task == PsdTask::inverse_root || sizeof(T) == 8 ? kind : Kind::overflow));
  if (task == PsdTask::inverse) FF_CHECK(kind == Kind::overflow);
}

// 16-bit storage against the same numbers in float32.
void narrow_storage() {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    std::vector<std::uint16_t> narrow(9);
    std::vector<float> out(9), wide(9), want(9);
    for (std::size_t k = 0; k < 9; ++k) {
      const float x = k % 4 == 0 ? 2.5F : 0.125F;  // exact in both
      wide[k] = x;
      std::uint32_t bits = 0;
      std::memcpy(&bits, &x, sizeof bits);
      narrow[k] = static_cast<std::uint16_t>(
          dtype == DType::bf16 ? bits >> 16 : ((bits >> 23) - 112) << 10 | (bits >> 13 & 0x3ff));
    }
    HostDevice device;
    const std::int64_t n = 3;
    std::vector<std::byte> memory(
        static_cast<std::size_t>(Flow<float>::workspace({&n, 1}, PsdTask::inverse)));
    PsdItem item;
    item.a = array_ref(wide.data(), 3, 3);
    item.out = array_ref(want.data(), 3, 3);
    Flow<float>(device, {&item, 1}, PsdTask::inverse, memory.data()).run();
    item.a.data = narrow.data();
    item.a.dtype = dtype;
    item.out = array_ref(out.data(), 3, 3);
    Flow<float>(device, {&item, 1}, PsdTask::inverse, memory.data()).run();
    FF_CHECK(out == want);
  }
  // Every half number.
  for (int bits = 0; bits < 1 << 16; ++bits) {
    const float x = cuda::widen(Float16{static_cast<std::uint16_t>(bits)});
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double magnitude = exponent == 31  ? (fraction == 0 ? INFINITY : NAN)
                             : exponent == 0 ? std::ldexp(fraction, -24)
                                             : std::ldexp(1024 + fraction, exponent - 25);
    const double want = bits >> 15 != 0 ? -magnitude : magnitude;
    FF_CHECK(std::isnan(want) ? std::isnan(x) : static_cast<double>(x) == want);
  }
}

void index_maps() {
  for (std::int64_t k = 0; k < 5000; ++k) {
    const std::int64_t row = cuda::triangle_row(k);
    FF_CHECK(cuda::triangle(row) <= k && k < cuda::triangle(row + 1));
  }
  const std::int64_t far = cuda::triangle(40000) - 1;
  FF_CHECK(cuda::triangle_row(far) == 39999 && cuda::triangle_row(far + 1) == 40000);
  const std::vector<std::int64_t> starts = {0, 3, 3, 7, 8};
  const std::vector<std::int64_t> want = {0, 0, 0, 2, 2, 2, 2, 3};
  for (std::size_t k = 0; k < want.size(); ++k)
    FF_CHECK(cuda::find_start(starts.data(), 4, static_cast<std::int64_t>(k)) == want[k]);
}

}  // namespace

int main() {
  index_maps();
  narrow_storage();
  for (const PsdTask task : {PsdTask::cholesky, PsdTask::inverse, PsdTask::solve, PsdTask::eigh,
                             PsdTask::inverse_root}) {
    good_lists<float>(task);
    good_lists<double>(task);
    bad_matrices<float>(task);
    bad_matrices<double>(task);
    hard_matrices<float>(task);
    hard_matrices<double>(task);
    as_on_the_cpu<float>(task);
    as_on_the_cpu<double>(task);
  }
  return test::report();
}
