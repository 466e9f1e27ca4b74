// SPDX-License-Identifier: Apache-2.0
//
// Launches of the products and reductions, on a stream; the work's description is passed by value.
#pragma once

#include "product_plan.hpp"

#include <cstdint>
#include <span>

namespace fastfisher::cuda {

/// Products of one table at most.
constexpr std::int64_t kProductTable = 64;

/// Tiles of the product, then where its depth is shared out the sums of the shares.
template <class T>
void launch_product(const Product<T>& product, void* stream, const char* op);

/// The same for a list, all at once: `table` is device memory for the descriptions.
template <class T>
void launch_products(std::span<const Product<T>> products, Product<T>* table, void* stream,
                     const char* op);

/// S: type of the factors. Shares are added up by launch_collect.
template <class S, class T>
void launch_contract(const Contraction<T>& contraction, void* stream, const char* op);
template <class S, class T>
void launch_weigh(const Weighing<T>& weighing, void* stream, const char* op);
template <class T>
void launch_collect(const Collection<T>& collection, void* stream, const char* op);
template <class T>
void launch_widen(const Widening<T>& widening, void* stream, const char* op);

}  // namespace fastfisher::cuda
