// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fastfisher/dtype.hpp"

#include <array>
#include <cstdint>
#include <type_traits>

namespace fastfisher {

enum class DeviceKind : std::uint8_t { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

/// A batch of three-dimensional convolutions has that many axes.
inline constexpr int kMaxRank = 7;

/// Erased array at the waist. Strides count elements and are free: zero, negative, any order.
struct ArrayRef {
  void* data = nullptr;
  DType dtype = DType::f32;
  Device device;
  int rank = 0;
  std::array<std::int64_t, kMaxRank> extents{};
  std::array<std::int64_t, kMaxRank> strides{};

  [[nodiscard]] std::int64_t extent(int r) const { return extents[r]; }
  [[nodiscard]] std::int64_t stride(int r) const { return strides[r]; }
  [[nodiscard]] std::int64_t size() const {
    std::int64_t count = 1;
    for (int r = 0; r < rank; ++r) count *= extents[r];
    return count;
  }
};

/// Typed view, spelled like mdspan: `v.extent(r)`, `v.stride(r)`, `v(i, j)`. Const elements mean
/// input.
template <class T, int Rank>
struct View {
  T* data = nullptr;
  std::array<std::int64_t, Rank> extents{};
  std::array<std::int64_t, Rank> strides{};

  [[nodiscard]] constexpr std::int64_t extent(int r) const { return extents[r]; }
  [[nodiscard]] constexpr std::int64_t stride(int r) const { return strides[r]; }

  template <class... Index>
  [[nodiscard]] constexpr T& operator()(Index... index) const {
    static_assert(sizeof...(Index) == Rank);
    std::int64_t offset = 0;
    int r = 0;
    ((offset += static_cast<std::int64_t>(index) * strides[r++]), ...);
    return data[offset];
  }
};

/// `array` as a typed view. The caller has checked dtype and rank.
template <class T, int Rank>
View<T, Rank> view_of(const ArrayRef& array) {
  View<T, Rank> view{static_cast<T*>(array.data), {}, {}};
  for (int r = 0; r < Rank; ++r) {
    view.extents[r] = array.extents[r];
    view.strides[r] = array.strides[r];
  }
  return view;
}

/// A packed row-major array that the caller owns, as C++ callers have it.
template <class T, class... Extent>
ArrayRef array_ref(T* data, Extent... extent) {
  static_assert(sizeof...(Extent) <= kMaxRank);
  ArrayRef array;
  array.data = const_cast<void*>(static_cast<const void*>(data));
  array.dtype = dtype_of<std::remove_cv_t<T>>;
  array.rank = static_cast<int>(sizeof...(Extent));
  array.extents = {static_cast<std::int64_t>(extent)...};
  std::int64_t stride = 1;
  for (int r = array.rank - 1; r >= 0; --r) {
    array.strides[r] = stride;
    stride *= array.extents[r];
  }
  return array;
}

}  // namespace fastfisher
