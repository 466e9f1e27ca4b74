// SPDX-License-Identifier: Apache-2.0
//
// The bodies of the CUDA kernels on panels of vectors on the host, one std::thread per CUDA thread,
// against plain float64 loops over drawn sizes and strides. Under ThreadSanitizer a missing barrier
// shows as a race.
#include "check.hpp"
#include "draw.hpp"
#include "host_block.hpp"
#include "lanczos_problem.hpp"
#include "panel_steps_problem.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

namespace {

using namespace fastfisher;
using test::draw;
using test::HostBlock;
using test::launch;
using test::Strided;

// Rows without gaps along n, the other axes as drawn.
template <class T>
struct Panel {
  std::vector<T> memory;
  ArrayRef ref;

  Panel(std::int64_t e, std::int64_t rows, std::int64_t n) {
    const std::int64_t gap = draw(0, 2);
    memory.resize(static_cast<std::size_t>(e * rows * (n + gap)));
    std::normal_distribution<T> normal;
    for (T& value : memory) value = normal(test::engine);
    ref = array_ref(memory.data(), e, rows, n);
    ref.strides[1] = n + gap;
    ref.strides[0] = rows * (n + gap);
  }
  [[nodiscard]] double at(std::int64_t e, std::int64_t row, std::int64_t i) const {
    return static_cast<double>(view_of<const T, 3>(ref)(e, row, i));
  }
};

template <class T>
void panels() {
  using Dots = cuda::PanelDots<T, 2, 4, 4>;
  using Combine = cuda::PanelCombine<T, 4, 2, 4, 3>;
  const std::int64_t e = draw(1, 2), i = draw(1, 9), j = draw(1, 9), n = draw(1, 600);
  const Panel<T> x(e, i, n);
  Panel<T> y(e, j, n);
  const Strided<double> small({e, j, i});
  const double eps = std::numeric_limits<T>::epsilon();

  const cuda::PanelProblem combine = cuda::panel_problem(x.ref, y.ref, small.ref, draw(0, 1) == 0);
  const Panel<T> before = y;
  launch<Combine>(3, [&](const HostBlock& block, typename Combine::Shared& shared) {
    Combine::run(block, shared, combine);
  });
  bool close = true;
  for (std::int64_t b = 0; b < e; ++b) {
    for (std::int64_t r = 0; r < j; ++r) {
      for (std::int64_t at = 0; at < n; ++at) {
        const auto place = static_cast<std::size_t>((b * j + r) * y.ref.stride(1) + at);
        double sum = combine.keep ? static_cast<double>(before.memory[place]) : 0;
        double size = std::abs(sum);
        for (std::int64_t q = 0; q < i; ++q) {
          sum += small.at({b, r, q}) * x.at(b, q, at);
          size += std::abs(small.at({b, r, q}) * x.at(b, q, at));
        }
        close = close && std::abs(y.at(b, r, at) - sum) <= 12 * eps * size;
      }
    }
  }
  FF_CHECK(close);

  const cuda::PanelProblem dots = cuda::panel_problem(x.ref, y.ref, small.ref, false);
  launch<Dots>(3, [&](const HostBlock& block, typename Dots::Shared& shared) {
    Dots::run(block, shared, dots);
  });
  for (std::int64_t b = 0; b < e; ++b) {
    for (std::int64_t r = 0; r < j; ++r) {
      for (std::int64_t q = 0; q < i; ++q) {
        double sum = 0, size = 0;
        for (std::int64_t at = 0; at < n; ++at) {
          sum += y.at(b, r, at) * x.at(b, q, at);
          size += std::abs(y.at(b, r, at) * x.at(b, q, at));
        }
        FF_CHECK(std::abs(small.at({b, r, q}) - sum) <= 40 * eps * size);
      }
    }
  }
}

// Rows of x are unit vectors, so that what is left of y has zeros there.
template <class T>
void removal() {
  using Dots = cuda::PanelDots<T, 2, 4, 4>;
  using Combine = cuda::PanelCombine<T, 4, 2, 4, 3>;
  const std::int64_t e = draw(1, 2), i = draw(0, 9), j = draw(1, 9);
  const std::int64_t n = draw(20, draw(0, 1) == 0 ? 60 : 700);
  Panel<T> x(e, i, n), y(e, j, n);
  for (std::int64_t b = 0; b < e; ++b) {
    for (std::int64_t q = 0; q < i; ++q) {
      for (std::int64_t at = 0; at < n; ++at)
        view_of<T, 3>(x.ref)(b, q, at) = at == 2 * q + b ? T{1} : T{0};
    }
  }
  const Panel<T> before = y;
  const Strided<double> small({e, j, i + j});
  std::vector<double> workspace(
      static_cast<std::size_t>(cuda::PanelRemoval<Dots>::workspace(e, i, j, n)));
  const cuda::PanelRemoval<Dots> steps(x.ref, y.ref, small.ref, workspace.data());
  const auto dots = [](const cuda::PanelProblem& problem) {
    launch<Dots>(3, [&](const HostBlock& block, typename Dots::Shared& shared) {
      Dots::run(block, shared, problem);
    });
    if (problem.parts == 1) return;
    launch<Dots>(
        2, [&](const HostBlock& block, typename Dots::Shared&) { Dots::sum(block, problem); });
  };
  const auto combine = [](const cuda::PanelProblem& problem) {
    launch<Combine>(3, [&](const HostBlock& block, typename Combine::Shared& shared) {
      Combine::run(block, shared, problem);
    });
  };
  if (i > 0) {
    dots(steps.first_dots);
    combine(steps.first_combine);
    dots(steps.second_dots);
    combine(steps.second_combine);
  }
  dots(steps.inner);
  const double eps = std::numeric_limits<T>::epsilon();
  for (std::int64_t b = 0; b < e; ++b) {
    for (std::int64_t r = 0; r < j; ++r) {
      const auto start = static_cast<std::size_t>((b * j + r) * y.ref.stride(1));
      bool left = true;
      for (std::int64_t at = 0; at < n; ++at) {
        const bool gone = at >= b && (at - b) % 2 == 0 && (at - b) / 2 < i;
        const double was = static_cast<double>(before.memory[start + static_cast<std::size_t>(at)]);
        left = left && y.at(b, r, at) == (gone ? 0 : was);
        if (gone) FF_CHECK(small.at({b, r, (at - b) / 2}) == was);
      }
      FF_CHECK(left);
      for (std::int64_t s = 0; s < j; ++s) {
        double sum = 0, size = 0;
        for (std::int64_t at = 0; at < n; ++at) {
          sum += y.at(b, r, at) * y.at(b, s, at);
          size += std::abs(y.at(b, r, at) * y.at(b, s, at));
        }
        FF_CHECK(std::abs(small.at({b, r, i + s}) - sum) <= 40 * eps * size);
      }
    }
  }
}

// A block behind orthonormal rows, then the same block twice: singular.
template <class T>
void orthonormal_blocks() {
  using Dots = cuda::PanelDots<T, 2, 4, 4>;
  using Combine = cuda::PanelCombine<T, 4, 2, 4, 3>;
  using Turn = cuda::LanczosTurn<4, 16>;
  const std::int64_t e = draw(1, 2), p = draw(0, 9), b = draw(1, 4), gap = draw(1, 3);
  const std::int64_t n = draw(20, draw(0, 1) == 0 ? 60 : 600);
  Panel<T> basis(e, p + b + 1, n);
  for (std::int64_t m = 0; m < e; ++m) {
    for (std::int64_t q = 0; q < p; ++q) {
      for (std::int64_t at = 0; at < n; ++at)
        view_of<T, 3>(basis.ref)(m, q, at) = at == 2 * q + m ? T{1} : T{0};
    }
  }
  const Panel<T> before = basis;
  const std::int64_t step = draw(0, 1), width = p + b + gap;
  const Strided<double> small({2, e, b, width});
  using Problem = cuda::LanczosBlock<Dots>;
  const auto run = [&] {
    std::vector<double> workspace(static_cast<std::size_t>(Problem::workspace(e, b, p + b, n)),
                                  std::numeric_limits<double>::quiet_NaN());
    Problem problem(basis.ref, p, small.ref, step, workspace.data());
    const auto dots = [](const cuda::PanelProblem& of) {
      launch<Dots>(3, [&](const HostBlock& block, typename Dots::Shared& shared) {
        Dots::run(block, shared, of);
      });
      if (of.parts == 1) return;
      launch<Dots>(2,
                   [&](const HostBlock& block, typename Dots::Shared&) { Dots::sum(block, of); });
    };
    const auto combine = [](const cuda::PanelProblem& of) {
      launch<Combine>(3, [&](const HostBlock& block, typename Combine::Shared& shared) {
        Combine::run(block, shared, of);
      });
    };
    dots(problem.out_dots);
    if (p > 0) combine(problem.out_combine);
    for (const bool again : {false, true}) {
      problem.turn.again = again;
      dots(problem.sweep_dots);
      launch<Turn>(1, [&](const HostBlock& block, Turn::Shared& shared) {
        Turn::run(block, shared, problem.turn);
      });
      combine(problem.sweep_combine);
    }
  };
  run();
  const double eps = std::numeric_limits<T>::epsilon();
  bool orthonormal = true, equal = true, lower = true, near = true;
  for (std::int64_t m = 0; m < e; ++m) {
    for (std::int64_t j = 0; j < b; ++j) {
      for (std::int64_t i = 0; i < p + b; ++i) {
        double sum = 0;
        for (std::int64_t at = 0; at < n; ++at) sum += basis.at(m, p + j, at) * basis.at(m, i, at);
        orthonormal = orthonormal && std::abs(sum - (i == p + j ? 1 : 0)) <= 20 * eps;
      }
      for (std::int64_t k = j + 1; k < b; ++k) lower = lower && small.at({step, m, j, p + k}) == 0;
      near = near && small.at({step, m, j, width - 1}) < 1e-3;
      const auto start = static_cast<std::size_t>((m * (p + b + 1) + p + j) * basis.ref.stride(1));
      for (std::int64_t at = 0; at < n; ++at) {  // part basis + r q is what was there
        double sum = 0;
        for (std::int64_t i = 0; i < p + b; ++i)
          sum += small.at({step, m, j, i}) * basis.at(m, i, at);
        const double was = static_cast<double>(before.memory[start + static_cast<std::size_t>(at)]);
        equal = equal && std::abs(sum - was) <= 100 * eps * std::sqrt(static_cast<double>(n));
      }
    }
  }
  FF_CHECK(orthonormal);
  FF_CHECK(equal);
  FF_CHECK(lower);
  FF_CHECK(near);
  if (b == 1) return;
  for (std::int64_t at = 0; at < n; ++at)
    view_of<T, 3>(basis.ref)(0, p + 1, at) = view_of<T, 3>(basis.ref)(0, p, at) = T{0};
  run();
  FF_CHECK(std::isinf(small.at({step, 0, 0, width - 1})));
  FF_CHECK(e == 1 || small.at({step, 1, 0, width - 1}) < 1e-3);
}

// Numbers of other threads, blocks and dtypes are the same.
void drawn_rows() {
  const std::int64_t e = draw(1, 2), b = draw(1, 4), n = draw(1, 200), seed = draw(0, 1000);
  Panel<float> narrow(e, b, n);
  Panel<double> wide(e, b, n);
  const auto fill = [&]<class T>(Panel<T>& panel, auto body, std::int64_t blocks) {
    using Body = decltype(body);
    const ArrayRef& to = panel.ref;
    const cuda::PanelRows rows{to.data, to.stride(0), to.stride(1), b};
    launch<Body>(blocks, [&](const HostBlock& block, typename Body::Shared&) {
      Body::run(block, rows, e, n, seed);
    });
  };
  fill(narrow, cuda::DrawRows<float, 4>{}, 3);
  fill(wide, cuda::DrawRows<double, 8>{}, 1);
  double sum = 0, most = 0;
  bool same = true;
  for (std::int64_t m = 0; m < e; ++m) {
    for (std::int64_t j = 0; j < b; ++j) {
      for (std::int64_t i = 0; i < n; ++i) {
        const double value = narrow.at(m, j, i);
        same = same && value == wide.at(m, j, i);
        sum += value;
        most = std::max(most, std::abs(value));
      }
    }
  }
  FF_CHECK(same);
  FF_CHECK(most < 1);
  FF_CHECK(std::abs(sum) <= 4 * std::sqrt(static_cast<double>(e * b * n)));
}

template <class T>
void all() {
  for (int k = 0; k < 20; ++k) panels<T>();
  for (int k = 0; k < 15; ++k) removal<T>();
  for (int k = 0; k < 12; ++k) orthonormal_blocks<T>();
}

}  // namespace

int main() {
  all<float>();
  all<double>();
  for (int k = 0; k < 20; ++k) drawn_rows();
  return fastfisher::test::report();
}
