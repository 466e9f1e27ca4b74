// SPDX-License-Identifier: Apache-2.0
//
// Drawn sizes and strided arrays.
#pragma once

#include "fastfisher/view.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <vector>

namespace fastfisher::test {

inline std::mt19937 engine(7);

inline std::int64_t draw(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(engine);
}

/// Owns memory for a view with drawn axis order, steps and directions.
template <class T>
struct Strided {
  std::vector<T> memory;
  ArrayRef ref;

  /// `packed`: in order and without gaps. Numbers are normal, times `scale`.
  explicit Strided(const std::vector<std::int64_t>& extents, bool packed = false,
                   double scale = 1) {
    std::vector<std::size_t> order(extents.size());
    for (std::size_t r = 0; r < order.size(); ++r) order[r] = order.size() - 1 - r;
    if (!packed) std::shuffle(order.begin(), order.end(), engine);
    ref.dtype = dtype_of<T>;
    ref.rank = static_cast<int>(extents.size());
    std::int64_t size = 1, offset = 0;
    for (const std::size_t axis : order) {
      const std::int64_t step = packed ? 1 : draw(1, 2);
      ref.extents[axis] = extents[axis];
      ref.strides[axis] = size * step;
      if (!packed && draw(0, 3) == 0) {
        offset += (extents[axis] - 1) * ref.strides[axis];
        ref.strides[axis] = -ref.strides[axis];
      }
      size *= std::max<std::int64_t>(1, extents[axis]) * step;
    }
    memory.resize(static_cast<std::size_t>(size));
    std::normal_distribution<T> normal;
    for (T& value : memory) value = static_cast<T>(scale * static_cast<double>(normal(engine)));
    ref.data = memory.data() + (size > 0 ? std::max<std::int64_t>(0, offset) : 0);
  }

  Strided(const Strided& other) : memory(other.memory), ref(other.ref) {
    ref.data = memory.data() + (static_cast<const T*>(other.ref.data) - other.memory.data());
  }
  Strided(Strided&&) noexcept = default;

  /// Entry at an index as long as the rank.
  [[nodiscard]] double at(const std::vector<std::int64_t>& index) const {
    std::int64_t offset = 0;
    for (std::size_t r = 0; r < index.size(); ++r) offset += index[r] * ref.strides[r];
    return static_cast<double>(static_cast<const T*>(ref.data)[offset]);
  }
  void set(const std::vector<std::int64_t>& index, T value) {
    std::int64_t offset = 0;
    for (std::size_t r = 0; r < index.size(); ++r) offset += index[r] * ref.strides[r];
    static_cast<T*>(ref.data)[offset] = value;
  }
};

}  // namespace fastfisher::test
