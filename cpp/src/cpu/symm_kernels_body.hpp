// SPDX-License-Identifier: Apache-2.0
//
// Included once by each symm_kernels_<isa>.cpp, which is compiled for that instruction set and
// defines FF_VECTOR_BYTES; the rules are those of tile_kernels_body.hpp. Four rows share each load
// of the columns' panels: two multiply-adds an entry of the matrix and vector, no other traffic.
// The check compares square blocks that are transposed in registers.

#include "symm_kernels.hpp"

#include <algorithm>
#include <bit>
#include <utility>

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

template <class T>
using Whole __attribute__((vector_size(FF_VECTOR_BYTES), may_alias)) = Magnitude<T>;

// Lanes k of two vectors x, y of which one bit of the number is cleared (of the first) or set (of
// the second): halves of both change places, so that after all bits rows are columns.
template <class T, int Bit, bool Second, std::size_t... K>
constexpr Whole<T> exchanged(std::index_sequence<K...>) {
  constexpr int kLanes = static_cast<int>(Panel<T>::kLanes);
  return Whole<T>{((static_cast<int>(K) & ~Bit) | (Second ? Bit : 0)) +
                  ((static_cast<int>(K) & Bit) != 0 ? kLanes : 0)...};
}

template <class T, int Bit>
void transpose_bit(typename Panel<T>::Vector* x) {
  constexpr auto kLanes = static_cast<std::size_t>(Panel<T>::kLanes);
  constexpr Whole<T> kFirst = exchanged<T, Bit, false>(std::make_index_sequence<kLanes>());
  constexpr Whole<T> kSecond = exchanged<T, Bit, true>(std::make_index_sequence<kLanes>());
#pragma GCC unroll 8
  for (int i = 0; i < static_cast<int>(kLanes); ++i) {
    if ((i & Bit) != 0) continue;
    const auto top = x[i], bottom = x[i + Bit];
    x[i] = __builtin_shuffle(top, bottom, kFirst);
    x[i + Bit] = __builtin_shuffle(top, bottom, kSecond);
  }
}

template <class T>
Whole<T> magnitudes(typename Panel<T>::Vector x) {
  constexpr Magnitude<T> kSign = Magnitude<T>{1} << (8 * sizeof(T) - 1);
  return std::bit_cast<Whole<T>>(x) & ~(Whole<T>{} + kSign);
}

template <class T>
Magnitude<T> magnitude(T x) {
  constexpr Magnitude<T> kSign = Magnitude<T>{1} << (8 * sizeof(T) - 1);
  return std::bit_cast<Magnitude<T>>(x) & ~kSign;
}

template <class T>
Whole<T> larger(Whole<T> x, Whole<T> y) {
  return x > y ? x : y;
}

template <class T>
void check(const T* a, const T* mirror, std::int64_t lda, std::int64_t rows, std::int64_t cols,
           Magnitude<T>& largest, Magnitude<T>& apart) {
  using V = typename Panel<T>::Vector;
  constexpr std::int64_t kLanes = Panel<T>::kLanes;
  Whole<T> most{}, far{};
  const std::int64_t whole_rows = rows - rows % kLanes, whole_cols = cols - cols % kLanes;
  for (std::int64_t j = 0; j < whole_cols; j += kLanes) {
    for (std::int64_t i = 0; i < whole_rows; i += kLanes) {
      V there[kLanes];
#pragma GCC unroll 8
      for (std::int64_t k = 0; k < kLanes; ++k)
        there[k] = *reinterpret_cast<const V*>(mirror + (j + k) * lda + i);
      transpose_bit<T, 1>(there);
      if constexpr (kLanes > 2) transpose_bit<T, 2>(there);
      if constexpr (kLanes > 4) transpose_bit<T, 4>(there);
#pragma GCC unroll 8
      for (std::int64_t k = 0; k < kLanes; ++k) {
        const V here = *reinterpret_cast<const V*>(a + (i + k) * lda + j);
        most = larger<T>(most, larger<T>(magnitudes<T>(here), magnitudes<T>(there[k])));
        far = larger<T>(far, magnitudes<T>(here - there[k]));
      }
    }
  }
  for (std::int64_t k = 0; k < kLanes; ++k) {
    largest = std::max(largest, most[k]);
    apart = std::max(apart, far[k]);
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = i < whole_rows ? whole_cols : 0; j < cols; ++j) {
      const T here = a[i * lda + j], there = mirror[j * lda + i];
      largest = std::max(largest, std::max(magnitude(here), magnitude(there)));
      apart = std::max(apart, magnitude(here - there));
    }
  }
}

}  // namespace
}  // namespace fastfisher::cpu
