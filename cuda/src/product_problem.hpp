// SPDX-License-Identifier: Apache-2.0
//
// A matrix product as the kernel bodies of J v, J^T u, moments and the forming of gradients read
// it:
//   C[b,r,q] = scale * sum_k left[b,r,k] right[b,q,k]  (+ add[b,r,q])  (+ C[b,r,q])
// with operands anywhere in strided memory, `right` a convolution's unfolded input if need be, and
// on request the sums of the left rows as one more column.
#pragma once

#include "axis.hpp"
#include "element.hpp"

#include <cstdint>

namespace fastfisher::cuda {

// How a block's threads share the entries of a tile among them, by what is contiguous.
enum class Path : std::int32_t {
  along,   // neighbours in memory are depths
  across,  // neighbours in memory are rows
  wide,    // the same, in aligned groups of 16 bytes
};

// 16-bit numbers are widened on their way, the others copied.
FF_HD inline bool narrow(DType dtype) {
  return dtype == DType::bf16 || dtype == DType::f16;
}

struct Operand {
  const void* data = nullptr;
  Axis rows, depth;
  std::int64_t batch[2] = {0, 0};       // strides of the outer and the inner batch axis
  std::int32_t extents[3] = {1, 1, 1};  // of a convolution's input, innermost first
  bool patch = false;                   // outside those it is zero
  DType dtype = DType::f32;
  Path path = Path::along;
};

// Two nested axes of an output as one index.
struct Pair {
  std::int64_t inner = 1, outer_stride = 0, inner_stride = 0;

  [[nodiscard]] FF_HD std::int64_t offset(std::int64_t index) const {
    const std::int64_t outer = index / inner;
    return outer * outer_stride + (index - outer * inner) * inner_stride;
  }
};

template <class T>
struct Product {
  Operand left, right;
  std::int64_t rows = 0, cols = 0, depth = 0;
  std::int64_t batches = 1, inner_batches = 1;
  std::int64_t edge = 0;    // of the tiles that it is cut into
  std::int64_t splits = 1;  // shares of the depth, each of split_depth
  std::int64_t split_depth = 0;
  bool square = false;  // left = right: only entries on and below the diagonal, mirrored
  bool accumulate = false;
  T scale = 1;

  T* out = nullptr;
  Pair out_row, out_col;
  std::int64_t out_batch[2] = {0, 0};
  // What each row of C is multiplied with, for every index c a row of its own; none: 1.
  const void* weights = nullptr;
  DType weights_dtype = DType::f32;
  std::int64_t weight_row = 0, weight_batch = 0, weight_c = 0;  // strides; of the inner batch axis
  std::int64_t weight_count = 1, out_c = 0, sums_c = 0;
  const T* add = nullptr;
  Pair add_row, add_col;
  std::int64_t add_batch[2] = {0, 0};
  // The sums of the left rows; when square also as a last row, and the depth in the corner.
  T* sums = nullptr;
  Pair sums_row;
  std::int64_t sums_batch[2] = {0, 0};
  T* sums_mirror = nullptr;
  T* sums_corner = nullptr;
  T* partial = nullptr;  // [splits][batches][rows][pitch], where splits > 1

  [[nodiscard]] FF_HD std::int64_t pitch() const { return cols + (sums != nullptr ? 1 : 0); }
  [[nodiscard]] FF_HD std::int64_t entries() const { return batches * rows * pitch(); }
  [[nodiscard]] FF_HD std::int64_t batch_offset(const std::int64_t (&strides)[2],
                                                std::int64_t b) const {
    return b / inner_batches * strides[0] + b % inner_batches * strides[1];
  }

  FF_HD void put(T& at, T value) const { at = accumulate ? at + value : value; }

  [[nodiscard]] FF_HD T weight(std::int64_t b, std::int64_t row, std::int64_t c) const {
    if (weights == nullptr) return 1;
    const std::int64_t offset = b % inner_batches * weight_batch + row * weight_row + c * weight_c;
    return element<T>(weights, weights_dtype, offset);
  }

  // The sum of row r, of batch b.
  FF_HD void put_sum(std::int64_t b, std::int64_t r, T value) const {
    value *= scale;
    T* to = sums + batch_offset(sums_batch, b) + sums_row.offset(r);
    for (std::int64_t c = 0; c < weight_count; ++c) put(to[c * sums_c], value * weight(b, r, c));
    if (sums_mirror != nullptr) put(sums_mirror[r], value);
  }
};

// Adds up the shares of the depth in their order, and does with the sum what the tiles do.
template <class T, int Threads>
struct ProductSum {
  static constexpr int kThreads = Threads;
  struct Shared {};

  template <BlockContext Block>
  FF_HD static void run(const Block& block, const Product<T>& p, std::int64_t first) {
    const std::int64_t index = first * Threads + block.thread();
    const std::int64_t entries = p.entries();
    if (index >= entries) return;
    const std::int64_t q = index % p.pitch(), r = index / p.pitch() % p.rows;
    const std::int64_t b = index / p.pitch() / p.rows;
    if (p.square && q > r && q != p.cols) return;
    T value = 0;
    for (std::int64_t split = 0; split < p.splits; ++split)
      value += p.partial[split * entries + index];
    if (q == p.cols) return p.put_sum(b, r, value);
    T* out = p.out + p.batch_offset(p.out_batch, b);
    value *= p.scale;
    const std::int64_t at = p.out_row.offset(r) + p.out_col.offset(q);
    for (std::int64_t c = 0; c < p.weight_count; ++c) {
      T here = value * p.weight(b, r, c);
      if (p.add != nullptr)
        here += p.add[p.batch_offset(p.add_batch, b) + p.add_row.offset(r) + p.add_col.offset(q)];
      p.put(out[at + c * p.out_c], here);
    }
    if (p.square && q < r) p.put(out[p.out_row.offset(q) + p.out_col.offset(r)], value);
  }
};

}  // namespace fastfisher::cuda
