// SPDX-License-Identifier: Apache-2.0
#include "gram_slabs.hpp"

#include <algorithm>
#include <vector>

namespace fastfisher::cpu {
namespace {

constexpr std::int64_t kAlign = 64;

bool is_formed(const GramChunk& chunk) {
  return chunk.source != GramChunk::Source::input;
}

// Entries from one sample to the next, where these are long: whole cache lines, and an odd number
// of them, for rows that lie a multiple of 4 KiB apart fall on the same few places of a cache.
std::int64_t apart(std::int64_t entries, std::int64_t item) {
  constexpr std::int64_t line = 64, page = 4096;
  if (entries * item < page) return entries;
  return (ceil_div(entries * item, line) | 1) * line / item;
}

bool belongs(const GramChunk& chunk, const GramPiece& piece) {
  return piece.layer == chunk.layer && piece.group == chunk.group &&
         piece.patches == (chunk.source == GramChunk::Source::patches);
}

}  // namespace

SlabCutter::SlabCutter(const GramShape& shape, std::int64_t item, GramPlan& plan)
    : shape_(shape),
      item_(item),
      plan_(plan),
      two_sides_(!shape.symmetric || plan.block_rows < shape.rows),
      left_samples_(block_samples(std::min(plan.block_rows, shape.rows), shape.left_outputs)),
      right_samples_(block_samples(std::min(plan.block_cols, shape.cols), shape.right_outputs)) {
  for (const bool gradients : {false, true}) {
    left_extents_[gradients] =
        panel_extent(gradients, plan.block_rows, shape.left_outputs, plan.mr);
    right_extents_[gradients] =
        panel_extent(gradients, plan.block_cols, shape.right_outputs, plan.nr);
  }
}

bool SlabCutter::two_sides() const {
  return two_sides_;
}

SlabCutter::Bytes SlabCutter::chunk_bytes(const GramChunk& chunk) const {
  const bool left =
      chunk.side != GramChunk::Side::right &&
      (two_sides_ || shape_.layers[static_cast<std::size_t>(chunk.layer)].packs_left(shape_));
  const bool right = chunk.side != GramChunk::Side::left;
  const std::int64_t bytes = chunk.depth * item_;
  return {left ? round_up(left_extents_[chunk.gradients] * bytes, kAlign) : 0,
          right ? round_up(right_extents_[chunk.gradients] * bytes, kAlign) : 0};
}

SlabCutter::Bytes SlabCutter::panel_bytes(const GramChunk& chunk) const {
  return chunk.in_place ? Bytes{} : chunk_bytes(chunk);
}

// What meets in place is read once for each tile, so that it should be in the cache with the
// panels. With several sums a chunk meets in all tiles before the next one: some of each, no more,
// for between slabs progress is told and an interrupt answered.
std::int64_t SlabCutter::in_place_bytes() const {
  constexpr std::int64_t kChunksOfEach = 32;
  std::int64_t most = 0;
  for (const GramChunk& chunk : plan_.chunks) {
    if (chunk.in_place) most = std::max(most, chunk_bytes(chunk).sum());
  }
  return plan_.shares == 1 ? most : kChunksOfEach * plan_.shares * most;
}

SlabCutter::Bytes SlabCutter::piece_bytes(const GramPiece& piece) const {
  const std::int64_t bytes = piece.sample_entries * item_;
  return {round_up(left_samples_ * bytes, kAlign),
          two_sides_ ? round_up(right_samples_ * bytes, kAlign) : 0};
}

// Adds the units of `chunk` to its piece. Chunks come layer by layer and group by group, so that it
// is one of the last two: gradients and, in S2, patches.
void SlabCutter::form(const GramChunk& chunk, std::vector<GramPiece>& pieces, Bytes& bytes) const {
  const LayerShape& layer = shape_.layers[static_cast<std::size_t>(chunk.layer)];
  const bool patches = chunk.source == GramChunk::Source::patches;
  std::size_t at = pieces.size();
  for (std::size_t back = 1; back <= std::min<std::size_t>(2, pieces.size()); ++back) {
    if (belongs(chunk, pieces[pieces.size() - back])) {
      at = pieces.size() - back;
      break;
    }
  }
  if (at == pieces.size()) pieces.push_back({chunk.layer, chunk.group, chunk.unit, 0, patches});
  GramPiece& piece = pieces[at];
  const Bytes before = piece_bytes(piece);
  piece.to = std::max(piece.to, chunk.unit + chunk.units);
  const std::int64_t outputs = patches ? 1 : shape_.formed_outputs(layer);
  piece.rows = round_up(outputs * (piece.to - piece.from), plan_.mr);
  piece.sample_entries =
      apart(piece.rows * (layer.padded + (layer.bias && !patches ? 1 : 0)), item_);
  const Bytes now = piece_bytes(piece);
  bytes.left += now.left - before.left;
  bytes.right += now.right - before.right;
}

// Adds what chunks [begin, end) need to the group at hand, which forms `bytes`; leaves it as it was
// where that is more than `limit`.
bool SlabCutter::form_all(std::size_t begin, std::size_t end, std::int64_t limit, Bytes& bytes) {
  std::vector<GramPiece>& pieces = plan_.groups.back().pieces;
  const std::size_t count = pieces.size(), kept = std::min<std::size_t>(2, count);
  std::array<GramPiece, 2> last;
  std::copy_n(pieces.end() - static_cast<std::ptrdiff_t>(kept), kept, last.begin());
  Bytes now = bytes;
  for (std::size_t c = begin; c < end; ++c) {
    if (is_formed(plan_.chunks[c])) form(plan_.chunks[c], pieces, now);
  }
  if (now.sum() <= limit) {
    bytes = now;
    return true;
  }
  pieces.resize(count);
  std::copy_n(last.begin(), kept, pieces.end() - static_cast<std::ptrdiff_t>(kept));
  return false;
}

// Whether the group at hand, which forms `bytes`, has room for all units of a micro tile or of a
// cache line of cotangents whose first one the chunk at `begin` needs, or no group would: kernels
// multiply whole tiles, and lines come from memory whole.
bool SlabCutter::fits_whole(std::size_t begin, std::int64_t limit, Bytes bytes) const {
  GramChunk tile = plan_.chunks[begin];
  const std::vector<GramPiece>& pieces = plan_.groups.back().pieces;
  const std::int64_t line = kAlign / item_, whole = line % plan_.mr == 0 ? line : plan_.mr;
  if (pieces.empty() || tile.source != GramChunk::Source::weights || tile.unit % whole != 0)
    return true;
  const std::int64_t width = shape_.layers[static_cast<std::size_t>(tile.layer)].group_out();
  tile.units = static_cast<std::int32_t>(std::min(whole, (tile.group + 1) * width - tile.unit));
  std::vector<GramPiece> more(pieces.end() - std::min<std::ptrdiff_t>(2, std::ssize(pieces)),
                              pieces.end());
  form(tile, more, bytes);
  if (bytes.sum() <= limit) return true;
  std::vector<GramPiece> alone;
  Bytes least;
  form(tile, alone, least);
  return least.sum() > limit;
}

void SlabCutter::close_group() {
  GramGroup& group = plan_.groups.back();
  group.last = plan_.slabs.size();
  std::int64_t left = 0, right = 0;
  for (GramPiece& piece : group.pieces) {
    piece.left_at = left / item_;
    piece.right_at = right / item_;
    left += piece_bytes(piece).left;
    right += piece_bytes(piece).right;
  }
  plan_.formed_left = std::max(plan_.formed_left, left);
  plan_.formed_right = std::max(plan_.formed_right, right);
}

bool SlabCutter::cut(std::int64_t panels, std::int64_t formed, bool single) {
  plan_.slabs.clear();
  plan_.groups.assign(1, {});
  plan_.left_bytes = plan_.right_bytes = plan_.formed_left = plan_.formed_right = 0;
  GramSlab slab;
  Bytes packed, touched, in_group;  // touched: packed, or met in place
  const std::int64_t reached = std::max(panels, in_place_bytes());
  const auto close = [&] {
    if (slab.last > slab.first) plan_.slabs.push_back(slab);
    plan_.left_bytes = std::max(plan_.left_bytes, packed.left);
    plan_.right_bytes = std::max(plan_.right_bytes, packed.right);
    slab.first = slab.last;
    packed = touched = {};
  };
  for (std::size_t begin = 0, end = 0; begin < plan_.chunks.size(); begin = end) {
    Bytes more, reach;
    bool forms = false;
    for (end = begin; end == begin || (end < plan_.chunks.size() && !plan_.chunks[end].atom);
         ++end) {
      more += panel_bytes(plan_.chunks[end]);
      reach += chunk_bytes(plan_.chunks[end]);
      forms = forms || is_formed(plan_.chunks[end]);
    }
    if (more.sum() > panels) return false;
    if (slab.last > slab.first &&
        (packed.sum() + more.sum() > panels || touched.sum() + reach.sum() > reached)) {
      if (single) return false;
      close();
    }
    if (forms && !(fits_whole(begin, formed, in_group) && form_all(begin, end, formed, in_group))) {
      if (single) return false;
      close();
      close_group();
      plan_.groups.push_back({plan_.slabs.size(), 0, {}});
      in_group = {};
      if (!form_all(begin, end, formed, in_group)) return false;
    }
    slab.last = end;
    packed += more;
    touched += reach;
  }
  close();
  close_group();
  return true;
}

SlabCutter::Extent SlabCutter::extent() const {
  Extent most;
  std::vector<GramPiece> pieces;
  Bytes packed, formed;
  for (const GramChunk& chunk : plan_.chunks) {
    if (chunk.atom) {
      pieces.clear();
      packed = formed = {};
    }
    packed += panel_bytes(chunk);
    if (is_formed(chunk)) form(chunk, pieces, formed);
    most.packed = std::max(most.packed, packed.sum());
    most.formed = std::max(most.formed, formed.sum());
    most.all_packed += panel_bytes(chunk).sum();
  }
  return most;
}

void SlabCutter::locate() {
  bool started = false;
  for (const GramGroup& group : plan_.groups) {
    std::size_t piece = 0;
    for (std::size_t k = group.first; k < group.last; ++k) {
      GramSlab& slab = plan_.slabs[k];
      slab.started = started;
      Bytes at;
      for (std::size_t c = slab.first; c < slab.last; ++c) {
        GramChunk& chunk = plan_.chunks[c];
        chunk.left_at = at.left / item_;
        chunk.right_at = at.right / item_;
        at += panel_bytes(chunk);
        started = started || (chunk.gradients && chunk.last);
        chunk.piece = -1;
        if (!is_formed(chunk)) continue;
        // Pieces lie in the order of the chunks, but for the two kinds of one group.
        piece -= piece > 0 ? 1 : 0;
        while (!belongs(chunk, group.pieces[piece])) ++piece;
        chunk.piece = static_cast<std::int32_t>(piece);
      }
    }
  }
}

}  // namespace fastfisher::cpu
