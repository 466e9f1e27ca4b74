// SPDX-License-Identifier: Apache-2.0
//
// Included once by each reduction_kernels_<isa>.cpp, which is compiled for that instruction set and
// defines FF_VECTOR_BYTES; the rules are those of tile_kernels_body.hpp. An entry right of the
// diagonal serves its row and its column: four rows share the loads and the store of the columns'
// sums, eight multiply-adds a vector of columns against six loads.

#include "reduction_kernels.hpp"

namespace fastfisher::cpu {
namespace {

template <class T>
struct Vectors {
  using type __attribute__((vector_size(FF_VECTOR_BYTES), aligned(sizeof(T)), may_alias)) = T;
  static constexpr std::int64_t kLanes = FF_VECTOR_BYTES / static_cast<std::int64_t>(sizeof(T));
};

constexpr int kRows = 4;

// Rows a, a + lda, ... against columns from ... n: out[j] += sum_i a[i,j] x[i], x_out[i] += sum_j
// a[i,j] v[j].
template <class T>
void rows_product(const T* a, std::int64_t lda, std::int64_t from, std::int64_t n, const T* x,
                  const T* v, T* x_out, T* out) {
  using V = typename Vectors<T>::type;
  constexpr std::int64_t kLanes = Vectors<T>::kLanes;
  V left[kRows], sum[kRows];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
    left[i] = V{} + x[i];
    sum[i] = V{};
  }
  for (std::int64_t j = from; j < n; j += kLanes) {
    const V right = *reinterpret_cast<const V*>(v + j);
    V column = *reinterpret_cast<const V*>(out + j);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const V entry = *reinterpret_cast<const V*>(a + i * lda + j);
      sum[i] += entry * right;
      column += entry * left[i];
    }
    *reinterpret_cast<V*>(out + j) = column;
  }
  // Lanes of four rows are added up together: pairwise, as far as four sums fill a vector.
  T lanes[kRows][kLanes];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) *reinterpret_cast<V*>(lanes[i]) = sum[i];
  for (int i = 0; i < kRows; ++i) {
    T total = 0;
#pragma GCC unroll 8
    for (std::int64_t lane = 0; lane < kLanes; ++lane) total += lanes[i][lane];
    x_out[i] += total;
  }
}

template <class T>
void product(const T* a, std::int64_t lda, const T* diagonal, std::int64_t first, std::int64_t n,
             const T* v, T* out) {
  using V = typename Vectors<T>::type;
  constexpr std::int64_t kLanes = Vectors<T>::kLanes;
  for (std::int64_t j = first; j < n; ++j) out[j] = 0;
  for (std::int64_t block = first; block < n; block += kDiagonalBlock) {
#pragma GCC unroll 4
    for (std::int64_t j = 0; j < kDiagonalBlock; j += kLanes) {
      V sum = *reinterpret_cast<const V*>(out + block + j);
#pragma GCC unroll 8
      for (std::int64_t i = 0; i < kDiagonalBlock; ++i) {
        const V row = *reinterpret_cast<const V*>(diagonal + (block + i) * kDiagonalBlock + j);
        sum += row * v[block + i];
      }
      *reinterpret_cast<V*>(out + block + j) = sum;
    }
    for (std::int64_t row = block; row < block + kDiagonalBlock; row += kRows)
      rows_product(a + row * lda, lda, block + kDiagonalBlock, n, v + row, v, out + row, out);
  }
}

}  // namespace
}  // namespace fastfisher::cpu
