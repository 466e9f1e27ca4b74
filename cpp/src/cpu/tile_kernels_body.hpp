// SPDX-License-Identifier: Apache-2.0
//
// Included once by each tile_kernels_<isa>.cpp, which is compiled for that instruction set and
// defines FF_VECTOR_BYTES. Everything sits in an unnamed namespace and no standard library function
// is called: an inline function compiled here for AVX2 could otherwise be the copy that the linker
// keeps for every machine.
//
// Micro kernel: mr x nr entries held in registers, mr broadcasts of the left and nr / lanes loads
// of the right per depth step. Of 6 x 2 vectors that is 12 fused multiply-adds against 8 loads, of
// 8 x 3 vectors 24 against 11. Of the last panel only vectors that hold columns are computed.

#include "tile_dots_body.hpp"
#include "tile_kernels.hpp"
#include "tile_pack_body.hpp"

namespace fastfisher::cpu {
namespace {

/// Sums of a micro tile.
template <class T, std::int64_t Vectors>
using Sums = typename VectorOf<T>::type[kRows][Vectors];

template <class T, std::int64_t Vectors>
void load_line(const T* from, typename VectorOf<T>::type (&line)[Vectors]) {
#pragma GCC unroll 4
  for (std::int64_t v = 0; v < Vectors; ++v)
    line[v] = *reinterpret_cast<const typename VectorOf<T>::type*>(from + v * kLanes<T>);
}

// The tile of c lies in the second cache level: ask for it before the loop that hides the wait.
template <class T, std::int64_t Vectors>
void ask_for(const T* c, std::int64_t ldc) {
#pragma GCC unroll 8
  for (std::int64_t i = 0; i < kRows; ++i) {
    __builtin_prefetch(c + i * ldc);
    __builtin_prefetch(c + i * ldc + Vectors * kLanes<T> - 1);
  }
}

template <class T, std::int64_t Vectors>
void put(const Sums<T, Vectors>& sum, T* c, std::int64_t ldc, bool accumulate) {
  using V = typename VectorOf<T>::type;
#pragma GCC unroll 8
  for (std::int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (std::int64_t v = 0; v < Vectors; ++v) {
      V* const to = reinterpret_cast<V*>(c + i * ldc + v * kLanes<T>);
      *to = accumulate ? *to + sum[i][v] : sum[i][v];
    }
  }
}

// Asks for the next `step` bytes: the steps of a large tile are few, and may be more than a line.
inline void ask_for_step(const char*& ahead, std::int64_t step) {
  __builtin_prefetch(ahead, 0, 2);
  if constexpr (FF_VECTOR_BYTES == 64) __builtin_prefetch(ahead + step / 2, 0, 2);
  ahead += step;
}

// The micro kernel for lines at a pitch, which where it is inlined may be a constant.
template <class T, bool Fetch, std::int64_t Vectors>
__attribute__((always_inline)) inline void
micro_lines(const T* left, std::int64_t left_pitch, const T* right, std::int64_t right_pitch,
            std::int64_t k, T* c, std::int64_t ldc, bool accumulate, const char* ahead,
            std::int64_t step) {
  Sums<T, Vectors> sum = {};
  ask_for<T, Vectors>(c, ldc);
#pragma GCC unroll 2
  for (std::int64_t depth = 0; depth < k; ++depth) {
    if constexpr (Fetch) ask_for_step(ahead, step);
    typename VectorOf<T>::type line[Vectors];
    load_line(right, line);
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (std::int64_t v = 0; v < Vectors; ++v) sum[i][v] += left[i] * line[v];
    }
    left += left_pitch;
    right += right_pitch;
  }
  put<T, Vectors>(sum, c, ldc, accumulate);
}

// The same for packed panels.
template <class T, bool Fetch, std::int64_t Vectors>
void micro(const T* left, const T* right, std::int64_t k, T* c, std::int64_t ldc, bool accumulate,
           const char* ahead, std::int64_t step) {
  micro_lines<T, Fetch, Vectors>(left, kRows, right, kCols<T>, k, c, ldc, accumulate, ahead, step);
}

/// Calls run.template operator()<v>() for the v vectors that hold `cols` columns of a panel.
template <class T, std::int64_t Vectors = kVectors, class Run>
void for_vectors(std::int64_t cols, const Run& run) {
  if constexpr (Vectors > 1) {
    if (cols <= (Vectors - 1) * kLanes<T>) return for_vectors<T, Vectors - 1>(cols, run);
  }
  run.template operator()<Vectors>();
}

template <class T, bool Fetch = false>
void micro(std::int64_t cols, const T* left, const T* right, std::int64_t k, T* c, std::int64_t ldc,
           bool accumulate, const char* ahead = nullptr, std::int64_t step = 0) {
  for_vectors<T>(cols, [&]<std::int64_t Vectors>() {
    micro<T, Fetch, Vectors>(left, right, k, c, ldc, accumulate, ahead, step);
  });
}

template <class T>
void product(const T* left, const T* right, std::int64_t k, std::int64_t left_pitch,
             std::int64_t right_pitch, std::int64_t rows, std::int64_t cols, std::int64_t skew,
             T* c, std::int64_t ldc, bool accumulate) {
  // The right panel stays in the first cache level while all left panels pass by it; meanwhile each
  // of them fetches its share of the next one, which comes from far away, as the left panels do the
  // first time. A line every few steps of the depth: bursts would wait.
  const std::int64_t share = right_pitch * static_cast<std::int64_t>(sizeof(T)) / rows + 1;
  const std::int64_t step = share / (k + 1) + 1;
  constexpr std::int64_t left_step = kRows * static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t j = 0; j < cols; j += kCols<T>, right += right_pitch) {
    const char* ahead = reinterpret_cast<const char*>(right + right_pitch);
    for (std::int64_t i = 0; i < rows; ++i) {
      const char* const next = ahead + i * share;
      if (i * kRows + kRows - 1 + skew < j) continue;
      const T* const x = left + i * left_pitch;
      T* const sum = c + i * kRows * ldc + j;
      if (j == 0) {
        micro<T, true>(cols, x, right, k, sum, ldc, accumulate,
                       reinterpret_cast<const char*>(x + left_pitch), left_step);
      } else if (j + kCols<T> < cols) {
        micro<T, true>(cols - j, x, right, k, sum, ldc, accumulate, next, step);
      } else {
        micro<T>(cols - j, x, right, k, sum, ldc, accumulate);
      }
    }
  }
}

