// SPDX-License-Identifier: Apache-2.0
//
// Included once by each reduction_kernels_<isa>.cpp, which is compiled for that instruction set and
// defines FF_VECTOR_BYTES; the rules are those of tile_kernels_body.hpp. An entry right of the
// diagonal serves its row and its column: four rows share the loads and the store of the columns'
// sums, eight multiply-adds a vector of columns against six loads.

#include "reduction_kernels.hpp"

#include <type_traits>

namespace fastfisher::cpu {
namespace {

template <class T>
struct Vectors {
  using type __attribute__((vector_size(FF_VECTOR_BYTES), aligned(sizeof(T)), may_alias)) = T;
  static constexpr std::int64_t kLanes = FF_VECTOR_BYTES / static_cast<std::int64_t>(sizeof(T));
};

constexpr int kRows = 4;

// Sums of neighbours, those of x and of y in turns of half a 16-byte lane.
template <class T>
typename Vectors<T>::type pairs(typename Vectors<T>::type x, typename Vectors<T>::type y) {
  using V = typename Vectors<T>::type;
  using Index __attribute__((vector_size(FF_VECTOR_BYTES))) =
      std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  constexpr std::int64_t kLanes = Vectors<T>::kLanes;
  Index even;
  if constexpr (kLanes == 8)
    even = Index{0, 2, 8, 10, 4, 6, 12, 14};
  else if constexpr (kLanes == 2)
    even = Index{0, 2};
  else if constexpr (sizeof(T) == 8)
    even = Index{0, 4, 2, 6};
  else
    even = Index{0, 2, 4, 6};
  const V first = __builtin_shuffle(x, y, even), second = __builtin_shuffle(x, y, even + 1);
  return first + second;
}

// out[i] += the lanes of sum[i], of four rows together.
template <class T>
void add_lanes(const typename Vectors<T>::type* sum, T* out) {
  using V = typename Vectors<T>::type;
  constexpr int kHalves = FF_VECTOR_BYTES / 16;
  const V front = pairs<T>(sum[0], sum[1]), back = pairs<T>(sum[2], sum[3]);
  if constexpr (sizeof(T) == 4) {
    const V all = pairs<T>(front, back);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      for (int half = 0; half < kHalves; ++half) out[i] += all[i + 4 * half];
    }
  } else {
    for (int half = 0; half < kHalves; ++half) {
      out[0] += front[2 * half];
      out[1] += front[2 * half + 1];
      out[2] += back[2 * half];
      out[3] += back[2 * half + 1];
    }
  }
}

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
      V entry = *reinterpret_cast<const V*>(a + i * lda + j);
#if defined(__x86_64__)
      // One load: the compiler would rather load it again as an operand of the second use.
      asm("" : "+x"(entry));
#endif
      sum[i] += entry * right;
      column += entry * left[i];
    }
    *reinterpret_cast<V*>(out + j) = column;
  }
  add_lanes<T>(sum, x_out);
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
