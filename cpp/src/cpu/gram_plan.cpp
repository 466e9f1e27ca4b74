// SPDX-License-Identifier: Apache-2.0
#include "gram_plan.hpp"

#include "gram_slabs.hpp"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

namespace fastfisher::cpu {
namespace {

// A tile's left panels and state stay in the second level (512 KiB here).
constexpr std::int64_t kTileRows = 96;
constexpr std::int64_t kTileCols = 256;
// Whole blocks of what meets in place, 4 x 6 or 3 x 4 rows, in whole panels.
constexpr std::int64_t kInPlaceTileRows = 48, kInPlaceTileCols = 96;
// Below this many rows a block packs its factors too often; then the depth is cut into slabs
// instead.
constexpr std::int64_t kGoodBlock = 640;
constexpr std::int64_t kTilesAThread = 8;
// What a thread forms at once: rows of gradients and columns of inputs, in whole panels.
constexpr std::int64_t kFormRows = 480, kFormCols = 960;
constexpr std::int64_t kFewFormRows = 48, kFewFormCols = 144;
// Panels of one slab: enough depth between two barriers, and no more fresh memory than that.
constexpr std::int64_t kSlabDepthBytes = 8192, kFormedDepthBytes = 6144, kUnfoldedDepthBytes = 4096;
constexpr std::int64_t kFewPanels = std::int64_t{1} << 20;
constexpr std::int64_t kAlign = 64;
// Times that a cut is tried again with less room.
constexpr int kTurns = 8;

// Tile edge near `wanted`, made of whole panels of samples where that is possible, so that the
// small product of the activations has no ragged edge either.
std::int64_t tile_edge(std::int64_t wanted, std::int64_t width, std::int64_t outputs,
                       std::int64_t extent) {
  const std::int64_t unit = width * outputs;
  const bool whole = unit <= 2 * wanted;
  const std::int64_t step = whole ? unit : width;
  const std::int64_t edge = std::max<std::int64_t>(1, (wanted + step / 2) / step) * step;
  return std::min(edge, round_up(std::max<std::int64_t>(extent, 1), width));
}

// Entries of the product of samples along a tile edge of `rows` rows.
std::int64_t sample_extent(std::int64_t rows, std::int64_t outputs, std::int64_t width,
                           bool whole) {
  if (outputs == 1) return rows;
  if (whole) return rows / outputs;
  // The tile may start inside a sample, and that sample inside a panel.
  return round_up(ceil_div(rows, outputs) + 1, width) + width;
}

struct Sizer {
  const GramShape& shape;
  std::int64_t item;
  int threads;
  GramPlan plan;

  [[nodiscard]] SlabCutter cutter() { return {shape, item, plan}; }
  bool cut(std::int64_t panels, std::int64_t formed) { return cutter().cut(panels, formed, false); }

  [[nodiscard]] bool any_formed() const {
    return std::any_of(shape.layers.begin(), shape.layers.end(),
                       [](const LayerShape& layer) { return layer.formed(); });
  }

  // Whether nearly all of the depth meets in place: only then has every thread work of its own
  // however few tiles there are.
  [[nodiscard]] bool mostly_in_place() const {
    std::int64_t others = 0;
    for (const LayerShape& layer : shape.layers) {
      if (!shape.in_place(layer))
        others += layer.positions() * (layer.in + layer.outputs * layer.out);
    }
    return shape.in_place_depth() > 8 * others;
  }

  // Formed rows of a row of the Gram.
  [[nodiscard]] std::int64_t summed_outputs() const {
    std::int64_t most = 1;
    if (shape.kind != GramOutputs::trace) return most;
    for (const LayerShape& layer : shape.layers) {
      if (layer.formed()) most = std::max(most, shape.formed_outputs(layer));
    }
    return most;
  }

  void set_blocks(std::int64_t row_blocks, std::int64_t col_blocks) {
    const auto edge = [](std::int64_t extent, std::int64_t blocks, std::int64_t tile) {
      return round_up(std::max<std::int64_t>(1, ceil_div(extent, blocks)), tile);
    };
    plan.block_rows = edge(shape.rows, row_blocks, plan.tile_rows);
    plan.block_cols = edge(shape.cols, col_blocks, plan.tile_cols);
    if (shape.symmetric) {
      // Both sides cut alike, so that a block on the diagonal meets itself.
      const std::int64_t both = std::max(plan.block_rows, plan.block_cols);
      plan.block_rows = round_up(both, plan.tile_rows);
      plan.block_cols = plan.block_rows;
    }
  }

