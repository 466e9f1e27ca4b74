// SPDX-License-Identifier: Apache-2.0
//
// Every instruction set's kernels of the inversion against plain loops, also those this machine
// would not choose.
#include "check.hpp"
#include "instruction_set.hpp"
#include "sweep_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace {

using namespace fastfisher::cpu;

std::mt19937 engine(5);

template <class T>
std::vector<T> normals(std::int64_t count) {
  std::normal_distribution<T> normal;
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = normal(engine);
  return values;
}

template <class T>
void products(const SweepKernels<T>& kernels) {
  const std::int64_t w = kernels.width;
  for (const std::int64_t depth : {0, 1, 3, 16, 97}) {
    for (std::int64_t rows = 1; rows <= 2 * w; ++rows) {
      for (const bool accumulate : {false, true}) {
        const std::int64_t pitch = (depth + 1) * w;
        const std::vector<T> left = normals<T>(2 * pitch), right = normals<T>(depth * w);
        const std::vector<T> before = normals<T>(2 * w * w);
        std::vector<T> c = before;
        kernels.product(left.data(), pitch, right.data(), depth, rows, c.data(), accumulate);
        double worst = 0;
        for (std::int64_t i = 0; i < rows; ++i) {
          for (std::int64_t j = 0; j < w; ++j) {
            const auto at = static_cast<std::size_t>(i * w + j);
            double sum = accumulate ? static_cast<double>(before[at]) : 0.0, size = 1;
            for (std::int64_t l = 0; l < depth; ++l) {
              const double x = left[static_cast<std::size_t>(i / w * pitch + l * w + i % w)];
              const double y = right[static_cast<std::size_t>(l * w + j)];
              sum += x * y;
              size += std::abs(x * y);
            }
            worst = std::max(worst, std::abs(static_cast<double>(c[at]) - sum) / size);
          }
        }
        FF_CHECK(worst <= 4 * static_cast<double>(std::numeric_limits<T>::epsilon()));
        const auto padded = static_cast<std::ptrdiff_t>((rows + w - 1) / w * w * w);
        FF_CHECK(std::equal(c.begin() + padded, c.end(), before.begin() + padded));
      }
    }
  }
}

template <class T>
void leaves(const SweepKernels<T>& kernels) {
  const std::int64_t w = kernels.width;
  for (std::int64_t size = 1; size <= w; ++size) {
    const std::vector<T> x = normals<T>(w * w);
    std::vector<T> a(static_cast<std::size_t>(w * w), std::numeric_limits<T>::quiet_NaN());
    const auto at = [&](std::int64_t i, std::int64_t j) {
      return static_cast<std::size_t>(i * w + j);
    };
    for (std::int64_t i = 0; i < size; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) {
        a[at(i, j)] = i == j ? T(-1) : T(0);
        for (std::int64_t l = 0; l < w; ++l) a[at(i, j)] -= x[at(i, l)] * x[at(j, l)];
      }
    }
    std::vector<T> inverse(a.size(), T(7));
    FF_CHECK(kernels.leaf(a.data(), size, inverse.data()) == 0);
    // L^-1 (-a) L^-T = I.
    double worst = 0;
    bool zero = true;
    for (std::int64_t i = 0; i < w; ++i) {
      for (std::int64_t j = 0; j < w; ++j) {
        if (j > i || i >= size) zero = zero && inverse[at(i, j)] == 0;
        double sum = 0;
        for (std::int64_t p = 0; p < size; ++p) {
          for (std::int64_t q = 0; q < size; ++q)
            sum -= static_cast<double>(inverse[at(i, p)]) * static_cast<double>(inverse[at(j, q)]) *
                   static_cast<double>(a[at(std::max(p, q), std::min(p, q))]);
        }
        worst = std::max(worst, std::abs(sum - (i == j && i < size ? 1 : 0)));
      }
    }
    FF_CHECK(zero);
    FF_CHECK(worst < 1000 * static_cast<double>(std::numeric_limits<T>::epsilon()));
    for (const T bad : {T(0), T(100), std::numeric_limits<T>::quiet_NaN()}) {
      std::vector<T> broken = a;
      broken[at(size / 2, size / 2)] = bad;
      FF_CHECK(kernels.leaf(broken.data(), size, inverse.data()) == size / 2 + 1);
    }
  }
}

// L x = b and L^T x = b, with columns of L in the tile, or rows.
template <class T>
void substitutions(const SweepKernels<T>& kernels) {
  const std::int64_t w = kernels.width;
  for (const bool transposed : {false, true}) {
    std::vector<T> tile = normals<T>(w * w);
    const std::vector<T> b = normals<T>(w * w);
    for (std::int64_t i = 0; i < w; ++i) {
      T& pivot = tile[static_cast<std::size_t>(i * w + i)];
      pivot = T(0.25) / (1 + std::abs(pivot));
    }
    std::vector<T> x = b;
    kernels.substitute(tile.data(), transposed, x.data());
    double worst = 0;
    for (std::int64_t i = 0; i < w; ++i) {
      for (std::int64_t j = 0; j < w; ++j) {
        double sum = -static_cast<double>(b[static_cast<std::size_t>(i * w + j)]), size = 1;
        for (std::int64_t p = transposed ? i : 0; p < (transposed ? w : i + 1); ++p) {
          const double l = tile[static_cast<std::size_t>(p * w + i)];
          const double term =
              static_cast<double>(x[static_cast<std::size_t>(p * w + j)]) * (p == i ? 1 / l : l);
          sum += term;
          size += std::abs(term);
        }
        worst = std::max(worst, std::abs(sum) / size);
      }
    }
    FF_CHECK(worst <= 8 * static_cast<double>(std::numeric_limits<T>::epsilon()));
  }
}

