// SPDX-License-Identifier: Apache-2.0
//
// Included once by each tile_kernels_<isa>.cpp, which is compiled for that instruction set and
// defines FF_VECTOR_BYTES. Everything sits in an unnamed namespace and no standard library function
// is called: an inline function compiled here for AVX2 could otherwise be the copy that the linker
// keeps for every machine.
//
// Micro kernel: mr x nr entries held in registers, one broadcast of the left and nr / lanes loads
// of the right per depth step; 6 x 2 vectors leave 4 of 16 registers for operands. Per step 12
// fused multiply-adds against 8 loads.

#include "tile_kernels.hpp"
#include "tile_pack_body.hpp"

namespace fastfisher::cpu {
namespace {

template <class T, bool Fetch = false>
void micro(const T* left, const T* right, std::int64_t k, T* c, std::int64_t ldc, bool accumulate,
           const char* ahead = nullptr, std::int64_t step = 0) {
  using V = typename VectorOf<T>::type;
  constexpr std::int64_t lanes = kLanes<T>;
  V sum[kRows][kVectors] = {};
  // The tile of c lies in the second cache level: ask for it before the loop that hides the wait.
#pragma GCC unroll 6
  for (std::int64_t i = 0; i < kRows; ++i) {
    __builtin_prefetch(c + i * ldc);
    __builtin_prefetch(c + i * ldc + kCols<T> - 1);
  }
#pragma GCC unroll 2
  for (std::int64_t depth = 0; depth < k; ++depth) {
    if constexpr (Fetch) {
      __builtin_prefetch(ahead, 0, 2);
      ahead += step;
    }
    const V right_0 = *reinterpret_cast<const V*>(right);
    const V right_1 = *reinterpret_cast<const V*>(right + lanes);
#pragma GCC unroll 6
    for (std::int64_t i = 0; i < kRows; ++i) {
      sum[i][0] += left[i] * right_0;
      sum[i][1] += left[i] * right_1;
    }
    left += kRows;
    right += kCols<T>;
  }
#pragma GCC unroll 6
  for (std::int64_t i = 0; i < kRows; ++i) {
    V* row = reinterpret_cast<V*>(c + i * ldc);
    V* next = reinterpret_cast<V*>(c + i * ldc + lanes);
    *row = accumulate ? *row + sum[i][0] : sum[i][0];
    *next = accumulate ? *next + sum[i][1] : sum[i][1];
  }
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
  for (std::int64_t j = 0; j < cols; ++j) {
    const T* const panel = right + j * right_pitch;
    const char* ahead = reinterpret_cast<const char*>(panel + right_pitch);
    for (std::int64_t i = 0; i < rows; ++i) {
      const char* const next = ahead + i * share;
      if (i * kRows + kRows - 1 + skew < j * kCols<T>) continue;
      const T* const x = left + i * left_pitch;
      T* const sum = c + i * kRows * ldc + j * kCols<T>;
      if (j == 0) {
        micro<T, true>(x, panel, k, sum, ldc, accumulate,
                       reinterpret_cast<const char*>(x + left_pitch), left_step);
      } else if (j + 1 < cols) {
        micro<T, true>(x, panel, k, sum, ldc, accumulate, next, step);
      } else {
        micro<T>(x, panel, k, sum, ldc, accumulate);
      }
    }
  }
}

// The micro kernel for rows that lie in panels of columns: the first `Split` of them in one panel,
// the others at the start of the next.
template <std::int64_t Split, class T>
void micro_within(const T* left, const T* next_left, const T* right, std::int64_t k, T* c,
                  std::int64_t ldc, bool accumulate) {
  using V = typename VectorOf<T>::type;
  constexpr std::int64_t lanes = kLanes<T>, width = kCols<T>;
  V sum[kRows][kVectors] = {};
#pragma GCC unroll 6
  for (std::int64_t i = 0; i < kRows; ++i) {
    __builtin_prefetch(c + i * ldc);
    __builtin_prefetch(c + i * ldc + width - 1);
  }
#pragma GCC unroll 2
  for (std::int64_t at = 0; at < k * width; at += width) {
    const V right_0 = *reinterpret_cast<const V*>(right + at);
    const V right_1 = *reinterpret_cast<const V*>(right + at + lanes);
#pragma GCC unroll 6
    for (std::int64_t i = 0; i < kRows; ++i) {
      const T x = i < Split ? left[at + i] : next_left[at + i - Split];
      sum[i][0] += x * right_0;
      sum[i][1] += x * right_1;
    }
  }
#pragma GCC unroll 6
  for (std::int64_t i = 0; i < kRows; ++i) {
    V* row = reinterpret_cast<V*>(c + i * ldc);
    V* next = reinterpret_cast<V*>(c + i * ldc + lanes);
    *row = accumulate ? *row + sum[i][0] : sum[i][0];
    *next = accumulate ? *next + sum[i][1] : sum[i][1];
  }
}

template <class T>
void product_within(const T* left, std::int64_t first, std::int64_t panels, const T* right,
                    std::int64_t k, std::int64_t rows, std::int64_t cols, std::int64_t skew, T* c,
                    std::int64_t ldc, bool accumulate) {
  constexpr std::int64_t width = kCols<T>, line = 64 / static_cast<std::int64_t>(sizeof(T));
  static_assert(width % 2 == 0 && kRows == 6 && width >= 4);
  const std::int64_t pitch = k * width;
  const std::int64_t share = (pitch / line + rows) / rows * line;
  for (std::int64_t j = 0; j < cols; ++j) {
    const T* panel = right + j * pitch;
    for (std::int64_t i = 0; i < rows; ++i) {
      if (i * kRows + kRows - 1 + skew < j * width) continue;
      if (j + 1 < cols) {
        for (std::int64_t at = i * share; at < (i + 1) * share && at < pitch; at += line)
          __builtin_prefetch(panel + pitch + at, 0, 2);
      }
      const std::int64_t row = first + i * kRows, at = row % width;
      const T* x = left + row / width * pitch + at;
      // Behind the last panel there is nothing: rows that nobody reads repeat others.
      const T* next = row / width + 1 < panels ? x - at + pitch : x - at;
      T* sum = c + i * kRows * ldc + j * width;
      if (width - at >= kRows) {
        micro_within<kRows>(x, next, panel, k, sum, ldc, accumulate);
      } else if (width - at == 4) {
        micro_within<4>(x, next, panel, k, sum, ldc, accumulate);
      } else {
        micro_within<2>(x, next, panel, k, sum, ldc, accumulate);
      }
    }
  }
}

// One line of `ahead` asked for every few steps of the depth: in bursts they would wait.
template <class T>
void product_ahead(const T* left, const T* right, std::int64_t k, std::int64_t left_pitch,
                   std::int64_t rows, T* c, std::int64_t ldc, bool accumulate, const Ahead& ahead,
                   std::int64_t at, std::int64_t share) {
  const std::int64_t tile = share / rows + 1, step = tile / k + 1;
  for (std::int64_t i = 0; i < rows; ++i, at += tile) {
    if (at < ahead.bytes) {
      micro<T, true>(left + i * left_pitch, right, k, c + i * kRows * ldc, ldc, accumulate,
                     ahead.base + at / ahead.segment * ahead.pitch + at % ahead.segment, step);
    } else {
      micro<T>(left + i * left_pitch, right, k, c + i * kRows * ldc, ldc, accumulate);
    }
  }
}

template <class T>
void micro_rows(const T* const* left, const T* right, std::int64_t k, bool one, T* c,
                std::int64_t ldc, bool accumulate, const char* ahead, std::int64_t step) {
  using V = typename VectorOf<T>::type;
  constexpr std::int64_t lanes = kLanes<T>;
  static_assert(kRows == 6);
  const T *const a = left[0], *const b = left[1], *const d = left[2], *const e = left[3],
                 *const f = left[4], *const g = left[5];
  V sum[kRows][kVectors] = {};
#pragma GCC unroll 2
  for (std::int64_t depth = 0; depth < k; ++depth) {
    __builtin_prefetch(ahead, 0, 2);
    ahead += step;
    const V right_0 = *reinterpret_cast<const V*>(right);
    const V right_1 = *reinterpret_cast<const V*>(right + lanes);
    sum[0][0] += a[depth] * right_0;
    sum[0][1] += a[depth] * right_1;
    sum[1][0] += b[depth] * right_0;
    sum[1][1] += b[depth] * right_1;
    sum[2][0] += d[depth] * right_0;
    sum[2][1] += d[depth] * right_1;
    sum[3][0] += e[depth] * right_0;
    sum[3][1] += e[depth] * right_1;
    sum[4][0] += f[depth] * right_0;
    sum[4][1] += f[depth] * right_1;
    sum[5][0] += g[depth] * right_0;
    sum[5][1] += g[depth] * right_1;
    right += kCols<T>;
  }
#pragma GCC unroll 6
  for (std::int64_t i = 0; i < kRows; ++i) {
    if (one) {
      sum[i][0] += *reinterpret_cast<const V*>(right);
      sum[i][1] += *reinterpret_cast<const V*>(right + lanes);
    }
    V* row = reinterpret_cast<V*>(c + i * ldc);
    V* next = reinterpret_cast<V*>(c + i * ldc + lanes);
    *row = accumulate ? *row + sum[i][0] : sum[i][0];
    *next = accumulate ? *next + sum[i][1] : sum[i][1];
  }
}

// Without packing the left: its rows are read once for each panel of the right.
template <class T>
void product_rows(const T* const* left, const T* right, std::int64_t k, bool one, std::int64_t rows,
                  T* c, std::int64_t ldc, bool accumulate, const Ahead& ahead, std::int64_t at,
                  std::int64_t share) {
  const std::int64_t tile = share / rows + 1, step = at < ahead.bytes && k > 0 ? tile / k + 1 : 0;
  for (std::int64_t i = 0; i < rows; ++i, at += tile) {
    const char* from = at < ahead.bytes
                           ? ahead.base + at / ahead.segment * ahead.pitch + at % ahead.segment
                           : reinterpret_cast<const char*>(right);
    micro_rows<T>(left + i * kRows, right, k, one, c + i * kRows * ldc, ldc, accumulate, from,
                  at < ahead.bytes ? step : 0);
  }
}

// Four units at a time: eight sums and two lanes in registers, two loads a fused multiply-add less.
template <class T>
void combine(const T* const* panels, const T* lanes, std::int64_t count, std::int64_t k, T* x) {
  using V = typename VectorOf<T>::type;
  constexpr std::int64_t width = kCols<T>, step = 4;
  for (std::int64_t o = 0; o < k; o += step) {
    const std::int64_t units = k - o < step ? k - o : step;
    V sum[step][kVectors] = {};
    for (std::int64_t u = 0; u < count; ++u) {
      const V z0 = *reinterpret_cast<const V*>(lanes + u * width);
      const V z1 = *reinterpret_cast<const V*>(lanes + u * width + kLanes<T>);
      const T* panel = panels[u] + o * width;
      if (units == step) {
#pragma GCC unroll 4
        for (std::int64_t i = 0; i < step; ++i) {
          sum[i][0] += z0 * *reinterpret_cast<const V*>(panel + i * width);
          sum[i][1] += z1 * *reinterpret_cast<const V*>(panel + i * width + kLanes<T>);
        }
      } else {
        for (std::int64_t i = 0; i < units; ++i) {
          sum[i][0] += z0 * *reinterpret_cast<const V*>(panel + i * width);
          sum[i][1] += z1 * *reinterpret_cast<const V*>(panel + i * width + kLanes<T>);
        }
      }
    }
    for (std::int64_t i = 0; i < units; ++i) {
      *reinterpret_cast<V*>(x + (o + i) * width) = sum[i][0];
      *reinterpret_cast<V*>(x + (o + i) * width + kLanes<T>) = sum[i][1];
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
  kernels.name = name;
  kernels.pack_f32 = pack<float, T>;
  if constexpr (sizeof(T) == sizeof(double)) kernels.pack_f64 = pack<double, T>;  // never narrowed
  kernels.pack_bf16 = pack<BFloat16, T>;
  kernels.pack_f16 = pack<Float16, T>;
  kernels.product = product<T>;
  kernels.product_ahead = product_ahead<T>;
  kernels.product_rows = product_rows<T>;
  kernels.product_within = product_within<T>;
  kernels.combine = combine<T>;
  kernels.fold = fold<T>;
  return kernels;
}

}  // namespace
}  // namespace fastfisher::cpu
