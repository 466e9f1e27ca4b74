// SPDX-License-Identifier: Apache-2.0
//
// One Gram from its plan: blocks of rows, groups of slabs, forming, packing, tiles. See gram.cpp.
#pragma once

#include "gram_rows.hpp"
#include "gram_tile.hpp"
#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

namespace fastfisher::cpu {

// Rows that one task packs, about.
inline constexpr std::int64_t kPackedRows = 80;

// S: type of the factors. T: type of the products. R: type of the output.
template <class S, class T, class R>
class Gram {
 public:
  Gram(const Context& ctx, const GramShape& shape, const GramPlan& plan, int threads)
      : ctx_(ctx),
        shape_(shape),
        plan_(plan),
        threads_(threads),
        kernels_(tile_kernels_of_width<T>(plan.nr)) {
    const auto start = reinterpret_cast<std::uintptr_t>(ctx.workspace.data());
    auto* at = ctx.workspace.data() +
               (round_up(static_cast<std::int64_t>(start), 64) - static_cast<std::int64_t>(start));
    const auto take = [&at](std::int64_t bytes) {
      std::byte* taken = at;
      at += bytes;
      return taken;
    };
    left_panels_ = reinterpret_cast<T*>(take(plan_.left_bytes));
    right_panels_ = reinterpret_cast<T*>(take(plan_.right_bytes));
    formed_left_ = reinterpret_cast<T*>(take(plan_.formed_left));
    formed_right_ = reinterpret_cast<T*>(take(plan_.formed_right));
    form_ = take(plan_.form_bytes);
    states_ = take(plan_.states * plan_.state_bytes);
    pairs_ = take(0);
  }

  GramReport run(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
                 const ArrayRef& out) {
    out_ = &out;
    // Cotangents whose every number shows on the diagonal are multiplied before they are looked at.
    GramReport report = scan(left, right, shape_.symmetric);
    const std::vector<bool> trusted = sides_->trusted();
    const bool trusts = std::find(trusted.begin(), trusted.end(), true) != trusted.end();
    // The first bad number is told.
    if (trusts && report.kind != GramReport::Kind::ok) report = scan(left, right, false);
    if (report.kind != GramReport::Kind::ok || shape_.rows == 0 || shape_.cols == 0) return report;
    multiply();
    if (trusts && !sound(trusted)) {
      report = scan(left, right, false);
      if (report.kind != GramReport::Kind::ok) return report;
      if (!sides_->plain(trusted)) multiply();
    }
    if (overflow_.load())
      report.kind = GramReport::Kind::overflow;
    else if (loses())
      report.kind = GramReport::Kind::lost;
    return report;
  }

 private:
  GramReport scan(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
                  bool trust) {
    sides_.emplace(ctx_, threads_, left, right, shape_, kernels_, trust);
    return sides_->report();
  }

  void multiply() {
    overflow_.store(false, std::memory_order_relaxed);
    expect_progress();
    for (std::int64_t plane = 0; plane < shape_.planes; ++plane) {
      use_plane(plane);
      for (std::int64_t i = 0; i < shape_.rows; i += plan_.block_rows) {
        const std::int64_t cols = shape_.symmetric ? i + 1 : shape_.cols;
        for (std::int64_t j = 0; j < cols; j += plan_.block_cols) block(i, j);
      }
    }
  }

  // Whether no number was bad and none that counts was lost: products below the range of T are off
  // by 2^-150 (2^-1075) each, all of them by 2^-30 of such a diagonal at most.
  [[nodiscard]] bool sound(const std::vector<bool>& trusted) {
    double products = 0;
    for (std::size_t index = 0; index < trusted.size(); ++index) {
      if (trusted[index]) products += products_of(index);
    }
    const double least = std::ldexp(products, sizeof(T) == sizeof(float) ? -120 : -1015);
    return !overflow_.load() && every_entry([least](double entry) {
      return entry >= least && entry <= std::numeric_limits<double>::max();
    });
  }

  // Whether huge numbers, which may meet nothing but zeros, scaled products away that count: an
  // entry, in a square Gram one of the diagonal, may consist of such. Float64 has range enough.
  [[nodiscard]] bool loses() {
    if (sizeof(T) > sizeof(float)) return false;
    double least = 0;
    for (std::size_t index = 0; index < shape_.layers.size(); ++index)
      least += sides_->lost(index) * products_of(index);
    return least > 0 && !every_entry([least](double entry) { return std::abs(entry) >= least; });
  }

  // Products that an entry is the sum of, of one layer.
  [[nodiscard]] double products_of(std::size_t index) const {
    const LayerShape& layer = shape_.layers[index];
    return static_cast<double>(layer.outputs * layer.entries());
  }

