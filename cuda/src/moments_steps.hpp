// SPDX-License-Identifier: Apache-2.0
//
// Second moments of a list of matrices as one list of products, see moments.cu. Host code.
#pragma once

#include "fastfisher/ops.hpp"
#include "product_plan.hpp"
#include "layer_operands.hpp"

#include <cstdint>

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

}  // namespace fastfisher::cuda
