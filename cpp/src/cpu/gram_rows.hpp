// SPDX-License-Identifier: Apache-2.0
//
// The two sides of a Gram: where the rows of each chunk lie, and how they come into panels.
#pragma once

#include "gram_access.hpp"
#include "gram_form.hpp"
#include "gram_formed.hpp"
#include "gram_plan.hpp"
#include "gram_scales.hpp"
#include "tile_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <type_traits>
#include <vector>

namespace fastfisher::cpu {

/// Rows of a chunk, of the factors or of what was formed.
struct ChunkRows {
  Rows rows;
  bool formed = false;
  /// Where separable cotangents meet position by position: row r (of `inner` ones) and depth k are
  /// multiplied by weights[(r % inner) * by_row + k / run * by_run + k % run].
  const void* weights = nullptr;
  std::int64_t by_row = 0, by_run = 0;
  /// Where samples are balanced: the scale of each.
  const void* balance = nullptr;
};

template <class S, class T>
class GramSides {
 public:
  GramSides(const Context& ctx, int threads, std::span<const LayerFactors> left,
            std::span<const LayerFactors> right, const GramShape& shape,
            const TileKernels<T>& kernels, bool trust)
      : shape_(shape), kernels_(kernels), square_(right.empty()) {
    sides_[0].layers = left;
    sides_[1].layers = square_ ? left : right;
    SideScales<T>* sides[] = {&sides_[0], &sides_[1]};
    report_ = SideScanner<S, T>(shape, kernels, square_, sides, scales_, trusted_)
                  .scan_all(ctx, threads, trust);
  }

  [[nodiscard]] const GramReport& report() const { return report_; }

  /// By layer: whether its cotangents were not looked at.
  [[nodiscard]] const std::vector<bool>& trusted() const { return trusted_; }

  /// Whether the factors of these layers are multiplied as they are.
  [[nodiscard]] bool plain(const std::vector<bool>& layers) const {
    const Side& side = sides_[0];
    for (std::size_t index = 0; index < layers.size(); ++index) {
      if (layers[index] &&
          (side.scale_a[index] != 1 || side.scale_g[index] != 1 || !side.balance_g[index].empty()))
        return false;
    }
    return true;
  }

  /// What a product of a layer may have lost, times a margin of 2^29: nothing to speak of unless
  /// numbers beyond 2^60 have been scaled. Powers of two of samples cancel.
  [[nodiscard]] double lost(std::size_t index) const {
    const double scale = scales_[index].scale;
    return scale <= 0x1p60 ? 0 : scale * 0x1p-120;
  }

  /// Outputs = diagonal: rows are those of output `plane`.
  void use_plane(std::int64_t plane) {
    plane_ = plane;
    for (auto& side : sides_) side.formers.clear();
    for (std::size_t index = 0; index < shape_.layers.size(); ++index) {
      for (int side = 0; side < 2; ++side) add_former(side, index);
    }
  }

  /// By layer: what fold multiplies products with and adds to those of samples.
  [[nodiscard]] const LayerScale* scales() const { return scales_.data(); }

  /// Forms a piece for sample n.
  void form(bool left, std::int64_t n, std::int64_t plane, const GramPiece& piece,
            const GramPlan& plan, T* to, const FormScratch<S, T>& scratch) const {
    const auto index = static_cast<std::size_t>(piece.layer);
    const LayerShape& layer = shape_.layers[index];
    const Former<S, T>& former = *sides_[left ? 0 : 1].formers[index];
    // S2 has the left's patches meet the right's gradients; a block that meets itself is both.
    if (layer.method == GramMethod::s2 && !square_ && piece.patches != left) return;
    if (piece.patches) return former.patches(n, piece.group, to, scratch);
    const bool one = shape_.formed_outputs(layer) == 1;
    const bool separable = layer.method == GramMethod::s4;
    const std::int64_t c0 = one && !separable ? plane : 0;
    const std::int64_t outputs = sizes_of(sides_[left || square_ ? 0 : 1].layers[index]).outputs;
    T* ones = layer.bias ? to + piece.rows * layer.padded : nullptr;
    former.gradients(n, c0, one ? c0 + 1 : outputs, piece, plan.form_rows, plan.form_cols, to, ones,
                     scratch);
  }

