// SPDX-License-Identifier: Apache-2.0
//
// Shapes, dtypes and devices of every op, checked once for all backends before one is called.
#pragma once

#include "fastfisher/ops.hpp"

#include <span>
#include <string>

namespace fastfisher::checks {

// Pieces that the checks of all ops share. `argument` is the name in messages.
std::string shape_of(const ArrayRef& array);
[[noreturn]] void fail(ErrorCode code, const char* op, const std::string& argument,
                       const std::string& message);
void expect_rank(const char* op, const std::string& argument, const ArrayRef& array, int rank,
                 const char* shape);
void expect_like(const char* op, const std::string& argument, const ArrayRef& array,
                 const Context& ctx, DType dtype);
void expect_extent(const char* op, const std::string& argument, const ArrayRef& array, int axis,
                   std::int64_t extent, const std::string& as);
/// Whether the address ranges of two arrays meet.
bool share_memory(const ArrayRef& x, const ArrayRef& y);
/// Whether two entries of `out` share an address, so that two threads would write it.
bool overlaps(const ArrayRef& out);

/// Layers of one side: forms, ranks, dtypes, devices, and the samples and outputs that they share.
void layers(const char* op, const Context& ctx, std::span<const LayerFactors> list,
            const std::string& side);

void gram(const Context& ctx, std::span<const LayerFactors> left,
          std::span<const LayerFactors> right, const GramOptions& options);
void gram_out(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
              const GramOptions& options, const ArrayRef& out);
/// Columns of a product with the Jacobian of `layers`, `vector` and `out` checked; `forward`: J v.
void product(const char* op, const Context& ctx, std::span<const LayerFactors> layers,
             const ArrayRef& vector, const ArrayRef& out, bool forward);
/// What a product's workspace depends on.
void product_workspace(const char* op, const Context& ctx, std::span<const LayerFactors> layers,
                       std::int64_t columns);
void matmul(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out);
void bmm(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out);

void lanczos_steps(const Context& ctx, const ArrayRef& a, const ArrayRef& scale,
                   const ArrayRef& basis, std::int64_t first, const ArrayRef& small);
void lanczos_steps_workspace(const Context& ctx, const ArrayRef& a, std::int64_t b,
                             std::int64_t rows);
void panel_combine(const Context& ctx, const ArrayRef& weights, const ArrayRef& x,
                   const ArrayRef& y);
void panel_dots(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& out);
void panel_remove(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& small);
void panel_remove_workspace(std::int64_t networks, std::int64_t i, std::int64_t j, std::int64_t n);
void eigh_ends(const Context& ctx, const ArrayRef& a, const ArrayRef& scale, const ArrayRef& values,
               const ArrayRef& vectors, const ArrayRef& residual_norms, const ArrayRef& norm);
void eigh_ends_workspace(const Context& ctx, const ArrayRef& a, std::int64_t k);
void small_eigh(const Context& ctx, const ArrayRef& a, const ArrayRef& values,
                const ArrayRef& vectors);
void symm(const Context& ctx, const ArrayRef& a, const ArrayRef& x, const ArrayRef& scale,
          const ArrayRef& out);
void symm_workspace(const Context& ctx, const ArrayRef& a, std::int64_t vectors);
void largest(const Context& ctx, const ArrayRef& x);
void symmetry(const Context& ctx, const ArrayRef& a, const ArrayRef& out);
void psd(const Context& ctx, std::span<const PsdItem> items, const PsdOptions& options);
void psd_factor_size(std::int64_t n, DType dtype);
void moments(const Context& ctx, std::span<const MomentItem> items);
void sandwich(const Context& ctx, std::span<const SandwichItem> items);

}  // namespace fastfisher::checks
