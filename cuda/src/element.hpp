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

FF_HD inline double double_of(std::uint64_t bits) {
  double value = 0;
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

// Two floats rounded to bfloat16, the first in the low half.
FF_HD inline std::uint32_t pair_of(float first, float second) {
#if defined(__CUDA_ARCH__)
  std::uint32_t pair = 0;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  const auto nearest = [](float x) {  // ties to even
    const std::uint32_t bits = bits_of(x);
    return (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
  };
  return nearest(first) | nearest(second) << 16;
#endif
}

// Each of two floats as a sum of three bfloat16, which leaves out 2^-27 of it at most.
inline constexpr int kTerms = 3;
FF_HD inline void split(float first, float second, std::uint32_t (&pairs)[kTerms]) {
  FF_UNROLL
  for (int k = 0; k < kTerms; ++k) {
    pairs[k] = pair_of(first, second);
    first -= float_of(pairs[k] << 16);
    second -= float_of(pairs[k] & 0xffff0000U);
  }
}

// Products of two such sums, the small ones first: those left out are 2^-26 of the whole.
inline constexpr int kProducts = 6;
struct TermPair {
  int x, y;
};
FF_HD constexpr TermPair term_pair(int product) {
  constexpr TermPair kPairs[kProducts] = {{2, 0}, {1, 1}, {0, 2}, {1, 0}, {0, 1}, {0, 0}};
  return kPairs[product];
}

}  // namespace fastfisher::cuda
