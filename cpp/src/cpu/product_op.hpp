// SPDX-License-Identifier: Apache-2.0
//
// How jvp and vjp are launched: workspace, type, threads and verdict are one thing for both.
#pragma once

#include "fastfisher/dtype.hpp"
#include "parallel.hpp"
#include "products.hpp"

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

namespace fastfisher::cpu {

/// Bytes of workspace for the greediest piece, planned by plan_of(T(), piece, columns, threads).
template <class PlanOf>
std::int64_t product_bytes(const std::vector<Piece>& pieces, DType dtype, std::int64_t columns,
                           int threads, const PlanOf& plan_of) {
  return visit_dtype(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::int64_t most = 0;
    for (const std::int64_t at_once : column_counts(columns)) {
      for (const Piece& piece : pieces) {
        const auto plan = plan_of(T(), piece, at_once, threads);
        most = std::max(most, plan.shared_items + threads * plan.thread_items);
      }
    }
    return most * static_cast<std::int64_t>(sizeof(T)) + ProductScratch::kAlignment;
  });
}

template <class PlanOf>
std::int64_t product_workspace(const Context& ctx, std::span<const LayerFactors> layers,
                               std::int64_t columns, const PlanOf& plan_of) {
  return product_bytes(pieces_of(layers), layers.front().g.dtype, columns,
                       product_threads(ctx, product_flops(layers, columns)), plan_of);
}

/// Runs Op<S, T>, S the type of the factors and T that of vector and result.
template <template <class, class> class Op, class PlanOf>
ProductReport run_product(const Context& ctx, const char* name,
                          std::span<const LayerFactors> layers, std::int64_t columns,
                          const ArrayRef& vector, const ArrayRef& out, const PlanOf& plan_of) {
  const ParallelRegion region;
  const int threads = product_threads(ctx, product_flops(layers, columns));
  const std::vector<Piece> pieces = pieces_of(layers);
  const DType dtype = layers.front().g.dtype;
  const ProductScratch scratch(ctx, name, product_bytes(pieces, dtype, columns, threads, plan_of));
  visit_storage(dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = std::conditional_t<std::is_same_v<S, double>, double, float>;
    Op<S, T>(ctx, pieces, vector, out, threads, scratch.data()).run();
  });
  return verdict(ctx, threads, layers, vector, out);
}

}  // namespace fastfisher::cpu
