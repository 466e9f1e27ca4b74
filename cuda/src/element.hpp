// SPDX-License-Identifier: Apache-2.0
//
// Numbers as kernel bodies read them: 16-bit storage widened, bits of floats, TF32 halves.
#pragma once

#include "block.hpp"
#include "fastfisher/dtype.hpp"

#include <cstdint>
#include <cstring>
#include <limits>

namespace fastfisher::cuda {

// Device code may read it, but not call max() itself.
template <class S>
inline constexpr S kLargest = std::numeric_limits<S>::max();

FF_HD inline std::uint32_t bits_of(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
FF_HD inline std::uint64_t bits_of(double value) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
FF_HD inline float float_of(std::uint32_t bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

FF_HD inline float widen(float value) {
  return value;
}
FF_HD inline double widen(double value) {
  return value;
}
FF_HD inline float widen(BFloat16 value) {
  return float_of(static_cast<std::uint32_t>(value.bits) << 16);
}
// Every half number is a float: subnormal ones are multiples of 2^-24.
FF_HD inline float widen(Float16 value) {
  const std::uint32_t sign = (value.bits & 0x8000U) << 16, rest = value.bits & 0x7fffU;
  if (rest < 0x0400U) {
    const float small = static_cast<float>(rest) * 0x1p-24F;
    return sign != 0 ? -small : small;
  }
  return float_of(sign |
                  (rest >= 0x7c00U ? 0x7f800000U | (rest << 13) : (rest << 13) + 0x38000000U));
}

// Element `at` of memory that holds numbers of `dtype`.
template <class T>
FF_HD T element(const void* data, DType dtype, std::int64_t at) {
  switch (dtype) {
  case DType::f64:
    return static_cast<T>(static_cast<const double*>(data)[at]);
  case DType::bf16:
    return static_cast<T>(widen(static_cast<const BFloat16*>(data)[at]));
  case DType::f16:
    return static_cast<T>(widen(static_cast<const Float16*>(data)[at]));
  default:
    return static_cast<T>(static_cast<const float*>(data)[at]);
  }
}

// x = high + low to 22 bits, each of TF32's 11, rounded to nearest: tensor cores read no more of a
// float than that. The low 13 bits of `low` are rubbish that they do not see.
FF_HD inline void split(float x, float& high, float& low) {
  high = float_of((bits_of(x) + 0x1000U) & 0xffffe000U);
  low = float_of(bits_of(x - high) + 0x1000U);
}

}  // namespace fastfisher::cuda