// Panels of a matrix of two full ones and an edge: loaded, then stored, against the entries.
template <class T>
void passes(const SweepKernels<T>& kernels) {
  const std::int64_t w = kernels.width, n = 2 * w + 4, lda = n + 3, height = 3 * w;
  const std::vector<T> a = normals<T>(n * lda), scale = normals<T>(n);
  const auto panel = [&](std::int64_t p, std::int64_t i) {
    return static_cast<std::size_t>((p * height - w * (p * (p + 1) / 2) + i) * w);
  };
  const T unit = T(0.5);
  for (const std::int64_t count : {1, 3, 4}) {
    std::vector<T> data(static_cast<std::size_t>(6 * w * w), T(9)), sums(a.size(), T(1));
    const std::vector<T> before = sums;
    const std::int64_t i = 2 * w, from = count == 3 ? w : 0;
    kernels.load(a.data() + i * lda + from, lda, count, i, from, 2 * w, scale.data(), unit,
                 data.data(), height, sums.data());
    bool same = true;
    double error = 0;
    for (std::int64_t j = 0; j < n; ++j) {
      double rows = 1, columns = 1;
      for (std::int64_t k = 0; k < n; ++k) {
        const auto taken = [&](std::int64_t r, std::int64_t c) {
          return r >= i && r < i + count && c >= from && c < 2 * w;
        };
        const auto size = [&](std::int64_t r, std::int64_t c) {
          return std::abs(static_cast<double>(a[static_cast<std::size_t>(r * lda + c)])) / 2;
        };
        if (taken(j, k)) {
          rows += size(j, k);
          const T want = a[static_cast<std::size_t>(j * lda + k)] *
                         -scale[static_cast<std::size_t>(j)] * scale[static_cast<std::size_t>(k)];
          same = same && data[panel(k / w, j) + static_cast<std::size_t>(k % w)] == want;
        }
        if (taken(k, j)) columns += size(k, j);
      }
      error = std::max(error, std::abs(static_cast<double>(sums[static_cast<std::size_t>(j)]) -
                                       (rows + columns - 1)));
    }
    FF_CHECK(same);
    FF_CHECK(error < 100 * static_cast<double>(std::numeric_limits<T>::epsilon()));
  }
  for (const std::int64_t count : {std::int64_t{1}, std::int64_t{3}, w, n - w}) {
    const std::vector<T> rows = normals<T>(n * w);
    std::vector<T> out(static_cast<std::size_t>(n * n), T(9)),
        lanes(static_cast<std::size_t>(n * w), T(1)), sums(static_cast<std::size_t>(w), T(1));
    const std::int64_t i = w, j = 0;
    kernels.store(rows.data(), count, i, j, scale.data(), unit, out.data(), n, lanes.data(),
                  sums.data());
    bool same = true;
    double error = 0;
    for (std::int64_t c = 0; c < w; ++c) {
      double sum = 1;
      for (std::int64_t r = 0; r < count; ++r) {
        const auto at = static_cast<std::size_t>(r * w + c);
        const T want = rows[at] * scale[static_cast<std::size_t>(i + r)] *
                       scale[static_cast<std::size_t>(j + c)];
        same = same && out[static_cast<std::size_t>((i + r) * n + j + c)] == want &&
               out[static_cast<std::size_t>((j + c) * n + i + r)] == want;
        error = std::max(error, std::abs(static_cast<double>(lanes[at]) - 1 -
                                         std::abs(static_cast<double>(want)) / 2));
        sum += std::abs(static_cast<double>(want)) / 2;
      }
      error =
          std::max(error, std::abs(static_cast<double>(sums[static_cast<std::size_t>(c)]) - sum));
    }
    const auto untouched =
        std::count(out.begin(), out.end(), T(9)) + static_cast<std::ptrdiff_t>(2 * count * w);
    FF_CHECK(same && untouched == static_cast<std::ptrdiff_t>(out.size()));
    FF_CHECK(error < 1000 * static_cast<double>(std::numeric_limits<T>::epsilon()));
  }
  const std::vector<T> from = normals<T>(w * w);
  std::vector<T> to(from.size());
  kernels.transpose(from.data(), to.data());
  bool same = true;
  for (std::int64_t i = 0; i < w; ++i) {
    for (std::int64_t j = 0; j < w; ++j)
      same = same &&
             to[static_cast<std::size_t>(j * w + i)] == from[static_cast<std::size_t>(i * w + j)];
  }
  FF_CHECK(same);
}

template <class T>
void kernels_agree(const SweepKernels<T>& kernels) {
  products(kernels);
  leaves(kernels);
  substitutions(kernels);
  passes(kernels);
}

}  // namespace

int main() {
  kernels_agree(sweep_kernels_base<float>());
  kernels_agree(sweep_kernels_base<double>());
#if defined(FF_HAVE_AVX2)
  if (has_avx2()) {
    kernels_agree(sweep_kernels_avx2<float>());
    kernels_agree(sweep_kernels_avx2<double>());
  }
#endif
#if defined(FF_HAVE_AVX512)
  if (has_avx512()) {
    kernels_agree(sweep_kernels_avx512<float>());
    kernels_agree(sweep_kernels_avx512<double>());
  }
#endif
  return fastfisher::test::report();
}
