// SPDX-License-Identifier: Apache-2.0
//
// Sizes of J v; see jvp.cpp for the algorithm.
#pragma once

#include "contract_kernels.hpp"
#include "products.hpp"

#include <algorithm>
#include <cstdint>

namespace fastfisher::cpu {

// Cotangent rows that meet one z at a time.
constexpr std::int64_t kJvpOutputs = 4;
// The same where vectors go over columns: as many as there are registers for.
constexpr std::int64_t kJvpManyOutputs = 8;
// Entries that one sum takes without a break.
constexpr std::int64_t kJvpLongRow = 4096;
// The same where several columns pass by: rows of cotangents stay in the first cache level.
constexpr std::int64_t kJvpCachedRow = 1024;
// Positions of a block that are multiplied where they lie.
constexpr std::int64_t kJvpRows = 192;
// Rows of V, all columns counted, up to which that is worth it.
constexpr std::int64_t kJvpInPlace = 128;
// Rows of V in one block, all columns counted; more where a sample has positions enough, so that
// more of its cotangents follow each other in memory.
constexpr std::int64_t kJvpBlockRows = 512, kJvpManyBlockRows = 1024;
constexpr std::int64_t kJvpManyPositions = 48;
// Parameters of an explicit Jacobian that one stretch takes: it stays in cache for all samples.
constexpr std::int64_t kJvpStretch = 2048;
constexpr std::int64_t kJvpChunkBytes = std::int64_t{16} << 20;
constexpr std::int64_t kJvpInputBytes = 640 << 10;

/// What is packed, multiplied and summed together, and the memory that takes, in entries.
struct JvpPlan {
  std::int64_t columns = 0;
  std::int64_t units = 1, blocks = 1;  ///< units of a block; of an explicit Jacobian, parameters
  std::int64_t chunk = 1;              ///< blocks that are packed together
  std::int64_t samples = 1;            ///< of a group
  std::int64_t positions = 1;          ///< of one sample in a block of positions
  Panels vector, inputs;               ///< of a block of units, of positions
  bool in_place = false;  ///< inputs are not packed if they lie together: few panels read them
  std::int64_t shared_items = 0;  ///< of the chunk's panels of V
  // Of one thread: panels of the inputs, z, lines on their way, cotangents, sums.
  std::int64_t z = 0, lines = 0, rows = 0, sums = 0, thread_items = 0;
};

// Columns from which vectors go over columns: fewer would leave most of a vector empty.
constexpr std::int64_t kJvpColumnsInside = 8;

/// Whether rows of V and of z are (o, k), columns inside: then vectors go over columns. Else (k,
/// o).
inline bool columns_inside(const Piece& piece, std::int64_t columns) {
  return columns >= kJvpColumnsInside && !piece.explicit_form() && !piece.positions_inside() &&
         !piece.layer->separable();
}

/// How z of a block of units lies: rows of positions (inside: of units), columns of V `plane`
/// apart. Where panels of V hold whole columns, each column's z is one long row: `planar`.
struct ZLayout {
  bool planar;
  std::int64_t pitch, plane;
};

inline ZLayout z_layout(const Piece& piece, std::int64_t units, const Panels& inputs,
                        const Panels& vector, std::int64_t columns) {
  if (columns_inside(piece, columns)) return {false, vector.rows, 0};
  if (piece.positions_inside()) return {false, inputs.rows, units * inputs.rows};
  if (units % vector.width == 0) return {true, units, inputs.rows * units};
  return {false, vector.rows, units};
}

/// The plan for `columns` columns and entries of `item` bytes. Whatever decides the order of a sum
/// depends on the sizes alone, never on `threads`.
inline JvpPlan jvp_plan(const Piece& piece, std::int64_t columns, std::int64_t mr, std::int64_t nr,
                        std::int64_t item, int threads) {
  JvpPlan plan;
  plan.columns = columns;
  const std::int64_t share = std::max<std::int64_t>(1, piece.samples / (4 * threads));
  if (piece.explicit_form()) {
    plan.units = std::min(piece.features, kJvpStretch);
    plan.blocks = ceil_div(piece.features, plan.units);
    plan.samples = share;
    plan.vector.depth = plan.units;
    plan.vector.rows = columns;
    plan.positions = 0;
  } else {
    const bool inside = piece.positions_inside();
    const bool many = !inside && piece.positions >= kJvpManyPositions;
    const std::int64_t block = many ? kJvpManyBlockRows : kJvpBlockRows;
    // Whole panels, where there is room for one.
    const std::int64_t each = block / columns, whole = each < nr ? 16 : nr;
    plan.units = std::min(piece.units, std::max(whole, each / whole * whole));
    plan.blocks = ceil_div(piece.units, plan.units);
    const std::int64_t width = inside ? nr : mr;
    const std::int64_t most =
        std::clamp<std::int64_t>((inside ? 2 : 1) * kJvpInputBytes / (piece.depth() * item), 48,
                                 inside ? 1024 : kJvpRows) /
        width * width;
    if (piece.positions <= most) {
      plan.positions = piece.positions;
      // A convolution's sums depend on the samples of a group, see `together`: never on the
      // threads.
      plan.samples = std::min(most / std::max<std::int64_t>(1, piece.positions),
                              inside ? std::max<std::int64_t>(1, piece.samples / 16) : share);
      // Cotangents of a group come in during its product, if a cache holds them.
      const std::int64_t sample = piece.outputs * piece.positions * piece.units * item;
      if (many)
        plan.samples = std::clamp<std::int64_t>(kProductAhead / std::max<std::int64_t>(1, sample),
                                                1, plan.samples);
    } else {
      plan.positions = most;
    }
    plan.vector = Panels(piece.depth(), inside ? mr : nr, plan.units * columns);
    plan.in_place = !inside && plan.vector.rows <= kJvpInPlace;
    plan.inputs = Panels(piece.depth(), width, plan.samples * plan.positions);
    plan.z = plan.inputs.rows * plan.vector.rows + kWeighAhead;
    plan.lines = inside ? 0 : mr * piece.depth();
  }
  plan.chunk =
      std::clamp<std::int64_t>(kJvpChunkBytes / (plan.vector.size() * item), 1, plan.blocks);
  plan.shared_items = round_up(plan.chunk * plan.vector.size(), ProductScratch::kAlignment);
  plan.rows = std::max(plan.units, plan.positions);
  plan.sums = columns * std::max(kJvpManyOutputs, plan.units);
  plan.thread_items =
      round_up(plan.inputs.size() + plan.z + plan.lines + kJvpManyOutputs * plan.rows + plan.sums,
               ProductScratch::kAlignment);
  return plan;
}

}  // namespace fastfisher::cpu