  /// Where the rows of a chunk lie; `formed` is what was formed of the piece, from
  /// sample `first`.
  [[nodiscard]] ChunkRows rows(bool left, const GramChunk& chunk, const GramPiece* piece,
                               std::int64_t first, const T* formed) const {
    const auto index = static_cast<std::size_t>(chunk.layer);
    const LayerShape& layer = shape_.layers[index];
    const Side& side = sides_[left ? 0 : 1];
    ChunkRows found;
    if (piece != nullptr) {
      found.formed = true;
      found.rows = formed_rows(shape_, left, chunk, *piece, formed);
      found.rows.origin = first;
      return found;
    }
    const LayerFactors& factors = side.layers[index];
    if (layer.method == GramMethod::s4) {
      found.rows = column_of_w(factors, chunk.unit);
      found.rows.scale = side.scale_w[index];
    } else if (by_position(layer) && chunk.depth > 0) {
      position_rows(side, index, chunk, found);
    } else if (chunk.depth > 0) {
      found.rows = chunk.gradients ? rows_of_g(factors.g, shape_.kind) : rows_of_a(factors.a);
      if (chunk.gradients && shape_.kind == GramOutputs::diagonal) {
        found.rows.data = static_cast<const S*>(found.rows.data) + plane_ * factors.g.stride(1);
      }
      found.rows.scale = chunk.gradients ? side.scale_g[index] : side.scale_a[index];
      found.balance = balance_of(side, index, chunk, found.rows);
    }
    return found;
  }

  /// Rows first .. first + count of a chunk into one panel.
  void pack_panel(bool left, const ChunkRows& source, const GramChunk& chunk, std::int64_t first,
                  std::int64_t count, std::int64_t width, T* to) const {
    if (chunk.depth == 0) return;
    const std::int64_t present = available(left, chunk, count);
    if (source.formed) {
      gather(pack_of<T>(kernels_), static_cast<const T*>(source.rows.data), source.rows, chunk,
             first, present, width, to);
      return;
    }
    gather(pack_of<S>(kernels_), static_cast<const S*>(source.rows.data), source.rows, chunk, first,
           present, width, to);
    if (source.balance != nullptr) {
      const auto* balance = static_cast<const T*>(source.balance);
      for (std::int64_t k = 0; k < chunk.depth; ++k) {
        for (std::int64_t r = 0; r < present; ++r)
          to[k * width + r] *= balance[(first + r) / source.rows.inner];
      }
    }
    if (source.weights == nullptr) return;
    const auto* weights = static_cast<const T*>(source.weights);
    const Rows& rows = source.rows;
    for (std::int64_t k = 0; k < chunk.depth; ++k) {
      const std::int64_t at = chunk.from + k;
      const T* w = weights + at / rows.run * source.by_run + at % rows.run;
      for (std::int64_t r = 0; r < present; ++r)
        to[k * width + r] *= w[(first + r) % rows.inner * source.by_row];
    }
  }

 private:
  struct Side : SideScales<T> {
    std::vector<std::optional<Former<S, T>>> formers;
  };

  // The scales of samples, which then are instead of the common one.
  static const void* balance_of(const Side& side, std::size_t index, const GramChunk& chunk,
                                Rows& rows) {
    const auto& balance = chunk.gradients ? side.balance_g[index] : side.balance_a[index];
    if (balance.empty()) return nullptr;
    rows.scale = 1;
    return balance.data();
  }

  // Whether chunks of the caller's arrays are those of one position.
  static bool by_position(const LayerShape& layer) {
    return layer.method == GramMethod::s3 || layer.method == GramMethod::s2;
  }

  // A side with fewer positions than the other has no rows for the rest.
  [[nodiscard]] std::int64_t available(bool left, const GramChunk& chunk,
                                       std::int64_t count) const {
    const LayerShape& layer = shape_.layers[static_cast<std::size_t>(chunk.layer)];
    const bool formed =
        chunk.source == GramChunk::Source::weights || chunk.source == GramChunk::Source::ones;
    if (!by_position(layer) || formed) return count;
    return chunk.unit < (left ? layer.left_positions : layer.right_positions) ? count : 0;
  }

  template <class Pack, class Source>
  void gather(Pack pack, const Source* data, const Rows& rows, const GramChunk& chunk,
              std::int64_t first, std::int64_t count, std::int64_t width, T* to) const {
    const Source* at[64];
    std::int64_t done = 0;
    while (done < chunk.depth) {
      const std::int64_t k = chunk.from + done;
      const std::int64_t run = std::min(chunk.depth - done, rows.run - k % rows.run);
      const std::int64_t offset = k / rows.run * rows.run_stride + k % rows.run * rows.depth_stride;
      std::int64_t outer = first / rows.inner, inner = first % rows.inner;
      for (std::int64_t r = 0; r < count; ++r) {
        at[r] =
            data + offset + (outer - rows.origin) * rows.outer_stride + inner * rows.inner_stride;
        if (++inner == rows.inner) {
          inner = 0;
          ++outer;
        }
      }
      pack(at, count, width, rows.depth_stride, run, rows.scale, to + done * width);
      done += run;
    }
  }

