// SPDX-License-Identifier: Apache-2.0
//
// Included once by each symm_kernels_<isa>.cpp, which is compiled for that instruction set and
// defines FF_VECTOR_BYTES; the rules are those of tile_kernels_body.hpp. Four rows share each load
// of the columns' panels: two multiply-adds an entry of the matrix and vector, no other traffic.

#include "symm_kernels.hpp"

namespace fastfisher::cpu {
namespace {

template <class T>
struct Panel {
  using Vector __attribute__((vector_size(FF_VECTOR_BYTES), aligned(sizeof(T)), may_alias)) = T;
  static constexpr std::int64_t kLanes = FF_VECTOR_BYTES / static_cast<std::int64_t>(sizeof(T));
  static constexpr int kVectors = static_cast<int>(kSymmWidth / kLanes);
};

template <class T, int Rows, int From, int Count>
void tile_rows(const T* a, std::int64_t lda, std::int64_t cols, const T* left, const T* right,
               T* left_out, T* right_out) {
  using P = Panel<T>;
  using V = typename P::Vector;
  V x[Rows][Count], sum[Rows][Count];
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < Count; ++v) {
      const std::int64_t at = i * kSymmWidth + (From + v) * P::kLanes;
      x[i][v] = *reinterpret_cast<const V*>(left + at);
      sum[i][v] = V{};
    }
  }
  for (std::int64_t j = 0; j < cols; ++j) {
#pragma GCC unroll 4
    for (int v = 0; v < Count; ++v) {
      const std::int64_t at = j * kSymmWidth + (From + v) * P::kLanes;
      const V y = *reinterpret_cast<const V*>(right + at);
      V z = *reinterpret_cast<const V*>(right_out + at);
#pragma GCC unroll 4
      for (int i = 0; i < Rows; ++i) {
        const T entry = a[i * lda + j];
        sum[i][v] += entry * y;
        z += entry * x[i][v];
      }
      *reinterpret_cast<V*>(right_out + at) = z;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < Count; ++v) {
      V& result = *reinterpret_cast<V*>(left_out + i * kSymmWidth + (From + v) * P::kLanes);
      result += sum[i][v];
    }
  }
}

// As many vectors of a panel at a time as leave the sums of four rows in registers.
template <class T, int Rows, int From = 0>
void tile_group(const T* a, std::int64_t lda, std::int64_t cols, const T* left, const T* right,
                T* left_out, T* right_out) {
  if constexpr (From < Panel<T>::kVectors) {
    tile_rows<T, Rows, From, 1>(a, lda, cols, left, right, left_out, right_out);
    tile_group<T, Rows, From + 1>(a, lda, cols, left, right, left_out, right_out);
  }
}

template <class T>
void tile(const T* a, std::int64_t lda, std::int64_t rows, std::int64_t cols, const T* left,
          const T* right, T* left_out, T* right_out) {
  std::int64_t i = 0;
  for (; i + 4 <= rows; i += 4)
    tile_group<T, 4>(a + i * lda, lda, cols, left + i * kSymmWidth, right,
                     left_out + i * kSymmWidth, right_out);
  for (; i < rows; ++i)
    tile_group<T, 1>(a + i * lda, lda, cols, left + i * kSymmWidth, right,
                     left_out + i * kSymmWidth, right_out);
}

}  // namespace
}  // namespace fastfisher::cpu