  // Memory in which a thread forms gradients: panels of both factors and rows of padded input.
  void set_form(std::int64_t limit) {
    const auto set = [&](std::int64_t rows, std::int64_t cols) {
      rows = round_up(rows, plan.mr);
      cols = round_up(cols, plan.nr);
      plan.form_rows = rows;
      plan.form_cols = cols;
      std::int64_t left = 0, right = 0;
      for (const LayerShape& layer : shape.layers) {
        if (!layer.formed()) continue;
        const std::int64_t depth =
            std::min(kGramDepth, std::max<std::int64_t>(1, layer.positions()));
        const std::int64_t all = round_up(shape.formed_outputs(layer) * layer.group_out(), plan.mr);
        left = std::max(left, std::min(rows, all) * depth);
        right = std::max(right, std::min(cols, round_up(layer.padded, plan.nr)) * depth);
      }
      plan.form_left = round_up(left * item, kAlign) / item;
      plan.form_bytes = threads * (plan.form_left * item + round_up(right * item, kAlign) +
                                   round_up((plan.nr + 1) * kGramDepth * std::int64_t{8}, kAlign));
    };
    if (!any_formed()) return;
    set(kFormRows, kFormCols);
    if (plan.form_bytes > limit / 4) set(kFewFormRows, kFewFormCols);
  }

  // Products of samples in a tile, and a thread's memory for pairs of positions or copies of rows.
  void set_tile(std::int64_t limit) {
    // Blocks start where tiles of rows do, when square also those of the right side: only if both
    // edges are whole panels of samples does every tile start on such a panel.
    const bool whole = plan.tile_rows % (plan.mr * shape.left_outputs) == 0 &&
                       plan.tile_cols % (plan.nr * shape.right_outputs) == 0;
    const std::int64_t n = sample_extent(plan.tile_rows, shape.left_outputs, plan.mr, whole);
    const std::int64_t m = sample_extent(plan.tile_cols, shape.right_outputs, plan.nr, whole);
    plan.samples_entries = plan.pair_bytes = 0;
    for (const LayerShape& layer : shape.layers) {
      if (layer.has_samples(shape.kind))
        plan.samples_entries = round_up(n * m * item, kAlign) / item;
    }
    for (const LayerShape& layer : shape.layers) {
      std::int64_t bytes = 0;
      if (layer.method == GramMethod::s3 && layer.contracts(shape)) {
        bytes = (layer.right_positions * (plan.samples_entries + plan.nr) + kGramDepth * plan.nr) *
                    item +
                layer.right_positions * static_cast<std::int64_t>(sizeof(void*));
      } else if (layer.method == GramMethod::s2) {
        bytes = round_up(n, plan.mr) * kHalfFormedUnits * plan.nr * item;
      } else if (layer.form == LayerForm::jacobian && shape.in_place(layer)) {
        // Where there is room for it: else a few rows at a time, on the stack.
        bytes = plan.copied_bytes(item);
        if (threads * bytes > limit / 4) bytes = 0;
      }
      plan.pair_bytes = std::max(plan.pair_bytes, round_up(bytes, kAlign));
    }
  }

  [[nodiscard]] std::int64_t one_state() const {
    return round_up(plan.tile_rows * plan.tile_cols * 8, kAlign) +
           round_up(plan.tile_rows * plan.tile_cols * item, kAlign) + plan.samples_entries * item +
           round_up(plan.tile_cols * item, kAlign);
  }

  // What does not depend on how the parameters are cut.
  [[nodiscard]] std::int64_t fixed_bytes() const {
    return plan.form_bytes + threads * plan.pair_bytes + kAlign;
  }

  // Tiles of the largest block: the only one may lie on the diagonal of a symmetric Gram.
  [[nodiscard]] std::int64_t tiles() const {
    if (shape.symmetric && plan.block_rows >= shape.rows) return TileGrid(plan, shape, 0, 0).size();
    return ceil_div(std::min(plan.block_rows, shape.rows), plan.tile_rows) *
           ceil_div(std::min(plan.block_cols, shape.cols), plan.tile_cols);
  }