  // S4: w[c,o] for every sample.
  [[nodiscard]] Rows column_of_w(const LayerFactors& factors, std::int64_t o) const {
    Rows rows;
    rows.data = static_cast<const S*>(factors.w.data) + o * factors.w.stride(1);
    rows.inner = std::max<std::int64_t>(1, factors.w.extent(0));
    rows.inner_stride = factors.w.stride(0);
    return rows;
  }

  // S2, S3: rows of samples or outputs at one position.
  void position_rows(const Side& side, std::size_t index, const GramChunk& chunk,
                     ChunkRows& found) const {
    const LayerFactors& factors = side.layers[index];
    const LayerShape& layer = shape_.layers[index];
    Rows& rows = found.rows;
    if (!chunk.gradients) {
      const InputAccess a = input_of(factors);
      rows.data = static_cast<const S*>(a.data) + chunk.unit * a.position;
      rows.outer_stride = a.sample;
      rows.run = std::max<std::int64_t>(1, layer.in);
      rows.depth_stride = a.feature;
      rows.scale = side.scale_a[index];
      found.balance = balance_of(side, index, chunk, rows);
      return;
    }
    const CotangentAccess g = cotangents_of(factors);
    const std::int64_t first_unit = chunk.group * layer.group_out();
    const std::int64_t plane = shape_.kind == GramOutputs::diagonal ? plane_ : 0;
    if (chunk.unit < positions_of(g)) {
      rows.data = static_cast<const S*>(g.data) + offset_of(g, chunk.unit) + first_unit * g.unit +
                  plane * g.output;
    }
    rows.outer_stride = g.sample;
    rows.run = layer.group_out();
    rows.depth_stride = g.unit;
    rows.scale = side.scale_g[index];
    found.balance = balance_of(side, index, chunk, rows);
    const T* w = layer.separable ? side.w[index].data() + first_unit : nullptr;
    switch (shape_.kind) {
    case GramOutputs::full:
      rows.inner = std::max<std::int64_t>(1, sizes_of(factors).outputs);
      rows.inner_stride = g.output;
      found.by_row = layer.out;
      break;
    case GramOutputs::trace:
      rows.run_stride = g.output;
      found.by_run = layer.out;
      break;
    case GramOutputs::diagonal:
      if (w != nullptr) w += plane * layer.out;
      break;
    }
    found.weights = w;
  }

  void add_former(int which, std::size_t index) {
    Side& side = sides_[which];
    const LayerShape& layer = shape_.layers[index];
    side.formers.emplace_back();
    if (!layer.formed() || layer.nothing()) return;
    std::vector<T> lanes;
    if (layer.method != GramMethod::s4 && layer.separable) lanes = side.w[index];
    if (layer.method == GramMethod::s4 && shape_.kind != GramOutputs::full)
      lanes = weights_of_units(which, index);
    side.formers.back().emplace(side.layers[index], layer, kernels_, side.scale_a[index],
                                side.scale_g[index], std::move(lanes), side.balance_a[index],
                                side.balance_g[index]);
  }

  // S4 where an output meets itself alone: sum over c (or plane c) of w[c,o] w'[c,o], all of it on
  // the left, half of it on either side when square.
  [[nodiscard]] std::vector<T> weights_of_units(int which, std::size_t index) const {
    const LayerShape& layer = shape_.layers[index];
    const std::vector<T>& x = sides_[0].w[index];
    const std::vector<T>& y = sides_[1].w[index];
    std::vector<T> lanes(static_cast<std::size_t>(layer.out), T{1});
    if (which == 1 && !square_) return lanes;
    const bool trace = shape_.kind == GramOutputs::trace;
    for (std::int64_t o = 0; o < layer.out; ++o) {
      double sum = 0;
      for (std::int64_t c = trace ? 0 : plane_; c < (trace ? layer.outputs : plane_ + 1); ++c) {
        const auto at = static_cast<std::size_t>(c * layer.out + o);
        sum += static_cast<double>(x[at]) * static_cast<double>(y[at]);
      }
      lanes[static_cast<std::size_t>(o)] = static_cast<T>(square_ ? std::sqrt(sum) : sum);
    }
    return lanes;
  }

  const GramShape& shape_;
  const TileKernels<T>& kernels_;
  bool square_;
  Side sides_[2];
  std::vector<LayerScale> scales_;
  std::vector<bool> trusted_;
  std::int64_t plane_ = 0;
  GramReport report_;
};

}  // namespace fastfisher::cpu
