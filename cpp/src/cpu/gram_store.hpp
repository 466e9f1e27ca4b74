// SPDX-License-Identifier: Apache-2.0
//
// How a finished tile reaches the output.
#pragma once

#include "gram_access.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace fastfisher::cpu {

/// Writes rows x cols entries of `acc` (leading dimension ld) at (row, col) of the target, and when
/// `symmetric` only what lies on or below the diagonal, and its mirror image. False if an entry
/// overflows S.
template <class S>
bool store_tile(const Target& target, bool symmetric, std::int64_t row, std::int64_t rows,
                std::int64_t col, std::int64_t cols, const double* acc, std::int64_t ld) {
  auto* out = static_cast<S*>(target.data);
  const bool packed = target.packed_cols();
  bool bad = false;
  const auto to_output = [](double value) { return static_cast<S>(value); };
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t used = symmetric ? std::min(cols, row + r - col + 1) : cols;
    const double* from = acc + r * ld;
    S* line = out + target.row(row + r);
    if (packed) {
      line += target.col(col);
      for (std::int64_t q = 0; q < used; ++q) {
        line[q] = to_output(from[q]);
        bad |= !(std::abs(line[q]) <= std::numeric_limits<S>::max());
      }
    } else {
      for (std::int64_t q = 0; q < used; ++q) {
        const S value = to_output(from[q]);
        line[target.col(col + q)] = value;
        bad |= !(std::abs(value) <= std::numeric_limits<S>::max());
      }
    }
  }
  if (!symmetric) return !bad;
  // A squared norm, which only rounding can make negative.
  for (std::int64_t r = std::max<std::int64_t>(0, col - row); r < rows && row + r < col + cols;
       ++r) {
    S& entry = out[target.row(row + r) + target.col(row + r)];
    if (entry < 0) entry = 0;
  }
  // Row q of the mirror image is column q of the tile; square pieces keep both sides in cache.
  constexpr std::int64_t kPiece = 16;
  for (std::int64_t r0 = 0; r0 < rows; r0 += kPiece) {
    const std::int64_t r1 = std::min(rows, r0 + kPiece);
    for (std::int64_t q = 0; q < std::min(cols, row + r1 - 1 - col); ++q) {
      S* line = out + target.row(col + q);
      const std::int64_t start = std::max(r0, col + q - row + 1);
      if (packed) {
        line += target.col(row);
        for (std::int64_t r = start; r < r1; ++r) line[r] = to_output(acc[r * ld + q]);
      } else {
        for (std::int64_t r = start; r < r1; ++r)
          line[target.col(row + r)] = to_output(acc[r * ld + q]);
      }
    }
  }
  return !bad;
}

// Fresh pages of a large output cost as much as a layer when they come 4 KiB at a time. A hint,
// never an error.
inline void ask_for_huge_pages(const ArrayRef& out) {
  constexpr std::int64_t kLarge = std::int64_t{1} << 24;
  const std::int64_t bytes = out.size() * size_of(out.dtype);
  std::int64_t stride = 1;
  for (int r = out.rank - 1; r >= 0; stride *= out.extents[static_cast<std::size_t>(r--)]) {
    if (out.strides[static_cast<std::size_t>(r)] != stride) return;
  }
  if (bytes < kLarge) return;
  constexpr std::uintptr_t kPage = 4096;
  const auto start = (reinterpret_cast<std::uintptr_t>(out.data) + kPage - 1) / kPage * kPage;
  const auto end =
      (reinterpret_cast<std::uintptr_t>(out.data) + static_cast<std::uintptr_t>(bytes)) / kPage *
      kPage;
  madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
}

}  // namespace fastfisher::cpu
