// SPDX-License-Identifier: Apache-2.0
//
// Rows of one side of a product in strided memory, and how a block brings a stretch of them into
// shared memory.
#pragma once

#include "element.hpp"

#include <cstddef>
#include <cstdint>

namespace fastfisher::cuda {

enum class Access : int {
  vectors,   // depths lie side by side, on 16-byte boundaries: copied 16 bytes at a time
  elements,  // any strides: copied an element at a time
  convert,   // another dtype, or scaled: through registers
};

// Row r is (r / inner, r % inner), depth k is (k / run, k % run). All strides count elements.
struct Rows {
  const void* data = nullptr;
  DType dtype = DType::f32;
  Access access = Access::convert;
  bool across = false;  // neighbours in memory are rows, not depths
  std::int64_t inner = 1, outer_stride = 0, inner_stride = 0;
  std::int64_t run = 1, run_stride = 0, depth_stride = 0;
  std::int64_t depth = 0;
  std::int64_t plane_stride = 0;      // outputs = diagonal: plane c starts c of these further on
  double scale = 1;                   // power of two that entries are multiplied with when read
  const std::byte* panels = nullptr;  // the same rows packed, see panel_body.hpp, or null
  std::int64_t panels_stride = 0;     // bytes from plane to plane

  [[nodiscard]] FF_HD std::int64_t row(std::int64_t r) const {
    return inner == 1 ? r * outer_stride : r / inner * outer_stride + r % inner * inner_stride;
  }
  [[nodiscard]] FF_HD std::int64_t along(std::int64_t k) const {
    return k < run ? k * depth_stride : k / run * run_stride + k % run * depth_stride;
  }
};

// A stretch of rows: `offsets` (in shared memory) says where each of them begins.
struct Stretch {
  const Rows* rows;
  const std::int64_t* offsets;
  int count;
};

// Depths [from, from + Depth) of Edge rows to `to`, row-major with `Pitch`, by Threads threads;
// zeros beyond the stretch and its depth.
template <class T, int Edge, int Depth, int Pitch, int Threads>
struct Stage {
  static constexpr int kPiece = 16 / static_cast<int>(sizeof(T));  // elements
  static_assert(Depth % kPiece == 0 && Pitch % kPiece == 0);

  // Access::vectors: where each row begins is asked for at once, before the copies.
  template <WarpContext Block>
  FF_HD static void vectors(const Block& block, const T* data, const std::int64_t* offsets,
                            int count, std::int64_t depth, std::int64_t from, T* to) {
    constexpr int kPieces = Depth / kPiece, kEach = (Edge * kPieces + Threads - 1) / Threads;
    const T* sources[kEach];
    FF_UNROLL
    for (int p = 0; p < kEach; ++p) {
      const int e = block.thread() + p * Threads, r = e / kPieces, k = e % kPieces * kPiece;
      sources[p] = data;
      if (r < count && from + k < depth) sources[p] += offsets[r] + from + k;
    }
    FF_UNROLL
    for (int p = 0; p < kEach; ++p) {
      const int e = block.thread() + p * Threads, r = e / kPieces, k = e % kPieces * kPiece;
      if (Edge * kPieces % Threads != 0 && e >= Edge * kPieces) continue;
      block.template copy<16>(to + r * Pitch + k, sources[p], r < count && from + k < depth);
    }
  }

  template <WarpContext Block>
  FF_HD static void others(const Block& block, const Stretch& x, std::int64_t from, T* to) {
    const Rows& rows = *x.rows;
    const auto scale = static_cast<T>(rows.scale);
    for (int e = block.thread(); e < Edge * Depth; e += Threads) {
      const int k = rows.across ? e / Edge : e % Depth, r = rows.across ? e % Edge : e / Depth;
      const bool valid = r < x.count && from + k < rows.depth;
      const std::int64_t at = valid ? x.offsets[r] + rows.along(from + k) : 0;
      T* const put = to + r * Pitch + k;
      if (rows.access == Access::elements) {
        block.template copy<sizeof(T)>(put, static_cast<const T*>(rows.data) + at, valid);
      } else {
        *put = valid ? element<T>(rows.data, rows.dtype, at) * scale : T(0);
      }
    }
  }
};

}  // namespace fastfisher::cuda
