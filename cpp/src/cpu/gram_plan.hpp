// SPDX-License-Identifier: Apache-2.0
//
// Sizes of a Gram: which method, what is packed together, which tiles, how many bytes. See gram.cpp
// for the algorithm.
#pragma once

#include "fastfisher/ops.hpp"
#include "rounding.hpp"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace fastfisher::cpu {

struct GramShape;

/// Rows at most that meet where they lie, formed or as the caller's Jacobian has them, and the
/// depth of a chunk of them: ten rows of it are in the first cache level, all of them in the
/// second.
inline constexpr std::int64_t kInPlaceRows = 256, kInPlaceDepth = 1024;

/// One layer as the engine sees it.
struct LayerShape {
  LayerForm form = LayerForm::dense;
  GramMethod method = GramMethod::s0;
  bool separable = false, bias = false;
  bool as_products = false;  ///< factors are of the type that products have
  std::int64_t outputs = 1;  ///< c, of the side with more
  std::int64_t left_positions = 1, right_positions = 1;  ///< s of either side
  std::int64_t in = 0, out = 1, groups = 1;              ///< i of one group, o of all
  std::int64_t padded = 0;                               ///< i in whole vectors, where formed

  [[nodiscard]] std::int64_t group_out() const { return out / groups; }
  /// Parameters, a bias among them.
  [[nodiscard]] std::int64_t entries() const { return out * (in + (bias ? 1 : 0)); }
  [[nodiscard]] std::int64_t positions() const {
    return left_positions > right_positions ? left_positions : right_positions;
  }
  /// Whether its Gram is a sum of entrywise products, (samples) o (outputs), rather than one
  /// product of gradients.
  [[nodiscard]] bool has_samples(GramOutputs kind) const {
    if (form == LayerForm::dense && method == GramMethod::s0) return true;
    if (nothing()) return false;
    return method == GramMethod::s0 || method == GramMethod::s3 ||
           (method == GramMethod::s4 && kind == GramOutputs::full);
  }
  /// Whether something of it is formed a slab at a time: gradients (S1), what all outputs share of
  /// them (S4), or the patches of a convolution (S3).
  [[nodiscard]] bool formed() const {
    if (method == GramMethod::s1) return form != LayerForm::jacobian;
    return method == GramMethod::s2 || method == GramMethod::s4 ||
           (method == GramMethod::s3 && form == LayerForm::conv);
  }
  /// Whether its Gram is zero for want of outputs, positions or parameters.
  [[nodiscard]] bool nothing() const {
    return outputs == 0 || left_positions == 0 || right_positions == 0 ||
           (in * out == 0 && !(bias && out > 0));
  }
  /// S3: whether P meets the cotangents of the right before those meet the left's; fewer
  /// multiply-adds where outputs meet outputs.
  [[nodiscard]] bool contracts(const GramShape& shape) const;
  /// Whether the left has panels of its own where a block meets itself: where one row of it at a
  /// time meets what was computed from the right, and where rows are so many that packing twice
  /// costs less than the products lose (2 %) by reading rows from panels of columns.
  [[nodiscard]] bool packs_left(const GramShape& shape) const;
};

struct GramShape {
  GramOutputs kind = GramOutputs::full;
  std::int64_t rows = 0, cols = 0;  ///< of one plane of the Gram
  std::int64_t left_outputs = 1,
               right_outputs = 1;  ///< rows of one sample (1 unless outputs = full)
  std::int64_t planes = 1;         ///< c for outputs = diagonal
  bool symmetric = false;
  std::int64_t grain = 1;  ///< of the rows of what is formed: whole vectors
  std::vector<LayerShape> layers;

  /// Outputs of one sample that a row of formed gradients goes through.
  [[nodiscard]] std::int64_t formed_outputs(const LayerShape& layer) const {
    return kind == GramOutputs::diagonal || layer.method == GramMethod::s4 ? 1 : layer.outputs;
  }
  /// Whether rows are so few that packing those of gradients costs more than it gains.
  [[nodiscard]] bool in_place() const { return std::max(rows, cols) <= kInPlaceRows; }
  [[nodiscard]] bool in_place(const LayerShape& layer) const {
    if (!in_place() || layer.nothing()) return false;
    if (layer.form == LayerForm::jacobian)
      return layer.as_products && layer.in >= kInPlaceDepth / 4;
    return layer.formed() && !layer.has_samples(kind) && layer.method != GramMethod::s2;
  }
  /// Depth that meets in place.
  [[nodiscard]] std::int64_t in_place_depth() const {
    std::int64_t depth = 0;
    for (const LayerShape& layer : layers) {
      if (!in_place(layer)) continue;
      const std::int64_t outputs =
          kind == GramOutputs::trace && layer.method != GramMethod::s4 ? layer.outputs : 1;
      const bool given = layer.form == LayerForm::jacobian;
      depth += outputs * (given ? layer.in : layer.padded * layer.out);
    }
    return depth;
  }
  /// Sums into which the chunks that meet in place are dealt out in turn, for few rows make few
  /// tiles; added up in the end. Of the shape alone, as all that decides on bits.
  [[nodiscard]] std::int64_t shares() const {
    if (!in_place()) return 1;
    const std::int64_t most = 512 / std::max({rows, cols, std::int64_t{32}});
    return std::clamp<std::int64_t>(in_place_depth() / (2 * kInPlaceDepth), 1, most);
  }
};

