// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fastfisher/backend.hpp"

#include <string>

namespace fastfisher::cpu {

GramReport gram(const Context& ctx, std::span<const GramLayer> left,
                std::span<const GramLayer> right, const GramOptions& options, const ArrayRef& out);
std::int64_t gram_workspace(const Context& ctx, std::span<const GramLayer> left,
                            std::span<const GramLayer> right, const GramOptions& options);
void matmul(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out);

/// Instruction set of the kernels in use, for instance "avx2".
std::string simd_name();

const Backend& backend();

}  // namespace fastfisher::cpu
