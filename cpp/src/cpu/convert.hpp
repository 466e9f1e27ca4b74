// SPDX-License-Identifier: Apache-2.0
//
// 16-bit storage widened to float, exactly, and other types as they are.
#pragma once

#include "fastfisher/dtype.hpp"

#include <bit>
#include <cstdint>

namespace fastfisher::cpu {

inline float widen(float value) {
  return value;
}
inline double widen(double value) {
  return value;
}

inline float widen(BFloat16 value) {
  return std::bit_cast<float>(std::uint32_t{value.bits} << 16);
}

// Without branches, so that loops over it vectorise. Normal numbers move their exponent by a
// multiplication, which carries infinity and NaN along; subnormal ones by a subtraction.
inline float widen(Float16 value) {
  const std::uint32_t wide = std::uint32_t{value.bits} << 16;
  const std::uint32_t twice = wide + wide;
  const float normal =
      std::bit_cast<float>((twice >> 4) + (std::uint32_t{0xe0} << 23)) * 0x1.0p-112f;
  const float subnormal = std::bit_cast<float>((twice >> 17) | (std::uint32_t{126} << 23)) - 0.5f;
  const std::uint32_t magnitude =
      std::bit_cast<std::uint32_t>(twice < (std::uint32_t{1} << 27) ? subnormal : normal);
  return std::bit_cast<float>((wide & 0x80000000U) | magnitude);
}

}  // namespace fastfisher::cpu
