// SPDX-License-Identifier: Apache-2.0
//
// What the kernels of psd know about one matrix, what they report of it, and the small things that
// they share: entries of any storage, powers of two, the task of a block.
#pragma once

#include "element.hpp"
#include "fastfisher/view.hpp"

#include <cmath>
#include <cstdint>
#include <limits>

namespace fastfisher::cuda {

/// What the kernels leave behind about one matrix; zeros before.
struct PsdState {
  std::uint64_t bad = 0;       ///< kFirst minus the position of the first NaN or infinity, or 0
  std::uint64_t bad_side = 0;  ///< the same in b
  std::uint64_t overflow = 0;  ///< not 0 if a result is not finite
  std::uint64_t a_norm = 0;    ///< bits of the infinity norm times 2^-a_power
  std::uint64_t x_norm = 0;
  std::int64_t minor = 0;  ///< order of the leading minor that is not positive, or 0
  double largest = 0;      ///< magnitude on the diagonal of a
  double low = 0;          ///< least and greatest pivot
  double high = 0;
  std::int64_t a_power = 0;
  std::int64_t x_power = 0;
  static constexpr std::uint64_t kFirst = std::numeric_limits<std::int64_t>::max();
};

/// One matrix as the kernels see it. Lists of them are sorted by size, largest first. Bodies copy
/// it: what is behind a pointer is read anew after every store.
template <class T>
struct PsdMatrix {
  const void* a = nullptr;  ///< [n,n] by the two strides, stored as `dtype`
  std::int64_t row_stride = 0, column_stride = 0;
  DType dtype = DType::f32;
  double damping = 0;
  std::int64_t n = 0;
  T* c = nullptr;      ///< [n,n] packed: the lower triangle is worked on
  T* out = nullptr;    ///< the result, packed; may be c
  T* scale = nullptr;  ///< [n] powers of two
  T* w = nullptr;      ///< [edge, pitch]: the panel of a step, transposed
  std::int64_t pitch = 0;
  T* factor = nullptr;  ///< inverses of the factors of diagonal blocks, [factors, edge, edge]
  std::int64_t factor_pitch = 0, factors = 0;
  double* sums = nullptr;  ///< [tiles of a pass, n]
  const T* b = nullptr;    ///< [n, columns] by the two strides
  std::int64_t b_row_stride = 0, b_column_stride = 0, columns = 0;
  PsdState* state = nullptr;
  bool vector = false;  ///< rows of c begin at addresses that are a multiple of 16

  FF_HD T* factor_of(std::int64_t step) const {
    return factor + step % factors * factor_pitch * factor_pitch;
  }
};

FF_HD inline std::int64_t least_of(std::int64_t x, std::int64_t y) {
  return x < y ? x : y;
}
FF_HD inline std::int64_t blocks_of(std::int64_t n, std::int64_t edge) {
  return (n + edge - 1) / edge;
}
FF_HD inline std::int64_t triangle(std::int64_t rows) {
  return rows * (rows + 1) / 2;
}

/// Row of entry `index` of a lower triangle that is counted row by row.
FF_HD inline std::int64_t triangle_row(std::int64_t index) {
  auto row = static_cast<std::int64_t>((std::sqrt(8.0 * static_cast<double>(index) + 1) - 1) / 2);
  while (triangle(row) > index) --row;
  while (triangle(row + 1) <= index) ++row;
  return row;
}

/// The last of `count` ascending starts that is not above `index`.
FF_HD inline std::int64_t find_start(const std::int64_t* starts, std::int64_t count,
                                     std::int64_t index) {
  std::int64_t low = 0, high = count;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (starts[middle] <= index ? low : high) = middle;
  }
  return low;
}

FF_HD inline bool is_finite(double x) {
  return (bits_of(x) >> 52 & 0x7ff) != 0x7ff;
}

/// Exponent of a positive finite number.
FF_HD inline int exponent_of_double(double x) {
  int exponent = 0;
  std::frexp(x, &exponent);
  return exponent - 1;
}
/// 2^exponent, a normal number.
FF_HD inline double power_of_two(std::int64_t exponent) {
  return double_of(static_cast<std::uint64_t>(exponent + 1023) << 52);
}

/// Exponent of a power of two near x, whose inverse is a normal double; 0 for what has none.
FF_HD inline std::int64_t power_near_double(double x) {
  if (!(x > 0) || !is_finite(x)) return 0;
  const int exponent = exponent_of_double(x);
  return exponent > 1020 ? 1020 : exponent < -1020 ? -1020 : exponent;
}

/// The power of two 2^-ceil(e / 2) that brings a positive x of exponent e to between 1 and 4.
template <class T>
FF_HD T balancing(double x) {
  const int half = exponent_of_double(x);
  return static_cast<T>(power_of_two(-(half >= 0 ? half / 2 : -((1 - half) / 2))));
}

/// Largest of the values of all threads, in all threads.
template <int Threads, BlockContext Block>
FF_HD double largest_of_block(const Block& block, double (&values)[Threads], double mine) {
  const int t = block.thread();
  block.sync();
  values[t] = mine;
  for (int size = Threads; size > 1; size = (size + 1) / 2) {
    const int half = (size + 1) / 2;
    block.sync();
    if (t + half < size && values[t] < values[t + half]) values[t] = values[t + half];
  }
  block.sync();
  return values[0];
}

}  // namespace fastfisher::cuda
