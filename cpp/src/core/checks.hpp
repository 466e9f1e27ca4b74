// SPDX-License-Identifier: Apache-2.0
//
// Shapes, dtypes and devices of every op, checked once for all backends before one is called.
#pragma once

#include "fastfisher/ops.hpp"

#include <span>

namespace fastfisher::checks {

void gram(const Context& ctx, std::span<const GramLayer> left, std::span<const GramLayer> right,
          const GramOptions& options);
void gram_out(std::span<const GramLayer> left, std::span<const GramLayer> right,
              const GramOptions& options, const ArrayRef& out);
void matmul(const Context& ctx, const ArrayRef& a, const ArrayRef& b, const ArrayRef& out);

}  // namespace fastfisher::checks
