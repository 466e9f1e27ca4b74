// SPDX-License-Identifier: Apache-2.0
//
// Sizes of a dense Gram: what is packed together, which tiles, how many bytes. See gram.cpp for the
// algorithm.
#pragma once

#include "fastfisher/ops.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace fastfisher::cpu {

/// A stretch of one product's depth that is packed and multiplied at once. Its bounds depend on the
/// depth alone, so that memory and threads never change the order of a sum.
struct GramChunk {
  int layer = 0;
  bool gradients = false;  ///< product of the rows of g, else of the rows of a
  std::int64_t from = 0;
  std::int64_t depth = 0;
  bool first = false;
  bool last = false;
};

struct GramShape {
  std::int64_t rows = 0, cols = 0;  ///< of one plane of the Gram
  std::int64_t left_outputs = 1,
               right_outputs = 1;  ///< rows of one sample (1 unless outputs = full)
  std::int64_t planes = 1;         ///< c for outputs = diagonal
  bool symmetric = false;
  std::vector<std::int64_t> depth_a, depth_g;  ///< by layer
};

struct GramPlan {
  std::int64_t mr = 0, nr = 0;
  std::int64_t tile_rows = 0, tile_cols = 0;  ///< multiples of mr and nr
  std::int64_t block_rows = 0,
               block_cols = 0;  ///< of the Gram, packed together; multiples of the tile
  std::vector<GramChunk> chunks;
  std::vector<std::size_t> slabs;  ///< slab s packs chunks slabs[s] .. slabs[s+1]-1
  // Bytes of the workspace, in this order: panels of the left, of the right, then the states of
  // tiles.
  std::int64_t left_bytes = 0, right_bytes = 0, state_bytes = 0;
  std::int64_t states = 0;  ///< one a thread with a single slab, else one a tile of the block
  std::int64_t bytes = 0;

  [[nodiscard]] bool single_slab() const { return slabs.size() == 2; }
};

GramShape gram_shape(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
                     GramOutputs outputs);

/// The plan with the fewest passes over the factors within `limit` bytes; ErrorCode::memory if none
/// fits.
GramPlan gram_plan(const GramShape& shape, std::int64_t mr, std::int64_t nr,
                   std::int64_t item_bytes, int threads, std::int64_t limit);

/// Samples that rows [from, from + count) of a block starting at row `block` touch, as whole panels
/// of that block.
struct SamplePanels {
  std::int64_t panel = 0;  ///< first panel, counted from the block's first sample
  std::int64_t panels = 0;
};
SamplePanels sample_panels(std::int64_t block, std::int64_t from, std::int64_t count,
                           std::int64_t outputs, std::int64_t width);

constexpr std::int64_t ceil_div(std::int64_t x, std::int64_t y) {
  return (x + y - 1) / y;
}
constexpr std::int64_t round_up(std::int64_t x, std::int64_t y) {
  return ceil_div(x, y) * y;
}

/// Rows of chunk panels in a block of `block` rows: its own rows for g, its samples for a. In
/// entries, padded.
std::int64_t panel_extent(bool gradients, std::int64_t block, std::int64_t outputs,
                          std::int64_t width);

}  // namespace fastfisher::cpu
