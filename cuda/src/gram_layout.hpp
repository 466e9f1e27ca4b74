// SPDX-License-Identifier: Apache-2.0
//
// How a call of the Gram uses its workspace. Layers whose gradients have to be formed (a weight
// used at several positions) are cut into slices of parameters: groups of slices are formed,
// multiplied and added to the output one after the other.
#pragma once

#include "form.hpp"
#include "gram_problem.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace fastfisher::cuda {

inline constexpr int kTileEdge = 128;
inline constexpr std::int64_t kWorkspaceAlign = 256;

inline std::int64_t aligned(std::int64_t bytes) {
  return (bytes + kWorkspaceAlign - 1) / kWorkspaceAlign * kWorkspaceAlign;
}

inline bool is_formed(const LayerFactors& layer) {
  return layer.form == LayerForm::shared || layer.form == LayerForm::conv;
}

/// What the layout depends on beside the layers.
struct GramMachine {
  std::int64_t blocks = 1;  ///< that run at a time
  bool hopper = false;      ///< takes packed rows
};

/// Parameters [first, first + count) of a layer.
struct Slice {
  std::size_t layer;
  std::int64_t first, count;
};

/// The explicit Jacobian that a slice becomes in memory at `data`.
inline LayerFactors formed(const LayerFactors& layer, const Slice& slice, bool wide, void* data) {
  const LayerSizes sizes = sizes_of(layer);
  const std::int64_t stride = (slice.count + 3) / 4 * 4;  // rows on 16-byte boundaries
  LayerFactors given;
  given.form = LayerForm::jacobian;
  given.g = array_ref(static_cast<float*>(data), sizes.samples, sizes.outputs, slice.count);
  given.g.dtype = wide ? DType::f64 : DType::f32;
  given.g.device = layer.g.device;
  given.g.strides[0] = sizes.outputs * stride;
  given.g.strides[1] = stride;
  return given;
}

inline std::int64_t bytes_of(const ArrayRef& array) {
  return aligned(array.extent(0) * array.stride(0) * size_of(array.dtype));
}

/// Bytes of the packed rows of a layer.
inline std::int64_t panels_of(const LayerFactors& layer, GramOutputs outputs) {
  std::int64_t bytes = 0;
  for (const PackProblem& problem : pack_problems(layer, outputs))
    bytes += aligned(panels_bytes<kTileEdge>(problem));
  return bytes;
}

/// Where dense layers and explicit Jacobians are put: packed rows, then inner products of a strip
/// of samples.
struct Region {
  std::int64_t panels_at = 0, strip_at = 0, end = 0;
  std::int64_t strip = 0;  ///< samples at a time; 0: inner products are not stored
  bool packed = false;
};

struct GramLayout {
  std::int64_t scans_at, layers_at, slots_at;
  Region direct;
  std::vector<std::vector<Slice>> groups;
  std::int64_t slices_at, scratch_at, scratch_bytes = 0, bytes;
  std::int64_t blocks;  ///< of a launch, each with a slot of scratch
  bool packs = false;   ///< slices too

  GramLayout(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
             const GramOptions& options, const GramMachine& machine)
      : left_(left),
        right_(right),
        options_(options),
        problem_(problem_of(left, right, options.outputs, {})),
        wide_(is_double(left.front().g.dtype, options.precision)) {
    const auto count = static_cast<std::int64_t>(left.size());
    scans_at = kWorkspaceAlign;  // to make up for where the workspace begins
    layers_at = scans_at + aligned(6 * count * std::int64_t{sizeof(ScanFound)} + 8);
    slots_at = layers_at + aligned((2 * count + 2) * std::int64_t{sizeof(Layer)});
    blocks = std::clamp<std::int64_t>(tiles(), 1, machine.blocks);
    place(machine);
    // Fewer blocks at a time rather than none. What finds room then takes some of it.
    while (bytes > options.memory_limit && blocks > 1) {
      const std::int64_t excess = bytes - options.memory_limit;
      blocks = std::max<std::int64_t>(blocks - (excess + slot_bytes() - 1) / slot_bytes(), 1);
      place(machine);
    }
  }

  /// Bytes of the gradients and packed rows of a slice, both sides.
  [[nodiscard]] std::int64_t slice_bytes(const Slice& slice) const {
    std::int64_t sum = 0;
    for (const auto side : {left_, right_}) {
      if (side.empty()) continue;
      const LayerFactors given = formed(side[slice.layer], slice, wide_, nullptr);
      sum += bytes_of(given.g) + (packs ? panels_of(given, options_.outputs) : 0);
    }
    return sum;
  }

