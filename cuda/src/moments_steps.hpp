// SPDX-License-Identifier: Apache-2.0
//
// Second moments of a list of matrices as one list of products, see moments.cu. Host code.
#pragma once

#include "fastfisher/ops.hpp"
#include "product_plan.hpp"

#include <algorithm>
#include <cstdint>
#include <span>

namespace fastfisher::cuda {

/// out = scale [a 1]^T [a 1], or without the ones.
template <class T>
Product<T> moment_of(const MomentItem& item) {
  Product<T> p;
  const std::int64_t i = item.a.extent(1), m = item.out.extent(0);
  p.left.data = item.a.data;
  p.left.rows.nest(i, item.a.stride(1));
  p.left.depth.nest(item.a.extent(0), item.a.stride(0));
  choose_path<T>(p.left);
  p.right = p.left;
  p.rows = p.cols = i;
  p.depth = item.a.extent(0);
  p.square = true;
  p.scale = static_cast<T>(item.scale);
  p.out = static_cast<T*>(item.out.data);
  p.out_row = {1, m, 0};
  p.out_col = {1, 1, 0};
  if (m == i) return p;
  p.sums = p.out + i;
  p.sums_row = {1, m, 0};
  p.sums_mirror = p.out + i * m;
  p.sums_corner = p.out + i * m + i;
  return p;
}

/// Shares out the depths of a list that runs at once, so that no tile takes much longer than its
/// part of the whole, and gives each product its part of `partial`.
template <class T>
void share_list(std::span<Product<T>> products, const ProductLimits& limits, T* partial) {
  if (products.size() == 1) {
    share(products.front(), limits);
    products.front().partial = partial;
    return;
  }
  const auto time_of = [&](const TileKind& kind) {
    double work = 0;
    for (const Product<T>& p : products)
      work += static_cast<double>(tiles_of(p, kind.edge)) * static_cast<double>(p.depth);
    return work / static_cast<double>(kind.slots) * kind.seconds;
  };
  const TileKind& kind = *std::min_element(
      limits.kinds.begin(), limits.kinds.end(),
      [&](const TileKind& x, const TileKind& y) { return time_of(x) < time_of(y); });
  std::int64_t longest = limits.least_depth;
  for (const Product<T>& p : products)
    longest = std::max(longest, std::min(p.depth, limits.most_depth));
  const auto fair = static_cast<std::int64_t>(time_of(kind) / kind.seconds);  // depths a slot
  // A tile of half the fair part at most leaves a third of the device idle at the end at worst.
  std::int64_t most = std::clamp(fair / 2, limits.least_depth, longest);
  for (;;) {
    std::int64_t bytes = 0;
    for (Product<T>& p : products) {
      const std::int64_t splits = std::max<std::int64_t>(parts_of(p.depth, most), 1);
      p.split_depth =
          parts_of(parts_of(std::max<std::int64_t>(p.depth, 1), splits), limits.step) * limits.step;
      p.splits = std::max<std::int64_t>(parts_of(p.depth, p.split_depth), 1);
      p.partial = partial + bytes / static_cast<std::int64_t>(sizeof(T));
      if (p.splits > 1) bytes += p.splits * p.entries() * static_cast<std::int64_t>(sizeof(T));
    }
    if (bytes <= limits.partial_bytes) return;
    most *= 2;
  }
}

}  // namespace fastfisher::cuda
