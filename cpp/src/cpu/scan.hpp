// SPDX-License-Identifier: Apache-2.0
//
// Largest magnitude of an array, or the first entry that is NaN or infinite.
#pragma once

#include "fastfisher/context.hpp"
#include "fastfisher/view.hpp"

#include <cstdint>
#include <vector>

namespace fastfisher::cpu {

struct ScanResult {
  double largest = 0;  ///< max |x|; 0 for an empty array
  std::int64_t first_bad =
      -1;  ///< row-major index of the first NaN or infinity, -1 if there is none
};

/// One read of the array; axes of zero stride are read once. `samples`, where given, becomes the
/// largest magnitude for each index of the first axis.
ScanResult scan(const Context& ctx, int threads, const ArrayRef& array,
                std::vector<double>* samples = nullptr);

}  // namespace fastfisher::cpu