 private:
  void place(const GramMachine& machine) {
    // Packing pays where the rows fill tiles.
    const bool packing = !wide_ && options_.precision == GramPrecision::highest && machine.hopper &&
                         std::min(problem_.rows, problem_.cols) >= kTileEdge;
    direct =
        region(slots_at + blocks * slot_bytes(), packing && size_of(left_.front().g.dtype) == 4);
    packs = packing;
    slices_at = scratch_at = bytes = direct.end;
    scratch_bytes = 0;
    if (std::none_of(left_.begin(), left_.end(), is_formed)) return;
    scratch_bytes = scratch();
    slices_at = aligned(scratch_at + scratch_bytes);
    cut();
    // Rather slices of a bearable width that are not packed.
    if (packs && bytes > options_.memory_limit) {
      packs = false;
      cut();
    }
  }

  [[nodiscard]] std::int64_t slot_bytes() const {
    return std::int64_t{kTileEdge} * kTileEdge * (8 + (wide_ ? 8 : 4));
  }

  // Tiles of a launch at most.
  [[nodiscard]] std::int64_t tiles() const {
    const auto edges = [](std::int64_t rows) { return (rows + kTileEdge - 1) / kTileEdge; };
    const std::int64_t planes = std::max(problem_.planes, static_cast<std::int64_t>(left_.size()));
    return planes * edges(problem_.rows) * edges(problem_.cols);
  }

  Region region(std::int64_t begin, bool packing) const {
    Region plain;
    plain.panels_at = plain.strip_at = begin;
    place_strip(plain);
    if (!packing) return plain;
    Region packed = plain;
    packed.packed = true;
    for (const auto side : {left_, right_}) {
      for (const LayerFactors& layer : side) {
        if (!is_formed(layer)) packed.strip_at += panels_of(layer, options_.outputs);
      }
    }
    place_strip(packed);
    return packed.end <= options_.memory_limit ? packed : plain;
  }

  void place_strip(Region& region) const {
    region.strip = 0;
    region.end = region.strip_at;
    const auto dense = std::count_if(left_.begin(), left_.end(), [](const LayerFactors& layer) {
      return layer.form == LayerForm::dense;
    });
    if (!stores_inner(problem_) || dense == 0) return;
    const std::int64_t samples = problem_.rows / std::max<std::int64_t>(problem_.left_outputs, 1);
    const std::int64_t others = problem_.cols / std::max<std::int64_t>(problem_.right_outputs, 1);
    const std::int64_t row = std::max<std::int64_t>(dense * others, 1) * (wide_ ? 8 : 4);
    const std::int64_t room = std::max<std::int64_t>(options_.memory_limit - region.end, 0) / row;
    region.strip = std::max<std::int64_t>(room / kTileEdge * kTileEdge, kTileEdge);
    region.strip = std::min(region.strip, std::max<std::int64_t>(samples, 1));
    region.end = aligned(region.end + region.strip * row);
  }

  // Forming is faster with some; it does without.
  [[nodiscard]] std::int64_t scratch() const {
    std::int64_t most = 0;
    for (const auto side : {left_, right_}) {
      for (const LayerFactors& layer : side) {
        if (is_formed(layer))
          most = std::max(most, form_workspace(layer, sizes_of(layer).parameters));
      }
    }
    const std::int64_t room = options_.memory_limit - scratch_at;
    return most <= room / 8 ? most : 0;
  }

  // Groups of slices, each as large as there is room for; of 32 parameters at least.
  void cut() {
    groups.clear();
    bytes = slices_at;
    std::int64_t used = 0;
    const std::int64_t room = options_.memory_limit - slices_at;
    for (std::size_t k = 0; k < left_.size(); ++k) {
      if (!is_formed(left_[k])) continue;
      const LayerSizes sizes = sizes_of(left_[k]);
      for (std::int64_t first = 0; first < sizes.parameters;) {
        const std::int64_t rest = sizes.parameters - first;
        std::int64_t count = widest({k, first, rest}, room - used, sizes.in);
        if (count == 0 && used > 0) {  // the next group has more room
          used = 0;
          groups.emplace_back();
          continue;
        }
        count = std::max(count, std::min(rest, kNarrowest));
        if (groups.empty()) groups.emplace_back();
        groups.back().push_back({k, first, count});
        used += slice_bytes(groups.back().back());
        bytes = std::max(bytes, slices_at + used);
        first += count;
      }
    }
    std::erase_if(groups, [](const auto& group) { return group.empty(); });
  }

  static constexpr std::int64_t kNarrowest = 32;

  // Parameters of the slice that fit into `room` bytes, whole units of `in` where there are some.
  [[nodiscard]] std::int64_t widest(const Slice& slice, std::int64_t room, std::int64_t in) const {
    if (slice_bytes(slice) <= room) return slice.count;
    std::int64_t low = 0, high = slice.count;
    while (low + 1 < high) {
      const std::int64_t middle = low + (high - low) / 2;
      (slice_bytes({slice.layer, slice.first, middle}) <= room ? low : high) = middle;
    }
    const std::int64_t unit = in > 0 && low >= in ? in : kNarrowest;
    return low / unit * unit;
  }

  std::span<const LayerFactors> left_, right_;
  GramOptions options_;
  Problem problem_;
  bool wide_;
};

}  // namespace fastfisher::cuda
