// SPDX-License-Identifier: Apache-2.0
//
// How products and reductions are shared out: over how many parts of a depth, so that a device is
// full although the output is small. Depends on sizes alone, so that results are the same to the
// bit from run to run. Host code.
#pragma once

#include "contract_body.hpp"
#include "product_body.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>

namespace fastfisher::cuda {

/// Outputs and columns that one thread of a reduction adds up.
constexpr int kContractOutputs = 8, kContractColumns = 4, kWeighColumns = 8;

/// Tiles of one size.
struct TileKind {
  std::int64_t edge, slots;  ///< slots: how many run at once
  double seconds;            ///< for one depth of a tile whose neighbours keep the device full
};

/// What the shares are fitted to; the defaults suit a large device and are not asked from it.
struct ProductLimits {
  std::array<TileKind, 2> kinds = {{{128, 264, 0.17e-6}, {64, 792, 0.15e-6}}};
  std::int64_t step = 16;                           ///< depths that a tile works on at once
  std::int64_t least_depth = 128;                   ///< of a share
  std::int64_t most_depth = std::int64_t{1} << 16;  ///< of a sum in one register, if memory allows
  std::int64_t threads = std::int64_t{1} << 17;     ///< of a reduction
  std::int64_t least_terms = 8;                     ///< of a thread of one
  std::int64_t lanes = 32;                          ///< threads of one sum, or four times as many
  double overhead = 5e-6;                           ///< seconds of one more launch
  std::int64_t partial_bytes = std::int64_t{64} << 20;  ///< of all shares of one launch
  std::int64_t chunk_bytes = std::int64_t{128} << 20;   ///< of what lies between two products
};

template <class T>
ProductLimits product_limits() {
  ProductLimits limits;
  if (sizeof(T) == 8) {
    limits.kinds = {{{128, 132, 0.17e-6}, {64, 528, 0.19e-6}}};
    limits.step = 8;
  }
  return limits;
}

inline std::int64_t parts_of(std::int64_t x, std::int64_t y) {
  return (x + y - 1) / y;
}

/// Tiles of a product whose depth is not shared out.
template <class T>
std::int64_t tiles_of(const Product<T>& p, std::int64_t edge) {
  const std::int64_t down =
      std::max<std::int64_t>(parts_of(p.rows, edge), p.sums_corner != nullptr ? 1 : 0);
  const std::int64_t across =
      std::max<std::int64_t>(parts_of(p.cols, edge), p.sums != nullptr ? 1 : 0);
  return p.batches * (p.square ? down * (down + 1) / 2 : down * across);
}

/// Chooses the tiles of a product and the shares of its depth; returns the bytes that these need.
template <class T>
std::int64_t share(Product<T>& p, const ProductLimits& limits) {
  const auto bytes_of = [&](std::int64_t splits) {
    return splits > 1 ? splits * p.entries() * static_cast<std::int64_t>(sizeof(T)) : 0;
  };
  constexpr double kBytesASecond = 2.5e12;
  double best = -1;
  for (const TileKind& kind : limits.kinds) {
    const std::int64_t tiles = tiles_of(p, kind.edge);
    for (std::int64_t splits = 1; splits <= 256; ++splits) {
      const std::int64_t each = parts_of(p.depth, splits);
      const std::int64_t depth =
          std::max<std::int64_t>(parts_of(each, limits.step), 1) * limits.step;
      const std::int64_t real = std::max<std::int64_t>(parts_of(p.depth, depth), 1);
      const bool enough = tiles * real > 8 * kind.slots && depth <= limits.most_depth;
      if (splits > 1 &&
          (enough || depth < limits.least_depth || bytes_of(real) > limits.partial_bytes))
        break;
      const double waves = std::max(1.0, static_cast<double>(parts_of(tiles * real, kind.slots)));
      double cost = waves * static_cast<double>(depth) * kind.seconds;
      if (real > 1)
        cost += limits.overhead + static_cast<double>(2 * bytes_of(real)) / kBytesASecond;
      // Long sums in one register lose digits: as bad as ten times the work.
      if (depth > limits.most_depth) cost *= 10;
      if (best >= 0 && cost >= 0.98 * best) continue;
      best = cost;
      p.edge = kind.edge;
      p.splits = real;
      p.split_depth = depth;
    }
  }
  return bytes_of(p.splits);
}

template <class T>
std::int64_t share(Contraction<T>& p, const ProductLimits& limits) {
  const std::int64_t tasks = p.samples * parts_of(p.outputs, kContractOutputs) *
                             parts_of(p.columns, p.columns == 1 ? 1 : kContractColumns);
  const std::int64_t terms = p.g.t.count;
  p.lanes = tasks * 32 < limits.threads && terms >= 4 * limits.lanes * limits.least_terms
                ? 4 * limits.lanes
                : limits.lanes;
  const std::int64_t wanted = std::min(limits.threads / std::max<std::int64_t>(tasks * p.lanes, 1),
                                       terms / (p.lanes * limits.least_terms));
  p.split_terms = parts_of(std::max<std::int64_t>(terms, 1), std::max<std::int64_t>(wanted, 1));
  p.splits = std::max<std::int64_t>(parts_of(terms, p.split_terms), 1);
  const std::int64_t entries = p.samples * p.outputs * p.columns;
  return p.splits > 1 ? p.splits * entries * static_cast<std::int64_t>(sizeof(T)) : 0;
}

template <class T>
std::int64_t share(Weighing<T>& p, const ProductLimits& limits) {
  const std::int64_t threads =
      p.batches * p.g.t.count * parts_of(p.columns, p.columns == 1 ? 1 : kWeighColumns);
  const std::int64_t wanted = std::min(limits.threads / std::max<std::int64_t>(threads, 1),
                                       p.rows / (4 * limits.least_terms));
  p.split_rows = parts_of(std::max<std::int64_t>(p.rows, 1), std::max<std::int64_t>(wanted, 1));
  p.splits = std::max<std::int64_t>(parts_of(p.rows, p.split_rows), 1);
  const std::int64_t entries = p.batches * p.g.t.count * p.columns;
  return p.splits > 1 ? p.splits * entries * static_cast<std::int64_t>(sizeof(T)) : 0;
}

/// What adds up the shares of a reduction.
template <class T>
Collection<T> collection_of(const Contraction<T>& p) {
  return {p.partial,
          p.splits,
          {p.samples, p.outputs, p.columns},
          {p.out_sample, p.out_output, p.out_k},
          p.out,
          p.accumulate};
}
template <class T>
Collection<T> collection_of(const Weighing<T>& p) {
  return {
      p.partial, p.splits,    {p.batches, p.g.t.count, p.columns}, {p.out_batch, p.out_t, p.out_k},
      p.out,     p.accumulate};
}

/// Chooses how a tile reads the operand, whose rows and depths are set.
template <class T>
void choose_path(Operand& x) {
  const auto inner = [](const Axis& axis) {
    return axis.levels > 1 ? axis.extents[0] : axis.count;
  };
  const std::int64_t along = std::abs(x.depth.strides[0]), across = std::abs(x.rows.strides[0]);
  const std::int64_t run = inner(x.rows);
  x.path = across < along && run >= 8 ? Path::across : Path::along;
  if (inner(x.depth) < 8 && run >= 8) x.path = Path::across;
  if (x.patch || narrow(x.dtype) || x.path != Path::across || x.rows.strides[0] != 1) return;
  constexpr auto kWide = static_cast<std::int64_t>(16 / sizeof(T));
  bool aligned = reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && run % kWide == 0 &&
                 x.rows.start % kWide == 0;
  for (const std::int64_t stride :
       {x.batch[0], x.batch[1], x.rows.origin, x.depth.origin, x.depth.strides[0]})
    aligned = aligned && stride % kWide == 0;
  for (int level = 1; level < 4; ++level)
    aligned = aligned && x.rows.strides[level] % kWide == 0 && x.depth.strides[level] % kWide == 0;
  if (aligned) x.path = Path::wide;
}

}  // namespace fastfisher::cuda