  void total() {
    plan.state_bytes = one_state();
    plan.states = plan.single_slab() && plan.shares == 1 ? threads : tiles() * plan.shares;
    plan.bytes = plan.left_bytes + plan.right_bytes + plan.formed_left + plan.formed_right +
                 plan.states * plan.state_bytes + fixed_bytes();
  }

  // Of slabs and groups, twice while they grow.
  [[nodiscard]] std::int64_t list_bytes() const {
    return 2 * static_cast<std::int64_t>(plan.slabs.size() * sizeof(GramSlab) +
                                         plan.groups.size() * sizeof(GramGroup));
  }

  [[nodiscard]] bool fits(std::int64_t limit) const { return plan.bytes + list_bytes() <= limit; }

  bool try_single(std::int64_t limit) {
    const std::int64_t states = plan.shares == 1 ? threads : tiles() * plan.shares;
    const std::int64_t most = limit - states * one_state() - fixed_bytes();
    if (!cutter().cut(most, most, true)) return false;
    total();
    return fits(limit);
  }

  bool try_slabs(std::int64_t limit) {
    const std::int64_t states = tiles() * plan.shares * one_state();
    if (states > limit / 2) return false;
    const std::int64_t most = limit - states - fixed_bytes();
    // Patches are unfolded once a group: few groups. Other inputs cost nothing to read again.
    const bool unfolds =
        std::any_of(shape.layers.begin(), shape.layers.end(), [](const LayerShape& layer) {
          return layer.formed() && layer.form == LayerForm::conv;
        });
    const std::int64_t depth = unfolds        ? kUnfoldedDepthBytes
                               : any_formed() ? kFormedDepthBytes
                                              : kSlabDepthBytes;
    const bool both = cutter().two_sides() ||
                      std::any_of(shape.layers.begin(), shape.layers.end(),
                                  [&](const LayerShape& layer) { return layer.packs_left(shape); });
    const std::int64_t packed_left = both ? plan.block_rows : 0;
    const std::int64_t wanted =
        std::min(most, std::max(kFewPanels, (packed_left + plan.block_cols) * depth));
    // What meets in place needs no panels.
    const SlabCutter::Extent extent = cutter().extent();
    const std::int64_t packed = std::min(wanted, extent.all_packed);
    // Where outputs are summed, c formed rows make one of the Gram.
    const std::int64_t stretch = 3 * (plan.block_rows + plan.block_cols) * summed_outputs() * depth;
    if (any_formed() && !unfolds && cut(wanted, std::min(stretch, most - packed))) {
      total();
      if (fits(limit)) return true;
    }
    if (extent.packed + extent.formed > most) return false;
    // As wanted, half of it for either, or no more panels than what cannot do without.
    const std::int64_t half = std::clamp(most / 2, extent.packed, most - extent.formed);
    for (const auto& [panels, rest] :
         {std::pair{wanted, most - packed}, std::pair{half, most - half},
          std::pair{extent.packed, most - extent.packed}}) {
      // The two sides may have their largest panels in different slabs, and lists grow: less is
      // formed at a time then.
      std::int64_t forms = rest;
      for (int turn = 0; turn < kTurns && cut(panels, forms); ++turn) {
        total();
        if (fits(limit)) return true;
        forms -= plan.bytes + list_bytes() - limit;
      }
    }
    return false;
  }
};

}  // namespace

std::int64_t panel_extent(bool gradients, std::int64_t block, std::int64_t outputs,
                          std::int64_t width) {
  if (gradients || outputs == 1) return round_up(block, width);
  return round_up(ceil_div(block, outputs) + 1, width);
}

SamplePanels sample_panels(std::int64_t block, std::int64_t from, std::int64_t count,
                           std::int64_t outputs, std::int64_t width) {
  const std::int64_t origin = block / outputs;
  const std::int64_t first = (from / outputs - origin) / width;
  const std::int64_t last = ((from + count - 1) / outputs - origin) / width;
  return {first, last - first + 1};
}

TileGrid::TileGrid(const GramPlan& plan, const GramShape& shape, std::int64_t i, std::int64_t j)
    : down(ceil_div(std::min(plan.block_rows, shape.rows - i), plan.tile_rows)),
      across(ceil_div(std::min(plan.block_cols, shape.cols - j), plan.tile_cols)) {
  before.assign(1, 0);
  for (std::int64_t r = 0; r < down; ++r) {
    const std::int64_t last_row = std::min(shape.rows, i + (r + 1) * plan.tile_rows) - 1;
    const std::int64_t used =
        shape.symmetric ? std::min(across, (last_row - j) / plan.tile_cols + 1) : across;
    before.push_back(before.back() + used);
  }
}

std::optional<GramPlan> gram_plan(const GramShape& shape, std::int64_t mr, std::int64_t nr,
                                  std::int64_t item_bytes, int threads, std::int64_t limit) {
  Sizer sizer{shape, item_bytes, std::max(threads, 1), {}};
  GramPlan& plan = sizer.plan;
  plan.mr = mr;
  plan.nr = nr;
  const std::int64_t shares = shape.shares();
  plan.shares = shares > 1 ? shares + 1 : 1;
  // The lists are beside the workspace, and within the limit too.
  plan.chunks = gram_chunks(shape, limit / static_cast<std::int64_t>(sizeof(GramChunk)));
  limit -= gram_list_bytes(shape, static_cast<std::int64_t>(plan.chunks.size()), item_bytes);
  if (plan.chunks.empty() || limit <= 0) return std::nullopt;
  const bool formed = sizer.any_formed();
  const bool in_place = sizer.mostly_in_place();
  std::int64_t wanted_rows = in_place ? kInPlaceTileRows : kTileRows;
  std::int64_t wanted_cols = in_place ? kInPlaceTileCols : kTileCols;
  // Small problems: smaller tiles, so that every thread has several, unless it has sums of its own.
  const auto few = [&] {
    if (in_place && shares >= 2 * threads) return false;
    const std::int64_t tiles =
        ceil_div(shape.rows, wanted_rows) * ceil_div(shape.cols, wanted_cols);
    return tiles * shares < kTilesAThread * threads * (shape.symmetric ? 2 : 1);
  };
  const auto done = [](Sizer& found) {
    found.cutter().locate();
    return std::move(found.plan);
  };
  while (threads > 1 && few() && (wanted_rows > 2 * mr || wanted_cols > 2 * nr)) {
    (wanted_cols > wanted_rows ? wanted_cols : wanted_rows) /= 2;
  }
  for (;;) {
    plan.tile_rows = tile_edge(wanted_rows, mr, shape.left_outputs, shape.rows);
    plan.tile_cols = tile_edge(wanted_cols, nr, shape.right_outputs, shape.cols);
    const std::int64_t most = std::max<std::int64_t>(
        {1, ceil_div(shape.rows, plan.tile_rows), ceil_div(shape.cols, plan.tile_cols)});
    const auto enough = [&] {
      return plan.block_rows >= std::min(shape.rows, kGoodBlock) &&
             plan.block_cols >= std::min(shape.cols, kGoodBlock);
    };
    sizer.set_form(limit);
    sizer.set_tile(limit);
    // Each block forms what it needs anew: where something is formed, few blocks matter most.
    for (std::int64_t blocks = 1; blocks <= most && !formed; ++blocks) {
      sizer.set_blocks(blocks, blocks);
      if (!enough()) break;
      if (sizer.try_single(limit)) return done(sizer);
    }
    for (std::int64_t blocks = 1; blocks <= most; blocks += std::max<std::int64_t>(1, blocks / 8)) {
      sizer.set_blocks(blocks, blocks);
      // Slabs keep panels in cache; a single one spares several blocks from forming anew.
      if (formed && blocks > 1 && sizer.try_single(limit)) return done(sizer);
      if (sizer.try_slabs(limit) || sizer.try_single(limit)) return done(sizer);
    }
    if (plan.tile_rows == mr && plan.tile_cols == nr) break;
    wanted_rows = std::max(mr, wanted_rows / 2);
    wanted_cols = std::max(nr, wanted_cols / 2);
    if (wanted_rows == mr && wanted_cols == nr) wanted_rows = wanted_cols = 1;
  }
  return std::nullopt;
}

}  // namespace fastfisher::cpu
