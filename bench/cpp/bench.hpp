// SPDX-License-Identifier: Apache-2.0
//
// A small harness: interleave the rate of a matrix product, the case and its rival; report medians
// of ratios.
#pragma once

#include "fastfisher/ops.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

namespace fastfisher::bench {

template <class Function>
double seconds_of(Function&& function) {
  const auto start = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

template <class T>
std::vector<T> normal(std::int64_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<T> draw;
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = draw(engine);
  return values;
}

/// Rate of a call between two measured ones: that of a product in the mean of their times.
inline double between(double before, double after) {
  return 2 / (1 / before + 1 / after);
}

/// Flops a second of a square product of this size, the yardstick of every floor.
template <class T>
class MatmulRate {
 public:
  explicit MatmulRate(std::int64_t size, int threads)
      : size_(size), a_(normal<T>(size * size, 1)), b_(normal<T>(size * size, 2)), out_(a_.size()) {
    ctx_.threads = threads;
    measure();  // warm-up
  }
  double measure() {
    const double seconds = seconds_of([&] {
      matmul(ctx_, array_ref(a_.data(), size_, size_), array_ref(b_.data(), size_, size_),
             array_ref(out_.data(), size_, size_));
    });
    return 2.0 * static_cast<double>(size_ * size_) * static_cast<double>(size_) / seconds;
  }

 private:
  std::int64_t size_;
  std::vector<T> a_, b_, out_;
  Context ctx_;
};

}  // namespace fastfisher::bench
