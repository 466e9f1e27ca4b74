// SPDX-License-Identifier: Apache-2.0
//
// Products of rows that lie in memory as they are, vectors running along the depth: nothing is
// packed, and next to a diagonal little is computed in vain. A block of sums stays in registers
// for a stretch of the depth that keeps the rows on the right in the first cache level, and only
// then are the lanes of each added up. A part of tile_kernels_body.hpp, by whose rules it is
// compiled once for each instruction set.
#pragma once

#include "tile_pack_body.hpp"

#include <utility>

namespace fastfisher::cpu {
namespace {

// Of 32 registers 24 hold sums, 4 rows of the left and one a row of the right; of 16 12, 3 and 1.
constexpr std::int64_t kDotRows = FF_VECTOR_BYTES == 64 ? 4 : 3;
constexpr std::int64_t kDotCols = FF_VECTOR_BYTES == 64 ? 6 : 4;

// Of each stretch of 2 Block lanes of a, then of b, the first Block lanes (Part 0) or the others.
template <std::int64_t Block, int Part, class V, std::int64_t... Lane>
V pick(const V& a, const V& b, std::integer_sequence<std::int64_t, Lane...> /*lanes*/) {
  return __builtin_shufflevector(a, b, (Lane / Block * 2 * Block + Lane % Block + Part * Block)...);
}

// Lane l of the result: the lanes of sums[l * Count / lanes] that belong to it, added up.
template <class T, std::int64_t Count, class V = typename VectorOf<T>::type>
V add_lanes(const V* sums) {
  if constexpr (Count == 1) {
    return sums[0];
  } else {
    const V a = add_lanes<T, Count / 2>(sums), b = add_lanes<T, Count / 2>(sums + Count / 2);
    constexpr std::int64_t block = kLanes<T> / Count;
    constexpr auto lanes = std::make_integer_sequence<std::int64_t, kLanes<T>>();
    return pick<block, 0>(a, b, lanes) + pick<block, 1>(a, b, lanes);
  }
}

template <class T>
void dots_block(const T* const (&left)[kDotRows], const T* const (&right)[kDotCols],
                const Stretch* stretches, std::int64_t count, T* to, const char* ahead,
                std::int64_t step) {
  using V = typename VectorOf<T>::type;
  constexpr std::int64_t all = kDotRows * kDotCols, rest = all % kLanes<T>;
  static_assert(rest == 0 || rest == kLanes<T> / 2);
  V sum[all] = {};
  for (std::int64_t s = 0; s < count; ++s) {
    const std::int64_t end = stretches[s].from + stretches[s].length;
    for (std::int64_t k = stretches[s].from; k < end; k += kLanes<T>) {
      __builtin_prefetch(ahead, 0, 2);
      ahead += step;
      V x[kDotRows];
#pragma GCC unroll 4
      for (std::int64_t i = 0; i < kDotRows; ++i) x[i] = *reinterpret_cast<const V*>(left[i] + k);
#pragma GCC unroll 6
      for (std::int64_t j = 0; j < kDotCols; ++j) {
        const V y = *reinterpret_cast<const V*>(right[j] + k);
#pragma GCC unroll 4
        for (std::int64_t i = 0; i < kDotRows; ++i) sum[i * kDotCols + j] += x[i] * y;
      }
    }
  }
#pragma GCC unroll 6
  for (std::int64_t at = 0; at + kLanes<T> <= all; at += kLanes<T>)
    *reinterpret_cast<V*>(to + at) = add_lanes<T, kLanes<T>>(sum + at);
  if constexpr (rest != 0) {
    constexpr auto lanes = std::make_integer_sequence<std::int64_t, kLanes<T>>();
    const V pairs = add_lanes<T, rest>(sum + (all - rest));
    const V last = pick<1, 0>(pairs, pairs, lanes) + pick<1, 1>(pairs, pairs, lanes);
    *reinterpret_cast<V*>(to + (all - rest)) = last;
  }
}

// Whether the block of rows from i on is wholly above the diagonal.
inline bool is_skipped(std::int64_t i, std::int64_t rows, std::int64_t j, std::int64_t skew) {
  const std::int64_t last = rows - i < kDotRows ? rows - 1 : i + kDotRows - 1;
  return last + skew < j;
}

// What is asked for ahead comes a little with each block, a line every few steps of the depth.
template <class T>
void dots(const T* const* left, std::int64_t rows, const T* const* right, std::int64_t cols,
          const Stretch* stretches, std::int64_t count, std::int64_t skew, T* c, std::int64_t ldc,
          const Ahead& ahead) {
  std::int64_t blocks = 0, depth = 0;
  if (ahead.bytes > 0) {
    for (std::int64_t j = 0; j < cols; j += kDotCols) {
      for (std::int64_t i = 0; i < rows; i += kDotRows)
        blocks += is_skipped(i, rows, j, skew) ? 0 : 1;
    }
    for (std::int64_t s = 0; s < count; ++s) depth += stretches[s].length;
  }
  const std::int64_t share = blocks > 0 ? ahead.bytes / blocks + 1 : 0;
  const std::int64_t step = depth > 0 ? share * kLanes<T> / depth + 1 : 0;
  std::int64_t at = 0;
  T sums[kDotRows * kDotCols + kLanes<T>];
  const T *x[kDotRows], *y[kDotCols];
  for (std::int64_t j = 0; j < cols; j += kDotCols) {
    const std::int64_t across = cols - j < kDotCols ? cols - j : kDotCols;
    // Rows that are not there repeat the last one.
    for (std::int64_t q = 0; q < kDotCols; ++q) y[q] = right[j + (q < across ? q : across - 1)];
    for (std::int64_t i = 0; i < rows; i += kDotRows) {
      if (is_skipped(i, rows, j, skew)) continue;
      const std::int64_t down = rows - i < kDotRows ? rows - i : kDotRows;
      for (std::int64_t r = 0; r < kDotRows; ++r) x[r] = left[i + (r < down ? r : down - 1)];
      const bool asks = at < ahead.bytes;
      dots_block<T>(x, y, stretches, count, sums,
                    asks ? byte_of(ahead, at) : reinterpret_cast<const char*>(x[0]),
                    asks ? step : 0);
      at += share;
      for (std::int64_t r = 0; r < down; ++r) {
        T* const line = c + (i + r) * ldc + j;
        for (std::int64_t q = 0; q < across; ++q) line[q] = sums[r * kDotCols + q];
      }
    }
  }
}

}  // namespace
}  // namespace fastfisher::cpu
