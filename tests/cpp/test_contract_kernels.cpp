// SPDX-License-Identifier: Apache-2.0
//
// Every instruction set's contractions against plain loops, also those this machine would not
// choose.
#include "check.hpp"
#include "contract_kernels.hpp"
#include "instruction_set.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace {

using fastfisher::cpu::ContractKernels;

template <class T>
std::vector<T> draw(std::int64_t count, std::mt19937& engine) {
  std::normal_distribution<T> normal;
  std::vector<T> x(static_cast<std::size_t>(count));
  for (T& entry : x) entry = normal(engine);
  return x;
}

template <class T>
bool near(T x, double expected, std::int64_t terms) {
  return std::abs(static_cast<double>(x) - expected) <=
         8 * static_cast<double>(terms + 1) *
             static_cast<double>(std::numeric_limits<T>::epsilon());
}

// x and y are rows of `count`; with weights[j][i] also y[j] (+)= sum_i weights[j][i] x[i].
template <class T>
void rows_agree(const ContractKernels<T>& kernels, std::int64_t xs, std::int64_t ys,
                std::int64_t count, std::mt19937& engine) {
  const std::vector<T> x = draw<T>(xs * count, engine), y = draw<T>(ys * count, engine);
  const std::vector<T> weights = draw<T>(xs * ys, engine);
  std::vector<const T*> x_rows, y_rows;
  for (std::int64_t i = 0; i < xs; ++i) x_rows.push_back(x.data() + i * count);
  for (std::int64_t j = 0; j < ys; ++j) y_rows.push_back(y.data() + j * count);
  std::vector<T> sums(static_cast<std::size_t>(xs * ys), T(0.5));
  // What is asked for ahead changes nothing.
  std::vector<T> same = sums;
  kernels.dots(x_rows.data(), xs, y_rows.data(), ys, count, sums.data(), 0);
  kernels.dots(x_rows.data(), xs, y_rows.data(), ys, count, same.data(), count);
  FF_CHECK(sums == same);
  for (std::int64_t i = 0; i < xs; ++i) {
    for (std::int64_t j = 0; j < ys; ++j) {
      double expected = 0.5;
      for (std::int64_t k = 0; k < count; ++k)
        expected += static_cast<double>(x_rows[static_cast<std::size_t>(i)][k]) *
                    static_cast<double>(y_rows[static_cast<std::size_t>(j)][k]);
      FF_CHECK(near(sums[static_cast<std::size_t>(i * ys + j)], expected, count));
    }
  }
  for (const bool accumulate : {false, true}) {
    std::vector<T> out = y;
    std::vector<T*> out_rows;
    for (std::int64_t j = 0; j < ys; ++j) out_rows.push_back(out.data() + j * count);
    kernels.combine(x_rows.data(), xs, weights.data(), out_rows.data(), ys, count, accumulate,
                    accumulate ? 3 * count : 0);
    for (std::int64_t j = 0; j < ys; ++j) {
      for (std::int64_t k = 0; k < count; ++k) {
        const auto at = static_cast<std::size_t>(j * count + k);
        double expected = accumulate ? static_cast<double>(y[at]) : 0;
        for (std::int64_t i = 0; i < xs; ++i)
          expected += static_cast<double>(weights[static_cast<std::size_t>(j * xs + i)]) *
                      static_cast<double>(x_rows[static_cast<std::size_t>(i)][k]);
        FF_CHECK(near(out[at], expected, xs));
      }
    }
  }
}

