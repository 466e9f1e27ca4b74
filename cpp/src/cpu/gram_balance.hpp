// SPDX-License-Identifier: Apache-2.0
//
// Samples of opposed scale: where a[n] is huge and g[n] tiny for one sample and the other way round
// for another, no common scale of a and of g keeps both in the range of a product, though every
// Jacobian is an ordinary number. J[n] stays what it is when a[n] is multiplied by a power of two
// and g[n] divided by it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace fastfisher::cpu {

/// Largest magnitudes of the factors of each sample of a layer, and of w, which all share.
struct SampleScales {
  std::vector<double> a, g;
  double w = 1;
};

/// Whether products of samples that matter underflow when a and g are scaled as a whole by
/// `scale_a` and `scale_g` (that of w among it). 2^low: what may be squared.
inline bool opposed(const SampleScales& largest, double scale_a, double scale_g, int low) {
  double most = 0;
  for (std::size_t n = 0; n < largest.a.size(); ++n)
    most = std::max(most, largest.a[n] * scale_a * (largest.g[n] * largest.w * scale_g));
  if (most == 0) return false;
  const double least = std::ldexp(1.0, low);
  if (most < least) return true;
  for (std::size_t n = 0; n < largest.a.size(); ++n) {
    const double a = largest.a[n] * scale_a, g = largest.g[n] * largest.w * scale_g;
    if (a * g >= std::ldexp(most, -24) && std::min(a, g) < least) return true;
  }
  return false;
}

/// For each sample the exponent e with a[n] 2^e and g[n] 2^-e about equal; where one of them is
/// zero both do not matter, but must not stand out.
inline std::vector<int> balance(const SampleScales& largest) {
  const auto log = [](double x) { return std::ilogb(x); };
  int most = -4000;
  for (std::size_t n = 0; n < largest.a.size(); ++n) {
    if (largest.a[n] > 0 && largest.g[n] > 0)
      most = std::max(most, (log(largest.a[n]) + log(largest.g[n])) / 2);
  }
  std::vector<int> exponents(largest.a.size(), 0);
  for (std::size_t n = 0; n < largest.a.size(); ++n) {
    const double a = largest.a[n], g = largest.g[n];
    if (a > 0 && g > 0) {
      exponents[n] = (log(g) - log(a)) / 2;
    } else if (a > 0) {
      exponents[n] = most - log(a);
    } else if (g > 0) {
      exponents[n] = log(g) - most;
    }
  }
  return exponents;
}

}  // namespace fastfisher::cpu
