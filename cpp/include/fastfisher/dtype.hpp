// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastfisher {

/// Element types that may cross the waist. An op lists those it takes.
enum class DType : std::uint8_t { f32, f64 };

constexpr std::int64_t size_of(DType dtype) {
  return dtype == DType::f32 ? 4 : 8;
}

constexpr const char* name_of(DType dtype) {
  return dtype == DType::f32 ? "float32" : "float64";
}

template <class T>
inline constexpr DType dtype_of = DType::f32;
template <>
inline constexpr DType dtype_of<double> = DType::f64;

template <class T>
struct TypeTag {
  using type = T;
};

/// Call `function` with the tag of the C++ type behind `dtype`: once per op, in its launcher.
template <class Function>
decltype(auto) visit_dtype(DType dtype, Function&& function) {
  if (dtype == DType::f32) return function(TypeTag<float>{});
  return function(TypeTag<double>{});
}

}  // namespace fastfisher
