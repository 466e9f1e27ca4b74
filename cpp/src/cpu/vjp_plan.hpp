// SPDX-License-Identifier: Apache-2.0
//
// Sizes of J^T u; see vjp.cpp for the algorithm.
#pragma once

#include "products.hpp"

#include <algorithm>
#include <cstdint>

namespace fastfisher::cpu {

// Cotangent rows that are summed at a time: half as many where they have been asked for before, and
// lie a multiple of 4 KiB apart, of which the first cache level holds only eight.
constexpr std::int64_t kVjpOutputs = 16;
// Rows that one task packs: long enough for the kernels, short enough to balance.
constexpr std::int64_t kVjpTaskRows = 32;
constexpr std::int64_t kVjpTaskRowsMost = 1024;
// Rows that are packed together, and entries of theirs at most.
constexpr std::int64_t kVjpLines = 16;
constexpr std::int64_t kVjpLineEntries = 1 << 16;
// Slabs stay in a cache, but are long enough to pay for adding to W, and bounded.
constexpr std::int64_t kVjpSlabBytes = std::int64_t{5} << 20;
constexpr std::int64_t kVjpSlabRows = 1024;
constexpr std::int64_t kVjpMostBytes = std::int64_t{24} << 20;
// Rows of W in a range of units, all columns counted.
constexpr std::int64_t kVjpRangeRows = 2048;
// Tiles of W, all columns counted.
constexpr std::int64_t kVjpTileRows = 192;
constexpr std::int64_t kVjpTileFeatures = 256;
// Parts that keep sums of their own, what these take at most, and rows of the smallest one.
constexpr std::int64_t kVjpParts = 32;
constexpr std::int64_t kVjpPartRows = 2 * kProductDepth;
constexpr std::int64_t kVjpPanelBytes = std::int64_t{6} << 20;
// A convolution's input that one thread keeps with its channels innermost.
constexpr std::int64_t kVjpImageBytes = std::int64_t{4} << 20;
// Units whose parts are added up by one task.
constexpr std::int64_t kVjpJoined = 4;
// Parameters of an explicit Jacobian that one task sums.
constexpr std::int64_t kVjpStretch = 1024;

/// What is packed, multiplied and summed together, and the memory that takes, in entries.
struct VjpPlan {
  std::int64_t columns = 0;
  std::int64_t units = 1;      ///< of a range
  std::int64_t slab = 0;       ///< rows (n,s) of one
  std::int64_t task_rows = 1;  ///< of the slab, packed by one task
  std::int64_t together = 1;   ///< of those, packed together
  std::int64_t tile_units = 1, tile_features = 1;
  std::int64_t plane = 0;  ///< rows of the panels of h for one column
  Panels gradients, inputs;
  // Where W is small: how many parts the rows fall into, how many ranges the units, the memory of
  // one part; a slab is then what one thread packs and multiplies at a time.
  std::int64_t parts = 0, part_rows = 0, ranges = 1, part_items = 0;
  // Of a convolution whose features lie channels innermost: its panels of channels, the memory.
  std::int64_t channel_panels = 0, image = 0;
  std::int64_t shared_items = 0;
  // Of one thread: h and unfolded inputs on their way or a tile of W, cotangents, weights.
  std::int64_t tile = 0, lines = 0, rows = 0, thread_items = 0;
};

/// Decides whether the rows (n,s) fall into parts that each sum a W of their own, and sizes them.
inline bool vjp_parts(VjpPlan& plan, const Piece& piece, std::int64_t mr, std::int64_t nr,
                      std::int64_t item, int threads) {
  const std::int64_t all = piece.samples * piece.positions;
  const LayerFactors& layer = *piece.layer;
  std::int64_t features = round_up(piece.features, nr);
  plan.channel_panels = 0;
  if (piece.positions_inside() && piece.features == piece.row_features) {
    const std::int64_t taps = layer.conv.taps(), channels = piece.features / taps;
    const std::int64_t panels = ceil_div(channels, nr);
    std::int64_t plane = 1;
    for (int r = 2; r < layer.a.rank; ++r) plane *= layer.a.extent(r);
    // Padding of the channels must not cost much, nor the input too much memory.
    if (8 * taps * panels * nr <= 9 * features && panels * nr * plane * item <= kVjpImageBytes) {
      plan.channel_panels = panels;
      plan.image = (panels + 1) * nr * plane;
      features = taps * panels * nr;
    }
  }
  const std::int64_t plane = round_up(piece.units, mr);
  plan.part_items = round_up(plan.columns * plane * (features + 1), ProductScratch::kAlignment);
  const std::int64_t most =
      std::min({kVjpParts, kVjpMostBytes / (plan.part_items * item), ceil_div(all, kVjpPartRows)});
  const std::int64_t panels = kProductDepth * (plan.columns * plane + features) * item;
  if (most < 4 || panels > kVjpPanelBytes) return false;
  plan.parts = 4;
  while (2 * plan.parts <= most) plan.parts *= 2;
  plan.part_rows = ceil_div(all, plan.parts);
  plan.units = piece.units;
  plan.plane = plane;
  // Cotangents of the next rows come in during a product, if a cache holds them; short ones pay for
  // adding to the sums.
  const std::int64_t bytes = std::max<std::int64_t>(1, piece.outputs * piece.units * item);
  plan.slab = kProductDepth;
  const bool few = plan.columns <= 2 && !piece.positions_inside();
  while (few && plan.slab > 64 && plan.slab * bytes > kProductAhead) plan.slab /= 2;
  if (plan.slab * bytes > kProductAhead) plan.slab = kProductDepth;
  plan.ranges = std::min(ceil_div(threads, plan.parts), plane / mr);
  plan.gradients = Panels(plan.slab, mr, plan.columns * plane);
  plan.inputs = Panels(plan.slab, nr, features);
  plan.shared_items = plan.parts * plan.part_items;
  return true;
}

/// The plan for `columns` columns and entries of `item` bytes. Whatever decides the order of a sum
/// depends on the sizes alone, never on `threads`.
inline VjpPlan vjp_plan(const Piece& piece, std::int64_t columns, std::int64_t mr, std::int64_t nr,
                        std::int64_t item, int threads) {
  VjpPlan plan;
  plan.columns = columns;
  if (piece.explicit_form()) {
    plan.lines = columns * kVjpStretch;
    plan.rows = kVjpStretch;
  } else if (!vjp_parts(plan, piece, mr, nr, item, threads)) {
    plan.image = 0;
    plan.channel_panels = 0;
    const std::int64_t all = piece.samples * piece.positions;
    plan.units = std::min(piece.units, ceil_div(kVjpRangeRows, columns));
    const std::int64_t row =
        (round_up(piece.depth(), nr) + columns * round_up(plan.units, mr)) * item;
    plan.slab =
        std::min(std::max((piece.positions_inside() ? 2 : 1) * kVjpSlabBytes / row, kVjpSlabRows),
                 kVjpMostBytes / row);
    if (plan.slab >= all) {
      plan.slab = all;
    } else if (plan.slab >= piece.positions) {
      plan.slab -= plan.slab % piece.positions;
    }
    plan.plane = round_up(plan.units, mr);
    plan.gradients = Panels(plan.slab, mr, columns * plan.plane);
    plan.inputs = Panels(plan.slab, nr, piece.depth());
    plan.task_rows = std::clamp(plan.slab / (4 * threads), kVjpTaskRows, kVjpTaskRowsMost);
    // Whole planes of a convolution lie together in memory.
    if (piece.positions_inside() && piece.positions > 0)
      plan.task_rows = std::min(round_up(plan.task_rows, piece.positions), kVjpTaskRowsMost);
    plan.tile_units = std::min(plan.plane, std::max(mr, kVjpTileRows / columns / mr * mr));
    plan.tile_features = std::min(plan.inputs.rows, kVjpTileFeatures / nr * nr);
    // Smaller tiles where there would be too few for the threads.
    const auto few = [&] {
      return ceil_div(plan.units, plan.tile_units) * ceil_div(piece.depth(), plan.tile_features) <
             3 * threads;
    };
    while (threads > 1 && few() && plan.tile_features > 2 * nr)
      plan.tile_features = round_up(ceil_div(plan.tile_features, 2), nr);
    while (threads > 1 && few() && plan.tile_units > 2 * mr)
      plan.tile_units = round_up(ceil_div(plan.tile_units, 2), mr);
    plan.tile = columns * plan.tile_units * plan.tile_features;
    plan.shared_items = round_up(plan.gradients.size(), ProductScratch::kAlignment) +
                        round_up(plan.inputs.size(), ProductScratch::kAlignment);
  }
  if (!piece.explicit_form()) {
    if (piece.positions_inside()) {
      plan.lines = kVjpTaskRowsMost * std::max(columns * mr, nr);
      plan.rows = kVjpTaskRowsMost;
    } else {
      const std::int64_t line = std::max(columns * plan.units, piece.features);
      plan.together =
          std::clamp<std::int64_t>(kVjpLineEntries / std::max<std::int64_t>(1, line), 1, kVjpLines);
      plan.lines = plan.together * line;
      plan.rows = plan.units;
    }
  }
  plan.thread_items = std::max(plan.tile, plan.lines + kVjpOutputs * (plan.rows + columns));
  if (plan.parts > 0) {
    plan.thread_items = plan.gradients.size() + plan.inputs.size() + plan.image +
                        std::max(plan.thread_items, columns * kVjpJoined * piece.depth());
  }
  plan.thread_items = round_up(plan.thread_items, ProductScratch::kAlignment);
  return plan;
}

}  // namespace fastfisher::cpu
