// SPDX-License-Identifier: Apache-2.0
//
// Where rows lie that were formed.
#pragma once

#include "gram_access.hpp"
#include "gram_plan.hpp"

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

}  // namespace fastfisher::cpu