// The micro kernel for rows that lie in panels of columns: the first `Split` of them in one panel,
// the others at the start of the next.
template <std::int64_t Split, class T, std::int64_t Vectors>
void micro_within(const T* left, const T* next_left, const T* right, std::int64_t k, T* c,
                  std::int64_t ldc, bool accumulate, const char* ahead, std::int64_t step) {
  constexpr std::int64_t width = kCols<T>;
  Sums<T, Vectors> sum = {};
  ask_for<T, Vectors>(c, ldc);
#pragma GCC unroll 2
  for (std::int64_t at = 0; at < k * width; at += width) {
    __builtin_prefetch(ahead, 0, 2);
    ahead += step;
    typename VectorOf<T>::type line[Vectors];
    load_line(right + at, line);
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kRows; ++i) {
      const T x = i < Split ? left[at + i] : next_left[at + i - Split];
#pragma GCC unroll 4
      for (std::int64_t v = 0; v < Vectors; ++v) sum[i][v] += x * line[v];
    }
  }
  put<T, Vectors>(sum, c, ldc, accumulate);
}

// Splits are even: `Split` of the rows at most are in the first panel.
template <std::int64_t Split, class T, std::int64_t Vectors>
void split_within(std::int64_t rows, const T* left, const T* next_left, const T* right,
                  std::int64_t k, T* c, std::int64_t ldc, bool accumulate, const char* ahead,
                  std::int64_t step) {
  if constexpr (Split > 2) {
    if (rows < Split)
      return split_within<Split - 2, T, Vectors>(rows, left, next_left, right, k, c, ldc,
                                                 accumulate, ahead, step);
  }
  micro_within<Split, T, Vectors>(left, next_left, right, k, c, ldc, accumulate, ahead, step);
}

template <class T>
void product_within(const T* left, std::int64_t first, std::int64_t panels, const T* right,
                    std::int64_t k, std::int64_t rows, std::int64_t cols, std::int64_t skew, T* c,
                    std::int64_t ldc, bool accumulate) {
  constexpr std::int64_t width = kCols<T>, item = static_cast<std::int64_t>(sizeof(T));
  static_assert(width % 2 == 0 && kRows % 2 == 0 && width >= 4);
  const std::int64_t pitch = k * width;
  // What is asked for ahead is as in product(), but that the last panel asks for its own start.
  const std::int64_t share = pitch * item / rows + 1, step = share / (k + 1) + 1;
  for (std::int64_t j = 0; j < cols; j += width) {
    const T* panel = right + j / width * pitch;
    for (std::int64_t i = 0; i < rows; ++i) {
      if (i * kRows + kRows - 1 + skew < j) continue;
      const std::int64_t row = first + i * kRows, at = row % width;
      const T* x = left + row / width * pitch + at;
      // Behind the last panel there is nothing: rows that nobody reads repeat others.
      const T* next = row / width + 1 < panels ? x - at + pitch : x - at;
      const char* ahead = reinterpret_cast<const char*>(panel);
      std::int64_t pace = 0;
      if (j == 0) {
        ahead = reinterpret_cast<const char*>(at + kRows < width ? x + kRows : next);
        pace = width * item;
      } else if (j + width < cols) {
        ahead += pitch * item + i * share;
        pace = step;
      }
      T* sum = c + i * kRows * ldc + j;
      for_vectors<T>(cols - j, [&]<std::int64_t Vectors>() {
        split_within<kRows, T, Vectors>(width - at, x, next, panel, k, sum, ldc, accumulate, ahead,
                                        pace);
      });
    }
  }
}

