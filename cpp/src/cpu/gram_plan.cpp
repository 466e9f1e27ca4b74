// SPDX-License-Identifier: Apache-2.0
#include "gram_plan.hpp"

#include <algorithm>
#include <optional>
#include <string>

namespace fastfisher::cpu {
namespace {

// A right panel of this depth (nr floats wide: 16 KiB) and a left one stay in the first cache
// level.
constexpr std::int64_t kDepth = 256;
// A tile's left panels and state stay in the second level (512 KiB here).
constexpr std::int64_t kTileRows = 96;
constexpr std::int64_t kTileCols = 256;
// Below this many rows a block packs its factors too often; then the depth is cut into slabs
// instead.
constexpr std::int64_t kGoodBlock = 640;
constexpr std::int64_t kTilesAThread = 16;
// Panels of one slab: enough depth between two barriers, and no more fresh memory than that.
constexpr std::int64_t kSlabDepthBytes = 8192;
constexpr std::int64_t kAlign = 64;

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

std::vector<GramChunk> chunks_of(const GramShape& shape) {
  std::vector<GramChunk> chunks;
  for (std::size_t layer = 0; layer < shape.depth_a.size(); ++layer) {
    for (const bool gradients : {false, true}) {
      const std::int64_t depth = gradients ? shape.depth_g[layer] : shape.depth_a[layer];
      const std::int64_t count = std::max<std::int64_t>(1, ceil_div(depth, kDepth));
      for (std::int64_t k = 0; k < count; ++k) {
        const std::int64_t from = depth * k / count;
        chunks.push_back({static_cast<int>(layer), gradients, from, depth * (k + 1) / count - from,
                          k == 0, k == count - 1});
      }
    }
  }
  return chunks;
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

  [[nodiscard]] std::int64_t chunk_bytes(const GramChunk& chunk, bool left) const {
    const std::int64_t extent =
        left ? panel_extent(chunk.gradients, plan.block_rows, shape.left_outputs, plan.mr)
             : panel_extent(chunk.gradients, plan.block_cols, shape.right_outputs, plan.nr);
    return round_up(extent * chunk.depth * item, kAlign);
  }

  [[nodiscard]] std::int64_t one_state() const {
    // Blocks start where tiles of rows do, when square also those of the right side: only if both
    // edges are whole panels of samples does every tile start on such a panel.
    const bool whole = plan.tile_rows % (plan.mr * shape.left_outputs) == 0 &&
                       plan.tile_cols % (plan.nr * shape.right_outputs) == 0;
    const std::int64_t p = sample_extent(plan.tile_rows, shape.left_outputs, plan.mr, whole) *
                           sample_extent(plan.tile_cols, shape.right_outputs, plan.nr, whole);
    return round_up(plan.tile_rows * plan.tile_cols * 8, kAlign) +
           round_up(plan.tile_rows * plan.tile_cols * item, kAlign) + round_up(p * item, kAlign) +
           round_up(plan.tile_cols * item, kAlign);
  }

  [[nodiscard]] std::int64_t tiles() const {
    return ceil_div(std::min(plan.block_rows, shape.rows), plan.tile_rows) *
           ceil_div(std::min(plan.block_cols, shape.cols), plan.tile_cols);
  }

  // Fill slabs of at most `budget` bytes of panels; false if a single chunk is larger.
  bool cut(std::int64_t budget) {
    plan.slabs.assign(1, 0);
    plan.left_bytes = plan.right_bytes = 0;
    std::int64_t left = 0, right = 0;
    for (std::size_t index = 0; index < plan.chunks.size(); ++index) {
      const std::int64_t more_left = chunk_bytes(plan.chunks[index], true);
      const std::int64_t more_right = chunk_bytes(plan.chunks[index], false);
      if (more_left + more_right > budget) return false;
      if (left + right + more_left + more_right > budget) {
        plan.slabs.push_back(index);
        left = right = 0;
      }
      left += more_left;
      right += more_right;
      plan.left_bytes = std::max(plan.left_bytes, left);
      plan.right_bytes = std::max(plan.right_bytes, right);
    }
    plan.slabs.push_back(plan.chunks.size());
    return true;
  }

  void total() {
    plan.state_bytes = one_state();
    plan.states = plan.single_slab() ? threads : tiles();
    plan.bytes = plan.left_bytes + plan.right_bytes + plan.states * plan.state_bytes + kAlign;
  }

  bool try_single(std::int64_t limit) {
    const std::int64_t states = threads * one_state();
    if (!cut(limit - states - kAlign) || !plan.single_slab()) return false;
    total();
    return plan.bytes <= limit;
  }

  bool try_slabs(std::int64_t limit) {
    const std::int64_t states = tiles() * one_state();
    if (states > limit / 2) return false;
    const std::int64_t wanted = std::max<std::int64_t>(
        std::int64_t{1} << 20, (plan.block_rows + plan.block_cols) * kSlabDepthBytes);
    if (!cut(std::min(wanted, limit - states - kAlign)) && !cut(limit - states - kAlign))
      return false;
    total();
    return plan.bytes <= limit;
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

GramShape gram_shape(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
                     GramOutputs outputs) {
  GramShape shape;
  shape.symmetric = right.empty();
  const LayerFactors& one = left.front();
  const LayerFactors& other = right.empty() ? one : right.front();
  const std::int64_t c = one.g.extent(1);
  const std::int64_t d = other.g.extent(1);
  if (outputs == GramOutputs::full) {
    shape.left_outputs = std::max<std::int64_t>(c, 1);
    shape.right_outputs = std::max<std::int64_t>(d, 1);
  }
  shape.rows = one.g.extent(0) * (outputs == GramOutputs::full ? c : 1);
  shape.cols = other.g.extent(0) * (outputs == GramOutputs::full ? d : 1);
  shape.planes = outputs == GramOutputs::diagonal ? c : 1;
  for (const LayerFactors& layer : left) {
    shape.depth_a.push_back(layer.a.extent(1));
    shape.depth_g.push_back(layer.g.extent(2) * (outputs == GramOutputs::trace ? c : 1));
  }
  return shape;
}

namespace {

// The plan, or nothing if none fits within `limit`.
std::optional<GramPlan> plan_within(const GramShape& shape, std::int64_t mr, std::int64_t nr,
                                    std::int64_t item_bytes, int threads, std::int64_t limit) {
  Sizer sizer{shape, item_bytes, std::max(threads, 1), {}};
  GramPlan& plan = sizer.plan;
  plan.mr = mr;
  plan.nr = nr;
  plan.chunks = chunks_of(shape);
  std::int64_t wanted_rows = kTileRows, wanted_cols = kTileCols;
  // Small problems: smaller tiles, so that every thread has several.
  const auto few = [&] {
    const std::int64_t tiles =
        ceil_div(shape.rows, wanted_rows) * ceil_div(shape.cols, wanted_cols);
    return tiles < kTilesAThread * threads * (shape.symmetric ? 2 : 1);
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
    for (std::int64_t blocks = 1; blocks <= most; ++blocks) {
      sizer.set_blocks(blocks, blocks);
      if (!enough()) break;
      if (sizer.try_single(limit)) return plan;
    }
    for (std::int64_t blocks = 1; blocks <= most; ++blocks) {
      sizer.set_blocks(blocks, blocks);
      if (sizer.try_slabs(limit) || sizer.try_single(limit)) return plan;
    }
    if (plan.tile_rows == mr && plan.tile_cols == nr) break;
    wanted_rows = std::max(mr, wanted_rows / 2);
    wanted_cols = std::max(nr, wanted_cols / 2);
    if (wanted_rows == mr && wanted_cols == nr) wanted_rows = wanted_cols = 1;
  }
  return std::nullopt;
}

}  // namespace

GramPlan gram_plan(const GramShape& shape, std::int64_t mr, std::int64_t nr,
                   std::int64_t item_bytes, int threads, std::int64_t limit) {
  if (const auto plan = plan_within(shape, mr, nr, item_bytes, threads, limit)) return *plan;
  // The figure to name is one that works: found by asking.
  std::int64_t needed = std::max<std::int64_t>(limit, 1024);
  while (!plan_within(shape, mr, nr, item_bytes, threads, needed)) needed += needed / 8;
  throw Error(ErrorCode::memory, "gram", "memory_limit",
              "needs about " + std::to_string(needed) + " bytes of workspace, got " +
                  std::to_string(limit));
}

}  // namespace fastfisher::cpu