inline bool LayerShape::contracts(const GramShape& shape) const {
  return right_positions + shape.left_outputs < right_positions * shape.left_outputs;
}

inline bool LayerShape::packs_left(const GramShape& shape) const {
  constexpr std::int64_t kManyRows = 1536;
  return shape.rows > kManyRows || (!nothing() && (method == GramMethod::s2 ||
                                                   (method == GramMethod::s3 && contracts(shape))));
}

/// A stretch of one product's depth that is packed and multiplied at once. Its bounds depend on the
/// shapes alone, so that memory and threads never change the order of a sum.
struct GramChunk {
  enum class Source : std::int8_t { input, weights, ones, patches };
  enum class Side : std::int8_t { both, left, right };

  // Small: there is one for every few hundred parameters, and they count as scratch memory.
  std::int64_t from = 0;                   ///< first entry of the depth, within the source's rows
  std::int64_t unit = 0;                   ///< first o, or position
  std::int64_t group = 0;                  ///< of channels
  std::int64_t left_at = 0, right_at = 0;  ///< its panels, in entries from the slab's first
  std::int32_t layer = 0;
  std::int32_t depth = 0;         ///< at most kGramDepth, or kInPlaceDepth
  std::int32_t units = 1;         ///< that it goes through, of what is formed
  std::int32_t output = 0;        ///< c, where rows are samples and each output is a product (S2)
  std::int32_t piece = -1;        ///< of the group of slabs that holds it
  Source source = Source::input;  ///< the caller's array, or what is formed: weights, bias, patches
  Side side = Side::both;         ///< that packs it
  bool gradients = false;         ///< product of rows of outputs, else of rows of samples
  bool first = false;             ///< starts its product
  bool last = false;              ///< ends it; a product of gradients is folded then
  bool atom = false;              ///< a slab may begin here
  bool across = false;            ///< the depth runs over all outputs of the units (S1 of samples)
  bool in_place = false;          ///< rows meet where they lie, no panels
};

/// Units [from, to) of one group of channels of a layer that are formed together, for every sample
/// of a block.
struct GramPiece {
  int layer = 0;
  std::int64_t group = 0, from = 0, to = 0;
  bool patches = false;                    ///< units are positions, nothing is multiplied
  std::int64_t rows = 0;                   ///< of a sample: outputs times units, padded
  std::int64_t sample_entries = 0;         ///< rows x padded, then a row of biases
  std::int64_t left_at = 0, right_at = 0;  ///< in entries from the formed memory of the side
};

/// What is packed together.
struct GramSlab {
  std::size_t first = 0, last = 0;  ///< chunks [first, last)
  bool started = false;             ///< whether slabs before it folded something into the tiles
};

/// Slabs [first, last) whose gradients are formed together: forming likes long stretches, which
/// unfold an input once, packing short ones, which stay in cache.
struct GramGroup {
  std::size_t first = 0, last = 0;
  std::vector<GramPiece> pieces;
};

struct GramPlan {
  std::int64_t mr = 0, nr = 0;
  std::int64_t tile_rows = 0, tile_cols = 0;  ///< multiples of mr and nr
  std::int64_t block_rows = 0,
               block_cols = 0;  ///< of the Gram, packed together; multiples of the tile
  std::vector<GramChunk> chunks;
  std::vector<GramSlab> slabs;
  std::vector<GramGroup> groups;
  std::int64_t form_rows = 0, form_cols = 0;  ///< what a thread forms at once
  std::int64_t form_left = 0;                 ///< entries of its panels of rows
  // Bytes of the workspace, in this order: panels of the left, of the right; what is formed for the
  // left, for the right (none where they are the same); a thread's memory to form in; the states of
  // tiles.
  std::int64_t left_bytes = 0, right_bytes = 0, formed_left = 0, formed_right = 0, form_bytes = 0,
               state_bytes = 0;
  std::int64_t samples_entries = 0;  ///< of the product of samples in a tile
  std::int64_t pair_bytes =
      0;  ///< of a thread, for pairs of positions, copies of rows; behind the states
  std::int64_t states = 0;  ///< one a thread with a single slab, else one a tile of the block
  std::int64_t shares = 1;  ///< so many sums of each tile: one, or the shape's and one more
  std::int64_t bytes = 0;   ///< of the workspace

