// SPDX-License-Identifier: Apache-2.0
//
// Where rows lie that were formed, and those that meet in place.
#pragma once

#include "gram_access.hpp"
#include "gram_plan.hpp"
#include "tile_kernels.hpp"

#include <algorithm>
#include <cstdint>

namespace fastfisher::cpu {

/// Rows of a chunk in what was formed of its piece: of a sample [c][units][padded], then [c][units]
/// biases.
template <class T>
Rows formed_rows(const GramShape& shape, bool left, const GramChunk& chunk, const GramPiece& piece,
                 const T* formed) {
  const LayerShape& layer = shape.layers[static_cast<std::size_t>(chunk.layer)];
  const bool ones = chunk.source == GramChunk::Source::ones;
  const std::int64_t units = piece.to - piece.from;
  const std::int64_t unit = ones ? 1 : layer.padded;
  Rows rows;
  rows.data = formed + (ones ? piece.rows * layer.padded : 0) +
              ((piece.patches ? 0 : chunk.output * units) + chunk.unit - piece.from) * unit;
  rows.outer_stride = piece.sample_entries;
  rows.run = std::max<std::int64_t>(1, chunk.from + chunk.depth);
  rows.depth_stride = 1;
  if (chunk.across && chunk.units < units) {
    rows.run = chunk.units * unit;
    rows.run_stride = units * unit;
  }
  if (chunk.gradients && shape.kind == GramOutputs::full) {
    rows.inner = left ? shape.left_outputs : shape.right_outputs;
    rows.inner_stride = units * unit;
  }
  return rows;
}

/// Rows of both sides of a chunk that meets in place.
struct InPlace {
  Rows left, right;

  /// Pointers to `count` rows of a side from row `first` of the Gram on, where the depth of the
  /// chunk begins.
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

  /// Stretches of the depth, from where it begins; how many there are. Those of the sides are the
  /// same: what is formed lies alike, and the caller's rows are in one stretch.
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

 private:
  static std::int64_t offset(const Rows& rows, std::int64_t k) {
    return k / rows.run * rows.run_stride + k % rows.run * rows.depth_stride;
  }
};

}  // namespace fastfisher::cpu