// One line of `ahead` asked for every few steps of the depth: in bursts they would wait.
template <class T>
void product_ahead(const T* left, const T* right, std::int64_t k, std::int64_t left_pitch,
                   std::int64_t rows, std::int64_t cols, T* c, std::int64_t ldc, bool accumulate,
                   const Ahead& ahead, std::int64_t at, std::int64_t share) {
  const std::int64_t tile = share / rows + 1, step = tile / k + 1;
  for (std::int64_t i = 0; i < rows; ++i, at += tile) {
    if (at < ahead.bytes) {
      micro<T, true>(cols, left + i * left_pitch, right, k, c + i * kRows * ldc, ldc, accumulate,
                     byte_of(ahead, at), step);
    } else {
      micro<T>(cols, left + i * left_pitch, right, k, c + i * kRows * ldc, ldc, accumulate);
    }
  }
}

template <class T, std::int64_t Vectors>
void micro_rows(const T* const* left, const T* right, std::int64_t k, bool one, T* c,
                std::int64_t ldc, bool accumulate, const char* ahead, std::int64_t step) {
  typename VectorOf<T>::type line[Vectors];
  const T* rows[kRows];
#pragma GCC unroll 8
  for (std::int64_t i = 0; i < kRows; ++i) rows[i] = left[i];
  Sums<T, Vectors> sum = {};
#pragma GCC unroll 2
  for (std::int64_t depth = 0; depth < k; ++depth) {
    ask_for_step(ahead, step);
    load_line(right, line);
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (std::int64_t v = 0; v < Vectors; ++v) sum[i][v] += rows[i][depth] * line[v];
    }
    right += kCols<T>;
  }
  if (one) {
    load_line(right, line);
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (std::int64_t v = 0; v < Vectors; ++v) sum[i][v] += line[v];
    }
  }
  put<T, Vectors>(sum, c, ldc, accumulate);
}

// Without packing the left: its rows are read once for each panel of the right.
template <class T>
void product_rows(const T* const* left, const T* right, std::int64_t k, bool one, std::int64_t rows,
                  std::int64_t cols, T* c, std::int64_t ldc, bool accumulate, const Ahead& ahead,
                  std::int64_t at, std::int64_t share) {
  const std::int64_t tile = share / rows + 1, step = at < ahead.bytes && k > 0 ? tile / k + 1 : 0;
  for (std::int64_t i = 0; i < rows; ++i, at += tile) {
    const char* from = at < ahead.bytes ? byte_of(ahead, at) : reinterpret_cast<const char*>(right);
    for_vectors<T>(cols, [&]<std::int64_t Vectors>() {
      micro_rows<T, Vectors>(left + i * kRows, right, k, one, c + i * kRows * ldc, ldc, accumulate,
                             from, at < ahead.bytes ? step : 0);
    });
  }
}

// Entries [0, count) of each of k lines, one behind another, zeros behind them.
template <std::int64_t Strip, class T>
void pack_strip(const T* from, std::int64_t pitch, std::int64_t k, std::int64_t count, T* to) {
  using V = typename VectorOf<T>::type;
  static_assert(Strip % kLanes<T> == 0);
  for (std::int64_t depth = 0; depth < k; ++depth, from += pitch, to += Strip) {
    if (count == Strip) {
#pragma GCC unroll 8
      for (std::int64_t i = 0; i < Strip; i += kLanes<T>)
        *reinterpret_cast<V*>(to + i) = *reinterpret_cast<const V*>(from + i);
    } else {
      for (std::int64_t i = 0; i < Strip; ++i) to[i] = i < count ? from[i] : T{0};
    }
  }
}