  // Whether all entries, of a square Gram those of the diagonal, are as they should be.
  template <class Good>
  [[nodiscard]] bool every_entry(const Good& good) {
    for (std::int64_t plane = 0; plane < shape_.planes; ++plane) {
      use_plane(plane);
      for (std::int64_t row = 0; row < shape_.rows; ++row) {
        const auto* line = static_cast<const R*>(target_.data) + target_.row(row);
        const std::int64_t first = shape_.symmetric ? row : 0;
        const std::int64_t end = shape_.symmetric ? row + 1 : shape_.cols;
        for (std::int64_t col = first; col < end; ++col) {
          if (!good(static_cast<double>(line[target_.col(col)]))) return false;
        }
      }
    }
    return true;
  }

  // Outputs = diagonal: plane c takes output c of the factors and writes out[:, :, c].
  void use_plane(std::int64_t plane) {
    target_ = target_of(*out_, shape_.kind);
    if (shape_.kind == GramOutputs::diagonal)
      target_.data = static_cast<R*>(out_->data) + plane * out_->stride(2);
    plane_ = plane;
    sides_->use_plane(plane);
  }

  void expect_progress() {
    if (ctx_.progress == nullptr) return;
    std::int64_t tiles = 0;
    for (std::int64_t i = 0; i < shape_.rows; i += plan_.block_rows) {
      const std::int64_t cols = shape_.symmetric ? i + 1 : shape_.cols;
      for (std::int64_t j = 0; j < cols; j += plan_.block_cols)
        tiles += TileGrid(plan_, shape_, i, j).size();
    }
    const auto slabs = static_cast<std::int64_t>(plan_.slabs.size());
    std::atomic_ref(ctx_.progress[0]).store(0);
    std::atomic_ref(ctx_.progress[1]).store(tiles * slabs * shape_.planes);
  }

  void block(std::int64_t i, std::int64_t j) {
    const TileGrid grid(plan_, shape_, i, j);
    // With a single slab the left panels serve the whole row of blocks.
    const bool left = !plan_.single_slab() || j == 0;
    const bool together = left && shape_.symmetric && i == j;
    const std::int64_t shares = plan_.shares;
    // Several sums: each begins at zero, whichever of its chunks comes first.
    if (shares > 1) std::fill(states_, states_ + plan_.states * plan_.state_bytes, std::byte{0});
    for (const GramGroup& group : plan_.groups) {
      if (left) form(i, true, group);
      if (!together) form(j, false, group);
      for (std::size_t slab = group.first; slab < group.last; ++slab) {
        pack(i, j, plan_.slabs[slab], group, left, together);
        find_in_place(i, j, slab, group, together);
        find_steps(slab);
        const bool ends = slab + 1 == plan_.slabs.size();
        const auto add = [&](const GramStep& step, std::int64_t at, int worker) {
          const auto [r, q] = place_of(grid, at);
          const std::int64_t state =
              plan_.single_slab() && shares == 1 ? worker : at * shares + step.share;
          GramTile<T, R> tile(shape_, plan_, kernels_, sides_->scales(), left_panels_,
                              right_panels_, in_place_.data(), together);
          tile.add(i, j, r, q, slab, step, states_ + state * plan_.state_bytes,
                   pairs_ + worker * plan_.pair_bytes);
          if (ends && shares == 1) store(tile, i, j, r, q, states_ + state * plan_.state_bytes);
        };
        if (shares > 1) {
          add_shares(grid, add);
          continue;
        }
        parallel_for(ctx_, threads_, grid.size(), [&](std::int64_t index, int worker) {
          // From the bottom: when square the longest rows of tiles come first.
          add(steps_.front(), grid.size() - 1 - index, worker);
          advance(1);
        });
      }
    }
    if (shares == 1) return;
    parallel_for(ctx_, threads_, grid.size(), [&](std::int64_t at, int) {
      const auto [r, q] = place_of(grid, at);
      GramTile<T, R> tile(shape_, plan_, kernels_, sides_->scales(), left_panels_, right_panels_,
                          in_place_.data(), false);
      store(tile, i, j, r, q, states_ + at * shares * plan_.state_bytes);
    });
  }

  // Where a tile of the grid begins, within the block.
  [[nodiscard]] std::pair<std::int64_t, std::int64_t> place_of(const TileGrid& grid,
                                                               std::int64_t at) const {
    const auto above = std::upper_bound(grid.before.begin(), grid.before.end(), at) - 1;
    return {(above - grid.before.begin()) * plan_.tile_rows, (at - *above) * plan_.tile_cols};
  }

  void store(GramTile<T, R>& tile, std::int64_t i, std::int64_t j, std::int64_t r, std::int64_t q,
             std::byte* state) {
    if (!tile.store(i, j, r, q, state, target_)) overflow_.store(true, std::memory_order_relaxed);
  }

