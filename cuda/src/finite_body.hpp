// SPDX-License-Identifier: Apache-2.0
//
// Kernel body that looks for the first entry that is not finite, of an array of any rank, strides
// and storage. It is asked of every result, and of the inputs only when a result is bad.
#pragma once

#include "axis.hpp"
#include "scan_body.hpp"

#include <cmath>
#include <cstdint>

namespace fastfisher::cuda {

constexpr int kFiniteAxes = 7;

// Axes innermost first, those that lie behind one another joined.
struct FiniteInput {
  const void* data = nullptr;
  std::int64_t size = 0;
  std::int32_t axes = 1;
  std::int64_t extents[kFiniteAxes] = {1, 1, 1, 1, 1, 1, 1};
  std::int64_t strides[kFiniteAxes] = {0, 0, 0, 0, 0, 0, 0};
};

inline FiniteInput finite_input(const ArrayRef& array) {
  FiniteInput input;
  input.data = array.data;
  input.size = array.rank == 0 ? 0 : array.size();
  int axis = -1;
  for (int r = array.rank - 1; r >= 0; --r) {
    const std::int64_t extent = array.extent(r), stride = array.stride(r);
    if (extent == 1) continue;
    if (axis >= 0 && stride == input.strides[axis] * input.extents[axis]) {
      input.extents[axis] *= extent;
      continue;
    }
    ++axis;
    input.extents[axis] = extent;
    input.strides[axis] = stride;
  }
  input.axes = axis < 0 ? 1 : axis + 1;
  return input;
}

// Writes ScanFound::kFirst minus the first index that is not finite to `bad`, if there is one.
template <class S, int Threads>
struct Finite {
  static constexpr int kThreads = Threads;
  struct Shared {};

  template <BlockContext Block>
  FF_HD static void run(const Block& block, const FiniteInput& input, std::uint64_t* bad) {
    for (std::int64_t index = block.index() * Threads + block.thread(); index < input.size;
         index += block.blocks() * Threads) {
      std::int64_t offset = 0, rest = index;
      for (int axis = 0; axis + 1 < input.axes; ++axis) {
        const std::int64_t outer = rest / input.extents[axis];
        offset += (rest - outer * input.extents[axis]) * input.strides[axis];
        rest = outer;
      }
      offset += rest * input.strides[input.axes - 1];
      const auto value = std::abs(widen(static_cast<const S*>(input.data)[offset]));
      if (value <= kLargest<decltype(widen(S{}))>) continue;
      block.atomic_max(bad, ScanFound::kFirst - static_cast<std::uint64_t>(index));
      return;  // what this thread would find later is not the first
    }
  }
};

}  // namespace fastfisher::cuda
