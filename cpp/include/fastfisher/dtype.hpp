// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastfisher {

/// Element types that may cross the waist. An op lists those it takes. The 16-bit ones are storage
/// only: they are widened to float32 before any arithmetic, and results are float32.
enum class DType : std::uint8_t { f32, f64, bf16, f16 };

constexpr std::int64_t size_of(DType dtype) {
  return dtype == DType::f32 ? 4 : dtype == DType::f64 ? 8 : 2;
}

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
  case DType::f32:
    return "float32";
  case DType::f64:
    return "float64";
  case DType::bf16:
    return "bfloat16";
  case DType::f16:
    return "float16";
  }
  return "";
}

/// dtype of the result of an op on inputs of `dtype`.
constexpr DType result_of(DType dtype) {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

/// The bits of a bfloat16 and of an IEEE half number.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

template <class T>
inline constexpr DType dtype_of = DType::f32;
template <>
inline constexpr DType dtype_of<double> = DType::f64;
template <>
inline constexpr DType dtype_of<BFloat16> = DType::bf16;
template <>
inline constexpr DType dtype_of<Float16> = DType::f16;

template <class T>
struct TypeTag {
  using type = T;
};

/// Call `function` with the tag of the C++ type of arithmetic behind `dtype`, float or double: once
/// per op, in its launcher.
template <class Function>
decltype(auto) visit_dtype(DType dtype, Function&& function) {
  if (dtype == DType::f64) return function(TypeTag<double>{});
  return function(TypeTag<float>{});
}

/// The same with the type of storage, 16-bit ones among them.
template <class Function>
decltype(auto) visit_storage(DType dtype, Function&& function) {
  if (dtype == DType::bf16) return function(TypeTag<BFloat16>{});
  if (dtype == DType::f16) return function(TypeTag<Float16>{});
  return visit_dtype(dtype, function);
}

}  // namespace fastfisher
