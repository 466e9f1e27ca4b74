// SPDX-License-Identifier: Apache-2.0
//
// The dampings that are tried, one after the other, until a matrix is positive definite.
#pragma once

#include "convert.hpp"
#include "fastfisher/view.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace fastfisher::cpu {

template <class S, class T>
class DampingLadder {
 public:
  explicit DampingLadder(const View<const S, 2>& a) : a_(a) {}

  /// Largest magnitude on the diagonal: that of a semi-definite matrix is its largest entry.
  [[nodiscard]] double largest_diagonal() const {
    double largest = 0;
    for (std::int64_t i = 0; i < a_.extent(0); ++i)
      largest = std::max(largest, std::abs(static_cast<double>(widen(a_(i, i)))));
    return largest;
  }

  /// Greatest damping that is tried; for a zero matrix the identity is the measure.
  [[nodiscard]] double greatest() const {
    return std::max(std::sqrt(kEps), 8 * kEps * static_cast<double>(a_.extent(0))) * measure();
  }

  /// The damping to try after one that was not enough, at most `most`.
  [[nodiscard]] double raised(double damping, double most) const {
    return std::min(most, damping == 0 ? 8 * kEps * measure() : damping * kRaise);
  }

 private:
  static constexpr double kRaise = 10;
  static constexpr double kEps = static_cast<double>(std::numeric_limits<T>::epsilon());

  [[nodiscard]] double measure() const {
    const double largest = largest_diagonal();
    return largest > 0 ? largest : 1;
  }

  View<const S, 2> a_;
};

}  // namespace fastfisher::cpu