  // What is packed tile by tile; then the steps of each other share one after the other, a chunk
  // for all tiles: its rows stay in a thread's cache. Where threads do not share out evenly, each
  // tile of a share is by itself.
  template <class Add>
  void add_shares(const TileGrid& grid, const Add& add) {
    if (shares_[1] > 0) {
      parallel_for(ctx_, threads_, grid.size(), [&](std::int64_t index, int worker) {
        for (std::size_t k = 0; k < shares_[1]; ++k)
          add(steps_[k], grid.size() - 1 - index, worker);
      });
    }
    const std::int64_t busy = std::ssize(shares_) - 2;
    const std::int64_t parts = busy % threads_ == 0 || busy >= 4 * threads_ ? 1 : grid.size();
    parallel_shares(ctx_, threads_, busy * parts, [&](std::int64_t index, int worker) {
      const auto share = static_cast<std::size_t>(index / parts) + 1;
      for (std::size_t k = shares_[share]; k < shares_[share + 1]; ++k) {
        for (std::int64_t at = index % parts; at < grid.size(); at += parts)
          add(steps_[k], at, worker);
      }
    });
    advance(grid.size());
  }

  void advance(std::int64_t tiles) {
    if (ctx_.progress != nullptr) std::atomic_ref(ctx_.progress[0]).fetch_add(tiles);
  }

  // What tiles do with the slab: all at once, or share by share, chunks in place by themselves.
  void find_steps(std::size_t slab) {
    const GramSlab& now = plan_.slabs[slab];
    steps_.clear();
    steps_.reserve(now.last - now.first);
    shares_.assign(1, 0);
    if (plan_.shares == 1) {
      steps_.push_back({now.first, now.last, 0, 0});
      return;
    }
    for (std::int64_t share = 0; share < plan_.shares; ++share) {
      for (std::size_t c = now.first; c < now.last; ++c) {
        if (share_of(plan_, c) != share) continue;
        GramStep* last = steps_.size() > shares_.back() ? &steps_.back() : nullptr;
        if (share == 0 && last != nullptr && last->last == c) {
          last->last = c + 1;
          continue;
        }
        if (share > 0 && last != nullptr) last->next = c;
        steps_.push_back({c, c + 1, share, 0});
      }
      if (share == 0 || steps_.size() > shares_.back()) shares_.push_back(steps_.size());
    }
  }

  // Rows of the slab's chunks that meet in place.
  void find_in_place(std::int64_t i, std::int64_t j, std::size_t slab, const GramGroup& group,
                     bool together) {
    const GramSlab& now = plan_.slabs[slab];
    in_place_.assign(shape_.in_place_depth() == 0 ? 0 : now.last - now.first, {});
    for (std::size_t c = now.first; c < now.last; ++c) {
      const GramChunk& chunk = plan_.chunks[c];
      if (!chunk.in_place) continue;
      const GramPiece* piece =
          chunk.piece < 0 ? nullptr : &group.pieces[static_cast<std::size_t>(chunk.piece)];
      const auto side = [&](bool left) {
        const T* formed = nullptr;
        if (piece != nullptr)
          formed =
              left || together ? formed_left_ + piece->left_at : formed_right_ + piece->right_at;
        const std::int64_t first = left ? i / shape_.left_outputs : j / shape_.right_outputs;
        return sides_->rows(left, chunk, piece, first, formed).rows;
      };
      in_place_[c - now.first] = {side(true), side(false)};
    }
  }

  // Gradients of a group's pieces for the samples of a block.
  void form(std::int64_t block, bool left, const GramGroup& group) {
    if (group.pieces.empty()) return;
    const std::int64_t outputs = left ? shape_.left_outputs : shape_.right_outputs;
    const std::int64_t all = left ? shape_.rows : shape_.cols;
    const std::int64_t rows = std::min(left ? plan_.block_rows : plan_.block_cols, all - block);
    const std::int64_t first = block / outputs, end = (block + rows - 1) / outputs + 1;
    T* base = left ? formed_left_ : formed_right_;
    parallel_shares(ctx_, threads_, end - first, [&](std::int64_t index, int worker) {
      const FormScratch<S, T> scratch = scratch_of(worker);
      for (const GramPiece& piece : group.pieces) {
        T* to = base + (left ? piece.left_at : piece.right_at) + index * piece.sample_entries;
        sides_->form(left, first + index, plane_, piece, plan_, to, scratch);
      }
    });
  }

  [[nodiscard]] FormScratch<S, T> scratch_of(int worker) const {
    std::byte* mine = form_ + worker * (plan_.form_bytes / threads_);
    auto* rows = reinterpret_cast<S*>(mine);
    auto* panels =
        reinterpret_cast<T*>(mine + round_up((plan_.nr + 1) * kGramDepth * std::int64_t{8}, 64));
    return {panels, panels + plan_.form_left, rows};
  }

