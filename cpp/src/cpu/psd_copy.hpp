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

/// A packed square; `run` entries of a row lie together wherever a multiple of it begins.
template <class T>
struct Square {
  T* data;
  std::int64_t n;
  static constexpr std::int64_t run = kCopyTile;
  [[nodiscard]] T* at(std::int64_t i, std::int64_t j) const { return data + i * n + j; }
};

/// c = sign D (A + damping I) D, lower triangle of rows from..to, D = diag(scale); false if an
/// entry is not finite.
template <class S, class T, class Layout>
bool load_rows(const View<const S, 2>& a, double damping, T sign, const T* scale, std::int64_t from,
               std::int64_t to, const Layout& c) {
  const std::int64_t step = a.stride(1);
  int bad = 0;
  for (std::int64_t i0 = from; i0 < to; i0 += kCopyTile) {
    const std::int64_t i1 = std::min(to, i0 + kCopyTile);
    for (std::int64_t j0 = 0; j0 < i1; j0 += kCopyTile) {
      for (std::int64_t i = std::max(i0, j0); i < i1; ++i) {
        const std::int64_t j1 = std::min(j0 + kCopyTile, i + 1);
        const S* const row = a.data + i * a.stride(0);
        const T mine = sign * scale[i];
        const auto copy = [&](auto stride) {
          for (std::int64_t first = j0; first < j1; first += c.run) {
            T* const out = c.at(i, first);
            const std::int64_t count = std::min(c.run, j1 - first);
            for (std::int64_t j = 0; j < count; ++j) {
              const T x = static_cast<T>(widen(row[(first + j) * stride]));
              bad |= static_cast<int>(is_bad(x));
              out[j] = x * mine * scale[first + j];
            }
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
    *c.at(i, i) =
        sign * static_cast<T>(x * static_cast<double>(scale[i]) * static_cast<double>(scale[i]));
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
    const int half = std::ilogb(x);
    return static_cast<T>(std::ldexp(1.0, -(half >= 0 ? half / 2 : -((1 - half) / 2))));
  };
  for (std::int64_t i = 0; i < n; ++i) {
    const double x = static_cast<double>(widen(a(i, i))) + damping;
    scale[i] = x > 0 && std::isfinite(x) ? power(x) : largest > 0 ? power(largest) : T(1);
  }
}

/// Infinity norm of A + damping I from its lower triangle, divided by 2^exponent. sums: n numbers.
template <class S, class T>
double norm_of(const View<const S, 2>& a, double damping, int exponent, T* sums) {
  const std::int64_t n = a.extent(0), step = a.stride(1);
  const T unit = static_cast<T>(std::ldexp(1.0, -exponent / 2));
  const T other = static_cast<T>(std::ldexp(1.0, -(exponent - exponent / 2)));
  std::fill(sums, sums + n, T(0));
  for (std::int64_t i = 0; i < n; ++i) {
    const S* const row = a.data + i * a.stride(0);
    T lanes[8] = {};
    const auto add = [&](auto stride) {
      std::int64_t j = 0;
      for (; j + 8 <= i; j += 8) {
        for (std::int64_t u = 0; u < 8; ++u) {
          const T x = std::abs(static_cast<T>(widen(row[(j + u) * stride]))) * unit * other;
          lanes[u] += x;
          sums[j + u] += x;
        }
      }
      for (; j < i; ++j) {
        const T x = std::abs(static_cast<T>(widen(row[j * stride]))) * unit * other;
        lanes[0] += x;
        sums[j] += x;
      }
    };
    if (step == 1) {
      add(std::integral_constant<std::int64_t, 1>{});
    } else {
      add(step);
    }
    for (const T lane : lanes) sums[i] += lane;
    const double diagonal = std::abs(static_cast<double>(widen(row[i * step])) + damping);
    sums[i] += static_cast<T>(std::ldexp(diagonal, -exponent));
  }
  return n > 0 ? static_cast<double>(*std::max_element(sums, sums + n)) : 0.0;
}

/// out = D C D and its mirror, from the lower triangle, for rows from..to; false on overflow. c may
/// be the lower triangle of out.
template <class T, class Layout>
bool store_symmetric(std::int64_t n, const Layout& c, const T* scale, std::int64_t from,
                     std::int64_t to, T* out) {
  int bad = 0;
  // A tile on its way to the other side: rows a power of two apart would evict each other.
  T tile[kCopyTile * (kCopyTile + 8)];
  constexpr std::int64_t kPitch = kCopyTile + 8;
  for (std::int64_t i0 = from; i0 < to; i0 += kCopyTile) {
    const std::int64_t i1 = std::min(to, i0 + kCopyTile);
    for (std::int64_t j0 = 0; j0 < i1; j0 += kCopyTile) {
      for (std::int64_t i = std::max(i0, j0); i < i1; ++i) {
        const std::int64_t j1 = std::min(j0 + kCopyTile, i + 1);
        T* const row = out + i * n;
        T* const line = tile + (i - i0) * kPitch - j0;
        const T mine = scale[i];
        for (std::int64_t first = j0; first < j1; first += c.run) {
          const T* const in = c.at(i, first);
          const std::int64_t count = std::min(c.run, j1 - first);
          for (std::int64_t j = 0; j < count; ++j) {
            const T x = in[j] * mine * scale[first + j];
            bad |= static_cast<int>(is_bad(x));
            row[first + j] = x;
            line[first + j] = x;
          }
        }
      }
      for (std::int64_t j = j0; j < std::min(j0 + kCopyTile, i1); ++j) {
        for (std::int64_t i = std::max(i0, j + 1); i < i1; ++i)
          out[j * n + i] = tile[(i - i0) * kPitch + j - j0];
      }
    }
  }
  return bad == 0;
}

/// Infinity norm of a packed symmetric matrix, divided by 2^exponent.
template <class T>
double norm_packed(std::int64_t n, const T* c, int exponent) {
  const T unit = static_cast<T>(std::ldexp(1.0, -exponent / 2));
  const T other = static_cast<T>(std::ldexp(1.0, -(exponent - exponent / 2)));
  T largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    T lanes[16] = {};
    std::int64_t j = 0;
    for (; j + 16 <= n; j += 16) {
      for (std::int64_t u = 0; u < 16; ++u) lanes[u] += std::abs(c[i * n + j + u]) * unit * other;
    }
    for (; j < n; ++j) lanes[0] += std::abs(c[i * n + j]) * unit * other;
    T sum = 0;
    for (const T lane : lanes) sum += lane;
    largest = std::max(largest, sum);
  }
  return static_cast<double>(largest);
}

}  // namespace fastfisher::cpu
