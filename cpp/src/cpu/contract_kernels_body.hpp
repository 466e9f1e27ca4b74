// SPDX-License-Identifier: Apache-2.0
//
// Included once by each contract_kernels_<isa>.cpp, which is compiled for that instruction set and
// defines FF_VECTOR_BYTES; the rules are those of tile_kernels_body.hpp. Blocks of rows are held in
// registers, so that each row is loaded once for all rows that it meets.

#include "contract_kernels.hpp"

namespace fastfisher::cpu {
namespace {

template <class T>
constexpr std::int64_t kLanes = FF_VECTOR_BYTES / static_cast<std::int64_t>(sizeof(T));

template <class T>
struct VectorOf {
  using type __attribute__((vector_size(FF_VECTOR_BYTES), aligned(sizeof(T)), may_alias)) = T;
};

// Asks for the lines of `Vectors` vectors from `at` on, whether there is anything or not.
template <class T, int Vectors>
void ask_for(const T* at, std::int64_t ahead) {
  const auto first = reinterpret_cast<std::intptr_t>(at) + ahead * static_cast<int>(sizeof(T));
#pragma GCC unroll 4
  for (int line = 0; line < Vectors * FF_VECTOR_BYTES; line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(first + line), 0, 2);
}

template <class T, int Xs, int Ys>
void dots_block(const T* const* x, const T* const* y, std::int64_t count, T* sums,
                std::int64_t pitch, std::int64_t ahead) {
  using V = typename VectorOf<T>::type;
  // Two sums an entry where there are few of them, for a multiply-add waits for the one before.
  constexpr int kUnroll = Xs * Ys <= 4 ? 2 : 1;
  V sum[kUnroll][Xs][Ys] = {};
  std::int64_t k = 0;
  for (; k + kUnroll * kLanes<T> <= count; k += kUnroll * kLanes<T>) {
    if (ahead != 0) {
#pragma GCC unroll 4
      for (int i = 0; i < Xs; ++i) ask_for<T, kUnroll>(x[i] + k, ahead);
    }
#pragma GCC unroll 2
    for (int u = 0; u < kUnroll; ++u) {
      V right[Ys];
#pragma GCC unroll 4
      for (int j = 0; j < Ys; ++j) right[j] = *reinterpret_cast<const V*>(y[j] + k + u * kLanes<T>);
#pragma GCC unroll 4
      for (int i = 0; i < Xs; ++i) {
        const V left = *reinterpret_cast<const V*>(x[i] + k + u * kLanes<T>);
#pragma GCC unroll 4
        for (int j = 0; j < Ys; ++j) sum[u][i][j] += left * right[j];
      }
    }
  }
  for (int i = 0; i < Xs; ++i) {
    for (int j = 0; j < Ys; ++j) {
      V all = sum[0][i][j];
      for (int u = 1; u < kUnroll; ++u) all += sum[u][i][j];
      T total = 0;
      for (std::int64_t lane = 0; lane < kLanes<T>; ++lane) total += all[lane];
      for (std::int64_t rest = k; rest < count; ++rest) total += x[i][rest] * y[j][rest];
      sums[i * pitch + j] += total;
    }
  }
}

template <class T, int Xs>
void dots_rows(const T* const* x, const T* const* y, std::int64_t ys, std::int64_t count, T* sums,
               std::int64_t ahead) {
  std::int64_t j = 0;
  for (; j + 2 <= ys; j += 2, ahead = 0) dots_block<T, Xs, 2>(x, y + j, count, sums + j, ys, ahead);
  if (j < ys) dots_block<T, Xs, 1>(x, y + j, count, sums + j, ys, ahead);
}

template <class T>
void dots(const T* const* x, std::int64_t xs, const T* const* y, std::int64_t ys,
          std::int64_t count, T* sums, std::int64_t ahead) {
  std::int64_t i = 0;
  for (; i + 4 <= xs; i += 4) dots_rows<T, 4>(x + i, y, ys, count, sums + i * ys, ahead);
  for (; i + 2 <= xs; i += 2) dots_rows<T, 2>(x + i, y, ys, count, sums + i * ys, ahead);
  for (; i < xs; ++i) dots_rows<T, 1>(x + i, y, ys, count, sums + i * ys, ahead);
}

// Vectors of columns: those of the rows behind fill up the last one, in lanes that nobody reads.
template <class T, int Xs, int Vs>
void weigh_block(const T* const* x, const T* z, std::int64_t ys, std::int64_t used,
                 std::int64_t count, T* sums) {
  using V = typename VectorOf<T>::type;
  V sum[Xs][Vs] = {};
#pragma GCC unroll 2
  for (std::int64_t o = 0; o < count; ++o) {
    V row[Vs];
#pragma GCC unroll 2
    for (int v = 0; v < Vs; ++v) row[v] = *reinterpret_cast<const V*>(z + o * ys + v * kLanes<T>);
#pragma GCC unroll 8
    for (int i = 0; i < Xs; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < Vs; ++v) sum[i][v] += x[i][o] * row[v];
    }
  }
  for (int i = 0; i < Xs; ++i) {
    const T* const lanes = reinterpret_cast<const T*>(sum[i]);
    for (std::int64_t j = 0; j < used; ++j) sums[i * ys + j] += lanes[j];
  }
}

template <class T, int Xs>
void weigh_rows(const T* const* x, const T* z, std::int64_t ys, std::int64_t count, T* sums) {
  for (std::int64_t j = 0; j < ys;) {
    const std::int64_t rest = ys - j;
    if (rest > kLanes<T>) {
      const std::int64_t used = rest < 2 * kLanes<T> ? rest : 2 * kLanes<T>;
      weigh_block<T, Xs, 2>(x, z + j, ys, used, count, sums + j);
      j += used;
    } else {
      weigh_block<T, Xs, 1>(x, z + j, ys, rest, count, sums + j);
      j += rest;
    }
  }
}

template <class T>
void weigh(const T* const* x, std::int64_t xs, const T* z, std::int64_t ys, std::int64_t count,
           T* sums) {
  static_assert(2 * kLanes<T> <= kWeighAhead);
  // As many sums as there are registers for.
  constexpr int kTall = FF_VECTOR_BYTES == 64 ? 8 : 4;
  std::int64_t i = 0;
  for (; i + kTall <= xs; i += kTall) weigh_rows<T, kTall>(x + i, z, ys, count, sums + i * ys);
  for (; i + 2 <= xs; i += 2) weigh_rows<T, 2>(x + i, z, ys, count, sums + i * ys);
  for (; i < xs; ++i) weigh_rows<T, 1>(x + i, z, ys, count, sums + i * ys);
}

template <class T>
typename VectorOf<T>::type load(const T* from, std::int64_t lanes) {
  using V = typename VectorOf<T>::type;
  if (lanes == kLanes<T>) return *reinterpret_cast<const V*>(from);
  V some = {};
  for (std::int64_t lane = 0; lane < lanes; ++lane) some[lane] = from[lane];
  return some;
}

template <class T, int Ys>
void combine_rows(const T* const* x, std::int64_t xs, const T* weights, T* const* y,
                  std::int64_t count, bool accumulate, std::int64_t ahead) {
  using V = typename VectorOf<T>::type;
  constexpr int kVectors = Ys == 1 ? 4 : 2;
  std::int64_t k = 0;
  for (; k + kVectors * kLanes<T> <= count; k += kVectors * kLanes<T>) {
    V sum[Ys][kVectors] = {};
    if (accumulate) {
      for (int j = 0; j < Ys; ++j) {
        for (int u = 0; u < kVectors; ++u)
          sum[j][u] = *reinterpret_cast<const V*>(y[j] + k + u * kLanes<T>);
      }
    }
    for (std::int64_t i = 0; i < xs; ++i) {
      if (ahead != 0) ask_for<T, kVectors>(x[i] + k, ahead);
      V row[kVectors];
#pragma GCC unroll 4
      for (int u = 0; u < kVectors; ++u)
        row[u] = *reinterpret_cast<const V*>(x[i] + k + u * kLanes<T>);
#pragma GCC unroll 4
      for (int j = 0; j < Ys; ++j) {
#pragma GCC unroll 4
        for (int u = 0; u < kVectors; ++u) sum[j][u] += weights[j * xs + i] * row[u];
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < Ys; ++j) {
#pragma GCC unroll 4
      for (int u = 0; u < kVectors; ++u)
        *reinterpret_cast<V*>(y[j] + k + u * kLanes<T>) = sum[j][u];
    }
  }
  // The rest in vectors too, the last of them filled up: an entry's bits never depend on its place.
  for (; k < count; k += kLanes<T>) {
    const std::int64_t lanes = count - k < kLanes<T> ? count - k : kLanes<T>;
    V sum[Ys] = {};
    if (accumulate) {
      for (int j = 0; j < Ys; ++j) sum[j] = load<T>(y[j] + k, lanes);
    }
    for (std::int64_t i = 0; i < xs; ++i) {
      const V row = load<T>(x[i] + k, lanes);
#pragma GCC unroll 4
      for (int j = 0; j < Ys; ++j) sum[j] += weights[j * xs + i] * row;
    }
    for (int j = 0; j < Ys; ++j) {
      for (std::int64_t lane = 0; lane < lanes; ++lane) y[j][k + lane] = sum[j][lane];
    }
  }
}

template <class T>
void combine(const T* const* x, std::int64_t xs, const T* weights, T* const* y, std::int64_t ys,
             std::int64_t count, bool accumulate, std::int64_t ahead) {
  std::int64_t j = 0;
  for (; j + 4 <= ys; j += 4, ahead = 0)
    combine_rows<T, 4>(x, xs, weights + j * xs, y + j, count, accumulate, ahead);
  for (; j < ys; ++j, ahead = 0)
    combine_rows<T, 1>(x, xs, weights + j * xs, y + j, count, accumulate, ahead);
}

// Several lines of the panel at a time, as many as fill whole vectors whatever its width.
template <class T>
void sum_panel(const T* panel, std::int64_t width, std::int64_t depth, T* sums) {
  using V = typename VectorOf<T>::type;
  constexpr std::int64_t kMost = 16;
  V sum[kMost] = {};
  T rest[kMost] = {};
  std::int64_t k = 0;
  if (width <= kMost) {
    for (; k + kLanes<T> <= depth; k += kLanes<T>) {
      for (std::int64_t q = 0; q < width; ++q)
        sum[q] += *reinterpret_cast<const V*>(panel + k * width + q * kLanes<T>);
    }
  }
  for (; k < depth; ++k) {
    for (std::int64_t i = 0; i < width; ++i) rest[i] += panel[k * width + i];
  }
  const T* lanes = reinterpret_cast<const T*>(sum);
  for (std::int64_t line = 0; line < kLanes<T>; ++line) {
    for (std::int64_t i = 0; i < width; ++i) rest[i] += lanes[line * width + i];
  }
  for (std::int64_t i = 0; i < width; ++i) sums[i] += rest[i];
}

// In the order of sum_panel: one sum for every kLanes-th line, then these one after the other.
template <class T>
void sum_lines(const T* lines, std::int64_t pitch, std::int64_t width, std::int64_t depth,
               T* sums) {
  using V = typename VectorOf<T>::type;
  for (std::int64_t i = 0; i < width; i += kLanes<T>) {
    const std::int64_t lanes = width - i < kLanes<T> ? width - i : kLanes<T>;
    V sum[kLanes<T>] = {}, rest = {};
    std::int64_t k = 0;
    for (; k + kLanes<T> <= depth; k += kLanes<T>) {
#pragma GCC unroll 16
      for (std::int64_t line = 0; line < kLanes<T>; ++line)
        sum[line] += load<T>(lines + (k + line) * pitch + i, lanes);
    }
    for (; k < depth; ++k) rest += load<T>(lines + k * pitch + i, lanes);
    for (std::int64_t line = 0; line < kLanes<T>; ++line) rest += sum[line];
    for (std::int64_t lane = 0; lane < lanes; ++lane) sums[i + lane] += rest[lane];
  }
}

}  // namespace
}  // namespace fastfisher::cpu
