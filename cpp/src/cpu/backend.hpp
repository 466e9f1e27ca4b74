// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fastfisher/backend.hpp"

#include <string>

namespace fastfisher::cpu {

void eigh_ends(const Context& ctx, const ArrayRef& a, const ArrayRef& scale, SpectrumEnd end,
               const ArrayRef& values, const ArrayRef& vectors, const ArrayRef& residual_norms,
               const ArrayRef& norm);
std::int64_t eigh_ends_workspace(const Context& ctx, const ArrayRef& a, SpectrumEnd end,
                                 std::int64_t k);
GramReport gram(const Context& ctx, std::span<const LayerFactors> left,
                std::span<const LayerFactors> right, const GramOptions& options,
                const ArrayRef& out);
GramEstimate gram_workspace(const Context& ctx, std::span<const LayerFactors> left,
                            std::span<const LayerFactors> right, const GramOptions& options);
ProductReport jvp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& v,
                  const ArrayRef& out);
std::int64_t jvp_workspace(const Context& ctx, std::span<const LayerFactors> layers,
                           std::int64_t columns);
void matmul(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out);
void moments(const Context& ctx, std::span<const MomentItem> items);
std::int64_t moments_workspace(const Context& ctx, std::int64_t most, DType dtype);
void lanczos_steps(const Context& ctx, const ArrayRef& a, const ArrayRef& scale,
                   const ArrayRef& basis, std::int64_t first, LanczosStart start,
                   const ArrayRef& small);
std::int64_t lanczos_steps_workspace(const Context& ctx, const ArrayRef& a, std::int64_t b,
                                     std::int64_t rows);
void panel_combine(const Context& ctx, const ArrayRef& weights, const ArrayRef& x, bool keep,
                   const ArrayRef& y);
void panel_dots(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& out);
void panel_remove(const Context& ctx, const ArrayRef& x, const ArrayRef& y, const ArrayRef& small);
std::int64_t panel_remove_workspace(const Context& ctx, std::int64_t networks, std::int64_t i,
                                    std::int64_t j, std::int64_t n);
void bmm(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out);
void sandwich(const Context& ctx, std::span<const SandwichItem> items);
std::int64_t sandwich_workspace(const Context& ctx, std::int64_t rows, std::int64_t columns,
                                DType dtype);
void small_eigh(const Context& ctx, const ArrayRef& a, const ArrayRef& values,
                const ArrayRef& vectors);
void symm(const Context& ctx, const ArrayRef& a, const ArrayRef& x, const ArrayRef& scale,
          const ArrayRef& out);
std::int64_t symm_workspace(const Context& ctx, const ArrayRef& a, std::int64_t vectors);
void symmetry(const Context& ctx, const ArrayRef& a, const ArrayRef& out);
double largest(const Context& ctx, const ArrayRef& x);
std::vector<PsdReport> psd(const Context& ctx, std::span<const PsdItem> items,
                           const PsdOptions& options);
std::int64_t psd_factor_size(const Context& ctx, std::int64_t n, DType dtype);
std::int64_t psd_workspace(const Context& ctx, std::span<const std::int64_t> sizes, DType dtype,
                           PsdTask task);
ProductReport vjp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& u,
                  const ArrayRef& out);
std::int64_t vjp_workspace(const Context& ctx, std::span<const LayerFactors> layers,
                           std::int64_t columns);

/// Instruction set of the kernels in use, for instance "avx2".
std::string simd_name();
bool outruns_mkl();

const Backend& backend();

}  // namespace fastfisher::cpu
