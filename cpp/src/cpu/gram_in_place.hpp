// SPDX-License-Identifier: Apache-2.0
//
// Rows of few gradients that meet where they lie, formed or the caller's own, without panels.
#pragma once

#include "gram_access.hpp"
#include "gram_plan.hpp"
#include "tile_kernels.hpp"

#include <algorithm>
#include <cstdint>

namespace fastfisher::cpu {

/// Rows of both sides of a chunk that meets in place.
struct InPlace {
  Rows left, right;

  /// c = left rows times right rows, `rows` from `row` and `cols` from `col` of the Gram on. The
  /// caller's rows may have their numbers apart, or need a power of two: they are copied, to
  /// `copies` (rows + cols of kInPlaceDepth) or, without it, a few at a time. `ahead` is asked for.
  template <class T>
  void product(const TileKernels<T>& kernels, const GramChunk& chunk, std::int64_t row,
               std::int64_t rows, std::int64_t col, std::int64_t cols, std::int64_t skew, T* c,
               std::int64_t ldc, T* copies, const Ahead& ahead) const {
    // Each stretch is a row of inputs, padded to 4 entries or more, but for the first and the last.
    Stretch stretches_of[kInPlaceDepth / 4 + 2];
    const T *x[kInPlaceRows], *y[kInPlaceRows];
    const std::int64_t count = stretches(chunk, stretches_of);
    pointers(left, chunk, row, rows, x);
    pointers(right, chunk, col, cols, y);
    const bool plain = is_plain(left) && is_plain(right);
    if (plain || copies != nullptr) {
      if (!plain) {
        straighten(left, chunk.depth, rows, x, copies);
        straighten(right, chunk.depth, cols, y, copies + rows * kInPlaceDepth);
      }
      kernels.dots(x, rows, y, cols, stretches_of, count, skew, c, ldc, ahead);
      return;
    }
    constexpr std::int64_t down = 4, across = 6;  // 80 KiB of float64
    T few_copies[(down + across) * kInPlaceDepth];
    for (std::int64_t q = 0; q < cols; q += across) {
      const std::int64_t few_cols = std::min(across, cols - q);
      straighten(right, chunk.depth, few_cols, y + q, few_copies + down * kInPlaceDepth);
      for (std::int64_t r = 0; r < rows; r += down) {
        const std::int64_t few_rows = std::min(down, rows - r);
        const T* few[down];
        std::copy(x + r, x + r + few_rows, few);
        straighten(left, chunk.depth, few_rows, few, few_copies);
        kernels.dots(few, few_rows, y + q, few_cols, stretches_of, count, skew + r - q,
                     c + r * ldc + q, ldc, {});
      }
    }
  }

  /// The left rows of a chunk, to be asked for before it is multiplied; nothing where they do not
  /// lie in stretches of one length.
  template <class T>
  [[nodiscard]] Ahead left_ahead(const GramChunk& chunk, std::int64_t row,
                                 std::int64_t rows) const {
    constexpr auto item = static_cast<std::int64_t>(sizeof(T));
    const std::int64_t within = left.run - chunk.from % left.run;
    const bool one = chunk.depth <= within;
    if (!is_plain(left) || left.inner != 1) return {};
    if (!one && (chunk.from % left.run != 0 || chunk.depth % left.run != 0)) return {};
    const T* first = nullptr;
    pointers(left, chunk, row, 1, &first);
    Ahead ahead;
    ahead.base = reinterpret_cast<const char*>(first);
    ahead.segment = (one ? chunk.depth : left.run) * item;
    ahead.inner = one ? 1 : chunk.depth / left.run;
    ahead.inner_pitch = left.run_stride * item;
    ahead.pitch = left.outer_stride * item;
    ahead.bytes = rows * chunk.depth * item;
    return ahead;
  }

 private:
  static bool is_plain(const Rows& side) { return side.depth_stride == 1 && side.scale == 1; }

  template <class T>
  static void straighten(const Rows& side, std::int64_t depth, std::int64_t count, const T** rows,
                         T* to) {
    if (is_plain(side)) return;
    const auto scale = static_cast<T>(side.scale);
    for (std::int64_t r = 0; r < count; ++r, to += kInPlaceDepth) {
      for (std::int64_t k = 0; k < depth; ++k) to[k] = rows[r][k * side.depth_stride] * scale;
      rows[r] = to;
    }
  }

  // Pointers to `count` rows of a side from row `first` of the Gram on, where the depth of the
  // chunk begins.
  template <class T>
  static void pointers(const Rows& rows, const GramChunk& chunk, std::int64_t first,
                       std::int64_t count, const T** to) {
    const T* data = static_cast<const T*>(rows.data) + offset(rows, chunk.from);
    for (std::int64_t r = 0; r < count; ++r) {
      const std::int64_t row = first + r;
      to[r] = data + (row / rows.inner - rows.origin) * rows.outer_stride +
              row % rows.inner * rows.inner_stride;
    }
  }

  // Stretches of the depth, from where it begins; how many there are. Those of the sides are the
  // same: what is formed lies alike, and the caller's rows are in one stretch.
  std::int64_t stretches(const GramChunk& chunk, Stretch* to) const {
    if (chunk.source == GramChunk::Source::input) {
      to[0] = {0, chunk.depth};
      return 1;
    }
    std::int64_t count = 0;
    for (std::int64_t done = 0; done < chunk.depth; ++count) {
      const std::int64_t k = chunk.from + done;
      to[count].from = offset(left, k) - offset(left, chunk.from);
      to[count].length = std::min(chunk.depth - done, left.run - k % left.run);
      done += to[count].length;
    }
    return count;
  }

  static std::int64_t offset(const Rows& rows, std::int64_t k) {
    return k / rows.run * rows.run_stride + k % rows.run * rows.depth_stride;
  }
};

}  // namespace fastfisher::cpu
