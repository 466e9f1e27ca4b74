// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fastfisher/context.hpp"
#include "fastfisher/ops.hpp"

#include <cstddef>
#include <span>

namespace fastfisher::cuda {

/// What to say of `out`: ok, or the first bad entry among the inputs. Synchronises the stream once
/// where out is finite; `head` is 1 KiB of device memory.
ProductReport verdict(const Context& ctx, const char* op, std::byte* head,
                      std::span<const LayerFactors> layers, const ArrayRef& vector,
                      const ArrayRef& out);

}  // namespace fastfisher::cuda
