// SPDX-License-Identifier: Apache-2.0
//
// A lower triangle in panels of `width` columns from the diagonal down, [row][width]: half of the
// memory of a square, and tiles that follow each other in memory. On the way into the panels and
// out of them each entry is read once, scaled, and added to the sums of its row and column, which
// give the norm and tell whether all was finite.
#pragma once

#include "psd_copy.hpp"
#include "rounding.hpp"
#include "sweep_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace fastfisher::cpu {

/// The lower triangle of a matrix in panels, the last ones padded.
template <class T>
struct SweepPanels {
  T* data;
  std::int64_t rows, width;

  SweepPanels(T* data_, std::int64_t n, std::int64_t width_)
      : data(data_), rows(round_up(n, width_)), width(width_) {}
  /// Row i of panel p, not above the diagonal.
  [[nodiscard]] T* row(std::int64_t p, std::int64_t i) const {
    return data + (p * rows - width * (p * (p + 1) / 2) + i) * width;
  }
  [[nodiscard]] T& operator()(std::int64_t i, std::int64_t j) const {
    return row(j / width, i)[j % width];
  }
  static std::int64_t size(std::int64_t n, std::int64_t width) {
    const std::int64_t count = ceil_div(n, width);
    return count * (count + 1) / 2 * width * width;
  }
};

/// Rows of one call of the passes below, each of which has sums of its own.
inline constexpr std::int64_t kPassRows = 128;

/// Exponent of a power of two near x, whose inverse is a normal number; 0 for what has none.
template <class T>
int power_near(double x) {
  constexpr int most = std::numeric_limits<T>::max_exponent - 2;
  return x > 0 && std::isfinite(x) ? std::clamp(exponent_of(x), -most, most) : 0;
}

/// c = -D (A + damping I) D for rows from..to, D = diag(scale); sums += those of |A + damping I|
/// unit by rows and columns.
template <class S, class T>
void load_panels(const SweepKernels<T>& kernels, const View<const S, 2>& a, double damping,
                 const T* scale, T unit, std::int64_t from, std::int64_t to,
                 const SweepPanels<T>& c, T* sums) {
  constexpr std::int64_t kWide = 256;
  const std::int64_t width = c.width, step = a.stride(1);
  T wide[kSweepStrip * kWide];
  for (std::int64_t i = from; i < to; i += kSweepStrip) {
    // Strips never leave a row of tiles: its last tile is the one on the diagonal.
    const std::int64_t count = std::min(kSweepStrip, to - i), edge = i / width * width;
    const S* const rows = a.data + i * a.stride(0);
    if (std::is_same_v<S, T> && step == 1) {
      if constexpr (std::is_same_v<S, T>)
        kernels.load(rows, a.stride(0), count, i, 0, edge, scale, unit, c.data, c.rows, sums);
    } else {
      for (std::int64_t j = 0; j < edge; j += kWide) {
        const std::int64_t columns = std::min(kWide, edge - j);
        for (std::int64_t q = 0; q < columns; ++q) {
          for (std::int64_t r = 0; r < count; ++r)
            wide[r * kWide + q] = static_cast<T>(widen(rows[r * a.stride(0) + (j + q) * step]));
        }
        kernels.load(wide, kWide, count, i, j, j + columns, scale, unit, c.data, c.rows, sums);
      }
    }
    for (std::int64_t r = i; r < i + count; ++r) {
      for (std::int64_t j = edge; j < r; ++j) {
        const T x = static_cast<T>(widen(a(r, j)));
        c(r, j) = x * -scale[r] * scale[j];
        sums[r] += std::abs(x) * unit;
        sums[j] += std::abs(x) * unit;
      }
      const double x = static_cast<double>(widen(a(r, r))) + damping, mine = scale[r];
      // First one factor, then the other: their product may overflow.
      c(r, r) = -static_cast<T>(x * mine * mine);
      sums[r] += static_cast<T>(std::abs(x) * static_cast<double>(unit));
    }
  }
}

/// out = D C D for rows from..to, and its mirror; sums += those of |out| unit by rows and columns.
template <class T>
void store_panels(const SweepKernels<T>& kernels, const SweepPanels<T>& c, const T* scale, T unit,
                  std::int64_t n, std::int64_t from, std::int64_t to, T* out, T* sums) {
  const std::int64_t width = c.width;
  for (std::int64_t i0 = from; i0 < to; i0 += kSweepTile) {
    const std::int64_t i1 = std::min(to, i0 + kSweepTile);
    // Sums by rows, lane by lane.
    T lanes[kSweepTile * kSweepWidth] = {};
    for (std::int64_t j = 0; j < i1; j += width) {
      const std::int64_t i = std::max(i0, j + width);
      if (i < i1)
        kernels.store(c.row(j / width, i), i1 - i, i, j, scale, unit, out, n,
                      lanes + (i - i0) * width, sums + j);
    }
    for (std::int64_t i = i0; i < i1; ++i) {
      for (std::int64_t lane = 0; lane < width; ++lane) sums[i] += lanes[(i - i0) * width + lane];
      for (std::int64_t j = i / width * width; j <= i; ++j) {
        const T x = c(i, j) * scale[i] * scale[j];
        out[i * n + j] = out[j * n + i] = x;
        sums[i] += std::abs(x) * unit;
        if (j < i) sums[j] += std::abs(x) * unit;
      }
    }
  }
}

/// out = factor C for rows from..to, and its mirror.
template <class T>
void store_panels(const SweepKernels<T>& kernels, const SweepPanels<T>& c, T factor, std::int64_t n,
                  std::int64_t from, std::int64_t to, T* out) {
  const std::int64_t width = c.width;
  for (std::int64_t i0 = from; i0 < to; i0 += kSweepTile) {
    const std::int64_t i1 = std::min(to, i0 + kSweepTile);
    for (std::int64_t j = 0; j < i1; j += width) {
      const std::int64_t i = std::max(i0, j + width);
      if (i < i1)
        kernels.store(c.row(j / width, i), i1 - i, i, j, nullptr, factor, out, n, nullptr, nullptr);
    }
    for (std::int64_t i = i0; i < i1; ++i) {
      for (std::int64_t j = i / width * width; j <= i; ++j)
        out[i * n + j] = out[j * n + i] = c(i, j) * factor;
    }
  }
}

}  // namespace fastfisher::cpu