  // Packs the slab's panels. A task takes its share of the block's rows, of samples and of outputs,
  // through all chunks: long reads of each row, mostly of what the same thread formed, and where a
  // block meets itself rows come from memory once for both sides.
  void pack(std::int64_t i, std::int64_t j, const GramSlab& slab, const GramGroup& group, bool left,
            bool together) {
    const std::int64_t most = std::max(left ? extent(true, true) : 0, extent(true, false));
    // As many for each thread: then it packs what it formed.
    const std::int64_t tasks = round_up(ceil_div(most, kPackedRows), threads_);
    parallel_shares(ctx_, threads_, tasks, [&](std::int64_t task, int) {
      for (const bool gradients : {false, true}) {
        for (const bool side : {true, false}) {
          if (side && !left) continue;
          const std::int64_t all = extent(gradients, side);
          const std::int64_t step =
              round_up(ceil_div(all, tasks), side ? kernels_.mr : kernels_.nr);
          pack_side(side, gradients, side ? i : j, task * step, std::min(all, (task + 1) * step),
                    slab, group, together, side || together);
        }
      }
    });
  }

  // Rows [row, end) of the block that starts at `block`, one side. Where a block meets itself, the
  // right finds what was formed at the left's.
  void pack_side(bool left, bool gradients, std::int64_t block, std::int64_t row, std::int64_t end,
                 const GramSlab& slab, const GramGroup& group, bool together,
                 bool formed_left) const {
    const std::int64_t width = left ? kernels_.mr : kernels_.nr;
    const std::int64_t side_outputs = left ? shape_.left_outputs : shape_.right_outputs;
    const std::int64_t outputs = gradients ? 1 : side_outputs;
    const std::int64_t all_rows = left ? shape_.rows : shape_.cols;
    // Panels may reach past the block, which is where what was formed ends.
    const std::int64_t block_end =
        std::min(all_rows, block + (left ? plan_.block_rows : plan_.block_cols));
    const std::int64_t formed_rows = ceil_div(block_end, side_outputs) * side_outputs;
    for (std::size_t c = slab.first; c < slab.last; ++c) {
      const GramChunk& chunk = plan_.chunks[c];
      if (chunk.gradients != gradients || chunk.in_place) continue;
      if (left && together &&
          !shape_.layers[static_cast<std::size_t>(chunk.layer)].packs_left(shape_))
        continue;
      if (chunk.side == (left ? GramChunk::Side::right : GramChunk::Side::left)) continue;
      T* to = left ? left_panels_ + chunk.left_at : right_panels_ + chunk.right_at;
      const GramPiece* piece =
          chunk.piece < 0 ? nullptr : &group.pieces[static_cast<std::size_t>(chunk.piece)];
      const T* formed = nullptr;
      if (piece != nullptr)
        formed = formed_left ? formed_left_ + piece->left_at : formed_right_ + piece->right_at;
      const auto source = sides_->rows(left, chunk, piece, block / side_outputs, formed);
      for (std::int64_t r = row; r < end; r += width) {
        const std::int64_t first = block / outputs + r;
        const std::int64_t present = (piece == nullptr ? all_rows : formed_rows) / outputs;
        const std::int64_t count = std::clamp<std::int64_t>(present - first, 0, width);
        sides_->pack_panel(left, source, chunk, first, count, width, to + r * chunk.depth);
      }
    }
  }

  [[nodiscard]] std::int64_t extent(bool gradients, bool left) const {
    return left ? panel_extent(gradients, plan_.block_rows, shape_.left_outputs, kernels_.mr)
                : panel_extent(gradients, plan_.block_cols, shape_.right_outputs, kernels_.nr);
  }

  const Context& ctx_;
  const GramShape& shape_;
  const GramPlan& plan_;
  int threads_;
  const TileKernels<T>& kernels_;
  std::optional<GramSides<S, T>> sides_;
  const ArrayRef* out_ = nullptr;
  std::int64_t plane_ = 0;
  T *left_panels_ = nullptr, *right_panels_ = nullptr, *formed_left_ = nullptr,
    *formed_right_ = nullptr;
  std::byte* form_ = nullptr;
  std::byte* states_ = nullptr;
  std::byte* pairs_ = nullptr;
  Target target_;
  std::vector<InPlace> in_place_;    // of the chunks of a slab
  std::vector<GramStep> steps_;      // of the slab, share by share
  std::vector<std::size_t> shares_;  // where the steps of each begin, and end
  std::atomic<bool> overflow_{false};
};

}  // namespace fastfisher::cpu
