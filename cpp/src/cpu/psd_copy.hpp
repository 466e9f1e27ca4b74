// SPDX-License-Identifier: Apache-2.0
//
// Passes over a matrix before and after the arithmetic: read the lower triangle, scaled by powers
// of two; mirror and scale back. All go by square tiles, so that any strides are read at a bearable
// price.
#pragma once

#include "convert.hpp"
#include "fastfisher/view.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace fastfisher::cpu {

inline constexpr std::int64_t kCopyTile = 64;

/// Whether x is NaN or infinite, without a branch.
template <class T>
bool is_bad(T x) {
  using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
  constexpr Bits kExponent = std::bit_cast<Bits>(std::numeric_limits<T>::infinity());
  return (std::bit_cast<Bits>(x) & kExponent) == kExponent;
}

/// std::ilogb of a positive finite number and std::ldexp of 1 to a normal one, without a call.
inline int exponent_of(double x) {
  const auto field = static_cast<int>(std::bit_cast<std::uint64_t>(x) >> 52);
  return field != 0 ? field - 1023 : std::ilogb(x);
}
inline double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<std::uint64_t>(exponent + 1023) << 52);
}

/// Row-major position of the first NaN or infinity in the lower triangle, or -1.
template <class S>
std::int64_t first_bad(const View<const S, 2>& a) {
  for (std::int64_t i = 0; i < a.extent(0); ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      if (is_bad(widen(a(i, j)))) return i * a.extent(1) + j;
    }
  }
  return -1;
}

/// c = D (A + damping I) D, lower triangle of rows from..to, D = diag(scale); false if an entry is
/// not finite.
template <class S, class T>
bool load_rows(const View<const S, 2>& a, double damping, const T* scale, std::int64_t from,
               std::int64_t to, T* c) {
  const std::int64_t n = a.extent(0), step = a.stride(1);
  int bad = 0;
  for (std::int64_t i0 = from; i0 < to; i0 += kCopyTile) {
    const std::int64_t i1 = std::min(to, i0 + kCopyTile);
    for (std::int64_t j0 = 0; j0 < i1; j0 += kCopyTile) {
      for (std::int64_t i = std::max(i0, j0); i < i1; ++i) {
        const std::int64_t j1 = std::min(j0 + kCopyTile, i + 1);
        const S* const row = a.data + i * a.stride(0);
        T* const out = c + i * n;
        const T mine = scale[i];
        const auto copy = [&](auto stride) {
          for (std::int64_t j = j0; j < j1; ++j) {
            const T x = static_cast<T>(widen(row[j * stride]));
            bad |= static_cast<int>(is_bad(x));
            out[j] = x * mine * scale[j];
          }
        };
        if (step == 1) {
          copy(std::integral_constant<std::int64_t, 1>{});
        } else {
          copy(step);
        }
      }
    }
  }
  for (std::int64_t i = from; i < to && damping != 0; ++i) {
    const double x = static_cast<double>(widen(a(i, i))) + damping;
    // First one factor, then the other: their product may overflow.
    c[i * n + i] =
        static_cast<T>(x * static_cast<double>(scale[i]) * static_cast<double>(scale[i]));
  }
  return bad == 0;
}

/// Powers of two that bring the diagonal of A + damping I to between 1 and 4; where it is not
/// positive, that of the largest entry.
template <class S, class T>
void balance(const View<const S, 2>& a, double damping, T* scale) {
  const std::int64_t n = a.extent(0);
  double largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double x = static_cast<double>(widen(a(i, i))) + damping;
    if (std::isfinite(x)) largest = std::max(largest, x);
  }
  const auto power = [](double x) {
    const int half = exponent_of(x);
    return static_cast<T>(power_of_two(-(half >= 0 ? half / 2 : -((1 - half) / 2))));
  };
  for (std::int64_t i = 0; i < n; ++i) {
    const double x = static_cast<double>(widen(a(i, i))) + damping;
    scale[i] = x > 0 && std::isfinite(x) ? power(x) : largest > 0 ? power(largest) : T(1);
  }
}

/// out = D C D and its mirror, from the lower triangle, for rows from..to; false on overflow.
template <class T>
bool store_symmetric(std::int64_t n, const T* scale, std::int64_t from, std::int64_t to, T* c) {
  int bad = 0;
  // A tile on its way to the other side: rows a power of two apart would evict each other.
  T tile[kCopyTile * (kCopyTile + 8)];
  constexpr std::int64_t kPitch = kCopyTile + 8;
  for (std::int64_t i0 = from; i0 < to; i0 += kCopyTile) {
    const std::int64_t i1 = std::min(to, i0 + kCopyTile);
    for (std::int64_t j0 = 0; j0 < i1; j0 += kCopyTile) {
      for (std::int64_t i = std::max(i0, j0); i < i1; ++i) {
        const std::int64_t j1 = std::min(j0 + kCopyTile, i + 1);
        T* const row = c + i * n;
        const T mine = scale[i];
        for (std::int64_t j = j0; j < j1; ++j) {
          const T x = row[j] * mine * scale[j];
          bad |= static_cast<int>(is_bad(x));
          row[j] = x;
          tile[(i - i0) * kPitch + j - j0] = x;
        }
      }
      for (std::int64_t j = j0; j < std::min(j0 + kCopyTile, i1); ++j) {
        for (std::int64_t i = std::max(i0, j + 1); i < i1; ++i)
          c[j * n + i] = tile[(i - i0) * kPitch + j - j0];
      }
    }
  }
  return bad == 0;
}

}  // namespace fastfisher::cpu