  /// Copies of the rows of a tile for the depth of a chunk.
  [[nodiscard]] std::int64_t copied_bytes(std::int64_t item) const {
    return (tile_rows + tile_cols) * kInPlaceDepth * item;
  }
  [[nodiscard]] bool single_slab() const { return slabs.size() == 1; }
  [[nodiscard]] std::int64_t blocks(const GramShape& shape) const {
    return ceil_div(shape.rows, block_rows);
  }
};

/// The sum that takes a chunk: those that meet in place are dealt out, if there are several, and
/// all others belong to the first.
inline std::int64_t share_of(const GramPlan& plan, std::size_t chunk) {
  if (plan.shares == 1 || !plan.chunks[chunk].in_place) return 0;
  return 1 + static_cast<std::int64_t>(chunk) % (plan.shares - 1);
}

/// Chunks [first, last) of a slab that a tile adds to one of its sums in one go.
struct GramStep {
  std::size_t first = 0, last = 0;
  std::int64_t share = 0;
  std::size_t next = 0;  ///< chunk of the same share that is next, where both meet in place, else 0
};

/// Stretch of the depth whose products are summed in registers: a right panel of this depth (16 KiB
/// of floats) and a left one stay in the first cache level.
inline constexpr std::int64_t kGramDepth = 256;

/// Units of a layer whose half-formed products are in the first cache level together (S2).
inline constexpr std::int64_t kHalfFormedUnits = 16;

/// Shapes of the layers and the method of each: the forced one, else the cheapest in predicted
/// time. Formed rows are padded to multiples of `nr`; products have `item` bytes.
/// ErrorCode::shape where a layer does not have the method that is forced.
GramShape gram_shape(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
                     GramOutputs outputs, std::int64_t nr, std::int64_t item);

/// Multiply-adds and predicted seconds of each layer.
std::vector<GramChoice> gram_choices(const GramShape& shape, std::int64_t item_bytes, int threads);

/// The chunks of all layers in order; none if there are more than `most`.
std::vector<GramChunk> gram_chunks(const GramShape& shape, std::int64_t most);

/// Bytes beside the workspace of so many chunks, of what is formed, and of copies of w.
std::int64_t gram_list_bytes(const GramShape& shape, std::int64_t chunks, std::int64_t item_bytes);

/// The plan with the fewest passes over the factors within `limit` bytes, its own lists among them,
/// or none if none fits.
std::optional<GramPlan> gram_plan(const GramShape& shape, std::int64_t mr, std::int64_t nr,
                                  std::int64_t item_bytes, int threads, std::int64_t limit);

/// Samples that rows [from, from + count) of a block starting at row `block` touch, as whole panels
/// of that block.
struct SamplePanels {
  std::int64_t panel = 0;  ///< first panel, counted from the block's first sample
  std::int64_t panels = 0;
};
SamplePanels sample_panels(std::int64_t block, std::int64_t from, std::int64_t count,
                           std::int64_t outputs, std::int64_t width);

/// Rows of chunk panels in a block of `block` rows: its own rows for gradients, its samples else.
/// In entries, padded.
std::int64_t panel_extent(bool gradients, std::int64_t block, std::int64_t outputs,
                          std::int64_t width);

/// Samples that a block of `block` rows may touch.
constexpr std::int64_t block_samples(std::int64_t block, std::int64_t outputs) {
  return outputs == 1 ? block : ceil_div(block, outputs) + 1;
}

/// Tiles of a block, and which of them hold something to compute: all, or when the block lies on
/// the diagonal of a symmetric Gram those that reach below it.
struct TileGrid {
  std::int64_t down = 0, across = 0;
  std::vector<std::int64_t> before;  ///< before[r]: tiles in rows of tiles above r; last: all

  TileGrid(const GramPlan& plan, const GramShape& shape, std::int64_t i, std::int64_t j);
  [[nodiscard]] std::int64_t size() const { return before.back(); }
};

}  // namespace fastfisher::cpu
