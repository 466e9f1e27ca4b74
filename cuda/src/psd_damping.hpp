// SPDX-License-Identifier: Apache-2.0
//
// The ladder of dampings that automatic damping climbs, as on the CPU.
#pragma once

#include "block.hpp"

#include <cmath>
#include <cstdint>
#include <limits>

namespace fastfisher::cuda {

// Device code may read it, but not call epsilon() itself.
template <class T>
inline constexpr double kPsdEpsilon = static_cast<double>(std::numeric_limits<T>::epsilon());

/// Least and greatest damping that is tried for a matrix of n rows with this largest magnitude on
/// the diagonal; for a zero matrix the identity is the measure.
struct DampingRange {
  double least, most;
};

template <class T>
FF_HD DampingRange damping_range(std::int64_t n, double largest) {
  const double eps = kPsdEpsilon<T>, measure = largest > 0 ? largest : 1;
  const double root = std::sqrt(eps), sum = 8 * eps * static_cast<double>(n);
  return {8 * eps * measure, (root > sum ? root : sum) * measure};
}

/// The damping after `damping`: tenfold.
FF_HD inline double raised(double damping, const DampingRange& range) {
  const double next = damping == 0 ? range.least : damping * 10;
  return next < range.most ? next : range.most;
}

}  // namespace fastfisher::cuda