// Packed rows of z as they lie, with NaN behind them, which is read and forgotten.
template <class T>
void weighing_agrees(const ContractKernels<T>& kernels, std::int64_t xs, std::int64_t ys,
                     std::int64_t count, std::mt19937& engine) {
  const std::vector<T> x = draw<T>(xs * count, engine);
  std::vector<T> z = draw<T>(count * ys, engine);
  z.resize(z.size() + static_cast<std::size_t>(fastfisher::cpu::kWeighAhead - 1),
           std::numeric_limits<T>::quiet_NaN());
  std::vector<const T*> rows;
  for (std::int64_t i = 0; i < xs; ++i) rows.push_back(x.data() + i * count);
  std::vector<T> sums(static_cast<std::size_t>(xs * ys), T(0.5));
  kernels.weigh(rows.data(), xs, z.data(), ys, count, sums.data());
  for (std::int64_t i = 0; i < xs; ++i) {
    for (std::int64_t j = 0; j < ys; ++j) {
      double expected = 0.5;
      for (std::int64_t o = 0; o < count; ++o)
        expected += static_cast<double>(rows[static_cast<std::size_t>(i)][o]) *
                    static_cast<double>(z[static_cast<std::size_t>(o * ys + j)]);
      FF_CHECK(near(sums[static_cast<std::size_t>(i * ys + j)], expected, count));
    }
  }
}

template <class T>
void kernels_agree(const ContractKernels<T>& kernels) {
  std::mt19937 engine(7);
  for (const std::int64_t count : {1, 3, 15, 16, 17, 31, 33, 64, 129}) {
    for (const std::int64_t xs : {1, 2, 3, 4, 7}) {
      for (const std::int64_t ys : {1, 2, 5}) rows_agree(kernels, xs, ys, count, engine);
    }
  }
  for (const std::int64_t ys : {1, 4, 8, 10, 16, 17, 31, 32}) {
    for (const std::int64_t xs : {1, 3, 4, 8, 13}) {
      for (const std::int64_t count : {1, 2, 48}) weighing_agrees(kernels, xs, ys, count, engine);
    }
  }
  for (const std::int64_t width : {1, 4, 6, 8, 16}) {
    for (const std::int64_t depth : {1, 5, 16, 37}) {
      const std::vector<T> panel = draw<T>(width * depth, engine);
      std::vector<T> sums(static_cast<std::size_t>(width), T(0.5));
      kernels.sum_panel(panel.data(), width, depth, sums.data());
      for (std::int64_t i = 0; i < width; ++i) {
        double expected = 0.5;
        for (std::int64_t k = 0; k < depth; ++k)
          expected += static_cast<double>(panel[static_cast<std::size_t>(k * width + i)]);
        FF_CHECK(near(sums[static_cast<std::size_t>(i)], expected, depth));
      }
      // Lines further apart, more of them than a vector holds: the same bits.
      for (const std::int64_t copies : {1, 3}) {
        const std::int64_t all = copies * width, pitch = all + 5;
        std::vector<T> lines(
            (static_cast<std::size_t>(depth - 1) * static_cast<std::size_t>(pitch)) +
            static_cast<std::size_t>(all));
        for (std::int64_t k = 0; k < depth; ++k) {
          for (std::int64_t i = 0; i < all; ++i)
            lines[static_cast<std::size_t>(k * pitch + i)] =
                panel[static_cast<std::size_t>(k * width + i % width)];
        }
        std::vector<T> got(static_cast<std::size_t>(all), T(0.5));
        kernels.sum_lines(lines.data(), pitch, all, depth, got.data());
        for (std::int64_t i = 0; i < all; ++i)
          FF_CHECK(got[static_cast<std::size_t>(i)] == sums[static_cast<std::size_t>(i % width)]);
      }
    }
  }
}

}  // namespace

int main() {
  using namespace fastfisher::cpu;
  kernels_agree(contract_kernels_base<float>());
  kernels_agree(contract_kernels_base<double>());
#if defined(FF_HAVE_AVX2)
  if (has_avx2()) {
    kernels_agree(contract_kernels_avx2<float>());
    kernels_agree(contract_kernels_avx2<double>());
  }
#endif
#if defined(FF_HAVE_AVX512)
  if (has_avx512()) {
    kernels_agree(contract_kernels_avx512<float>());
    kernels_agree(contract_kernels_avx512<double>());
  }
#endif
  return fastfisher::test::report();
}
