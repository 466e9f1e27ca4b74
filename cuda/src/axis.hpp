// SPDX-License-Identifier: Apache-2.0
//
// Where the entries of a strided operand lie: indices of a matrix' rows or depths that stand for up
// to four nested axes. For kernel bodies and their host side.
#pragma once

#include "block.hpp"

#include <cstdint>

namespace fastfisher::cuda {

// One index in memory. A convolution's input is read at the sum of two cells, one of a position and
// one of a feature, and is zero where the sum of their coordinates lies in the padding.
struct Cell {
  std::int64_t offset = 0;
  std::int32_t at[3] = {0, 0, 0};
};

// Nested axes as one index, innermost level first; strides count elements. Levels 0 to 2 advance
// coordinate 0 to 2 of a convolution's input by `step`.
struct Axis {
  std::int64_t count = 1;
  std::int64_t extents[3] = {1, 1, 1};  // of all levels but the last
  std::int64_t strides[4] = {0, 0, 0, 0};
  std::int32_t levels = 1;
  std::int32_t step[3] = {0, 0, 0}, base[3] = {0, 0, 0};
  std::int64_t origin = 0;  // offset of index 0
  std::int64_t start = 0;   // what is added to an index: a stretch of a longer axis

  [[nodiscard]] FF_HD Cell cell(std::int64_t index) const {
    Cell to;
    to.offset = origin;
    index += start;
    to.at[0] = base[0];
    to.at[1] = base[1];
    to.at[2] = base[2];
    FF_UNROLL
    for (int level = 0; level < 4; ++level) {
      const bool last = level == 3 || level + 1 >= levels;
      const std::int64_t extent = last ? 1 : extents[level % 3];
      const std::int64_t rest = last ? 0 : quotient(index, extent);
      const std::int64_t here = index - rest * extent;
      to.offset += here * strides[level];
      if (level < 3) to.at[level % 3] += static_cast<std::int32_t>(here) * step[level % 3];
      index = rest;
    }
    return to;
  }

  [[nodiscard]] FF_HD std::int64_t offset(std::int64_t index) const {
    if (levels == 1) return origin + (start + index) * strides[0];
    return cell(index).offset;
  }

  // A level further out, of `extent` indices; one that continues the last is joined to it.
  void nest(std::int64_t extent, std::int64_t stride) {
    count *= extent;
    if (extent == 1) return;
    if (last_ == 1) {
      strides[0] = stride;
      last_ = extent;
    } else if (stride == strides[levels - 1] * last_) {
      last_ *= extent;
    } else {
      extents[levels - 1] = last_;
      strides[levels++] = stride;
      last_ = extent;
    }
  }

 private:
  // Most indices fit into 32 bits, where a division costs a quarter.
  FF_HD static std::int64_t quotient(std::int64_t x, std::int64_t y) {
    if ((static_cast<std::uint64_t>(x) | static_cast<std::uint64_t>(y)) >> 32 != 0) return x / y;
    return static_cast<std::uint32_t>(x) / static_cast<std::uint32_t>(y);
  }

  std::int64_t last_ = 1;  // extent of the last level
};

}  // namespace fastfisher::cuda