// A strip of rows at a time is packed, for its lines may lie where they push each other out of the
// first cache level; the right is not. Rows that are no whole tile are summed beside c.
template <class T>
void product_lines(const T* left, std::int64_t left_pitch, const T* right, std::int64_t right_pitch,
                   std::int64_t k, std::int64_t rows, std::int64_t cols, T* c, std::int64_t ldc,
                   bool accumulate, const Ahead& ahead, std::int64_t at, std::int64_t share) {
  constexpr std::int64_t strip = 4 * kRows;
  alignas(64) T packed[kMostLines * strip], sums[kRows * kCols<T>];
  const std::int64_t tiles = ((rows + kRows - 1) / kRows) * ((cols + kCols<T> - 1) / kCols<T>);
  const std::int64_t tile = tiles > 0 ? share / tiles + 1 : 1, step = k > 0 ? tile / k + 1 : 0;
  for (std::int64_t first = 0; first < rows; first += strip) {
    const std::int64_t count = rows - first < strip ? rows - first : strip;
    pack_strip<strip>(left + first, left_pitch, k, count, packed);
    for (std::int64_t j = 0; j < cols; j += kCols<T>) {
      for_vectors<T>(cols - j, [&]<std::int64_t Vectors>() {
        for (std::int64_t i = 0; i < count; i += kRows, at += tile) {
          const bool asks = at < ahead.bytes;
          const char* const from =
              asks ? byte_of(ahead, at) : reinterpret_cast<const char*>(right + j);
          const std::int64_t pace = asks ? step : 0;
          T* const to = c + (first + i) * ldc + j;
          const bool whole = i + kRows <= count;
          micro_lines<T, true, Vectors>(packed + i, strip, right + j, right_pitch, k,
                                        whole ? to : sums, whole ? ldc : kCols<T>,
                                        accumulate && whole, from, pace);
          if (whole) continue;
          for (std::int64_t r = 0; r < count - i; ++r) {
            for (std::int64_t q = 0; q < Vectors * kLanes<T>; ++q) {
              T& entry = to[r * ldc + q];
              entry = accumulate ? entry + sums[r * kCols<T> + q] : sums[r * kCols<T> + q];
            }
          }
        }
      });
    }
  }
}

// Four units at a time: their sums and the lanes in registers, two loads a fused multiply-add less.
template <class T>
void combine(const T* const* panels, const T* lanes, std::int64_t count, std::int64_t k, T* x) {
  using V = typename VectorOf<T>::type;
  constexpr std::int64_t width = kCols<T>, step = 4;
  for (std::int64_t o = 0; o < k; o += step) {
    const std::int64_t units = k - o < step ? k - o : step;
    V sum[step][kVectors] = {};
    const auto add = [&](std::int64_t i, const V(&z)[kVectors], const T* panel) {
#pragma GCC unroll 4
      for (std::int64_t v = 0; v < kVectors; ++v)
        sum[i][v] += z[v] * *reinterpret_cast<const V*>(panel + i * width + v * kLanes<T>);
    };
    for (std::int64_t u = 0; u < count; ++u) {
      V z[kVectors];
      load_line(lanes + u * width, z);
      const T* panel = panels[u] + o * width;
      if (units == step) {
#pragma GCC unroll 4
        for (std::int64_t i = 0; i < step; ++i) add(i, z, panel);
      } else {
        for (std::int64_t i = 0; i < units; ++i) add(i, z, panel);
      }
    }
    for (std::int64_t i = 0; i < units; ++i) {
#pragma GCC unroll 4
      for (std::int64_t v = 0; v < kVectors; ++v)
        *reinterpret_cast<V*>(x + (o + i) * width + v * kLanes<T>) = sum[i][v];
    }
  }
}

template <class T>
void fold(const T* p, const T* q, double bias, double scale, std::int64_t n, double* acc,
          bool accumulate) {
  if (p == nullptr) {
    for (std::int64_t j = 0; j < n; ++j)
      acc[j] = (accumulate ? acc[j] : 0) + scale * static_cast<double>(q[j]);
  } else if (accumulate) {
    for (std::int64_t j = 0; j < n; ++j) {
      acc[j] += (static_cast<double>(p[j]) + bias) * scale * static_cast<double>(q[j]);
    }
  } else {
    for (std::int64_t j = 0; j < n; ++j) {
      acc[j] = (static_cast<double>(p[j]) + bias) * scale * static_cast<double>(q[j]);
    }
  }
}

template <class T>
TileKernels<T> make_kernels(const char* name) {
  TileKernels<T> kernels;
  kernels.mr = kRows;
  kernels.nr = kCols<T>;
  kernels.lanes = kLanes<T>;
  kernels.name = name;
  kernels.pack_f32 = pack<float, T>;
  if constexpr (sizeof(T) == sizeof(double)) kernels.pack_f64 = pack<double, T>;  // never narrowed
  kernels.pack_bf16 = pack<BFloat16, T>;
  kernels.pack_f16 = pack<Float16, T>;
  kernels.product = product<T>;
  kernels.product_ahead = product_ahead<T>;
  kernels.product_rows = product_rows<T>;
  kernels.product_lines = product_lines<T>;
  kernels.product_within = product_within<T>;
  kernels.dots = dots<T>;
  kernels.combine = combine<T>;
  kernels.fold = fold<T>;
  return kernels;
}

}  // namespace
}  // namespace fastfisher::cpu
