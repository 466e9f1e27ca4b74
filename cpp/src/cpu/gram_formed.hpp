// SPDX-License-Identifier: Apache-2.0
//
// Where what was formed of a group lies.
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

/// What was formed of a group for both sides of a block.
template <class T>
struct FormedGroup {
  const GramGroup* group = nullptr;
  const T *left = nullptr, *right = nullptr;
  bool together = false;  ///< the block meets itself: the right's is the left's
  std::int64_t first_left = 0, first_right = 0;  ///< samples

  /// Pointers to `count` rows from row `first` of the Gram on, for the depth of a chunk.
  void rows(const GramShape& shape, bool left_side, const GramChunk& chunk, std::int64_t first,
            std::int64_t count, const T** to) const {
    const GramPiece& piece = group->pieces[static_cast<std::size_t>(chunk.piece)];
    const T* formed = left_side || together ? left + piece.left_at : right + piece.right_at;
    const Rows rows = formed_rows(shape, left_side, chunk, piece, formed);
    const std::int64_t origin = left_side ? first_left : first_right;
    const T* data = static_cast<const T*>(rows.data);
    for (std::int64_t r = 0; r < count; ++r) {
      const std::int64_t row = first + r;
      to[r] = data + (row / rows.inner - origin) * rows.outer_stride +
              row % rows.inner * rows.inner_stride;
    }
  }

  /// Stretches of the depth of a chunk, which are the same for all rows; how many there are.
  std::int64_t stretches(const GramShape& shape, const GramChunk& chunk, Stretch* to) const {
    const GramPiece& piece = group->pieces[static_cast<std::size_t>(chunk.piece)];
    const Rows rows = formed_rows(shape, true, chunk, piece, left + piece.left_at);
    std::int64_t count = 0;
    for (std::int64_t done = 0; done < chunk.depth; ++count) {
      const std::int64_t k = chunk.from + done;
      to[count].from = k / rows.run * rows.run_stride + k % rows.run;
      to[count].length = std::min(chunk.depth - done, rows.run - k % rows.run);
      done += to[count].length;
    }
    return count;
  }
};

}  // namespace fastfisher::cpu
