// SPDX-License-Identifier: Apache-2.0
//
// Whole blocks and panels.
#pragma once

#include <cstdint>

namespace fastfisher::cpu {

constexpr std::int64_t ceil_div(std::int64_t x, std::int64_t y) {
  return (x + y - 1) / y;
}
constexpr std::int64_t round_up(std::int64_t x, std::int64_t y) {
  return ceil_div(x, y) * y;
}

}  // namespace fastfisher::cpu
