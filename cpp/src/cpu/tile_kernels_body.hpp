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

namespace fastfisher::cpu {
namespace {

constexpr std::int64_t kRows = 6;
constexpr std::int64_t kVectors = 2;

template <class T>
constexpr std::int64_t kLanes = FF_VECTOR_BYTES / static_cast<std::int64_t>(sizeof(T));
template <class T>
constexpr std::int64_t kCols = kVectors * kLanes<T>;

template <class T>
struct VectorOf {
  using type __attribute__((vector_size(FF_VECTOR_BYTES), aligned(sizeof(T)), may_alias)) = T;
};

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
  // of them fetches its share of the next one, which comes from far away.
  constexpr std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(T));
  const std::int64_t share = (right_pitch / line + rows) / rows * line;
  for (std::int64_t j = 0; j < cols; ++j) {
    const T* ahead = right + (j + 1) * right_pitch;
    for (std::int64_t i = 0; i < rows; ++i) {
      if (i * kRows + kRows - 1 + skew < j * kCols<T>) continue;
      if (j + 1 < cols) {
        for (std::int64_t at = i * share; at < (i + 1) * share && at < right_pitch; at += line) {
          __builtin_prefetch(ahead + at, 0, 2);
        }
      }
      micro<T>(left + i * left_pitch, right + j * right_pitch, k,
               c + i * kRows * ldc + j * kCols<T>, ldc, accumulate);
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

// Transposes 16-byte blocks of `rows` into dst[k][width]: 4 x 4 entries of float, 2 x 2 of double.
template <class T>
struct Block;

template <>
struct Block<float> {
  static constexpr std::int64_t size = 4;
  using V __attribute__((vector_size(16), aligned(4), may_alias)) = float;
  static void transpose(const float* const* rows, std::int64_t at, float scale, float* dst,
                        std::int64_t width) {
    const V a = *reinterpret_cast<const V*>(rows[0] + at) * scale;
    const V b = *reinterpret_cast<const V*>(rows[1] + at) * scale;
    const V c = *reinterpret_cast<const V*>(rows[2] + at) * scale;
    const V d = *reinterpret_cast<const V*>(rows[3] + at) * scale;
    const V ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    const V ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const V cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const V cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    *reinterpret_cast<V*>(dst) = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
    *reinterpret_cast<V*>(dst + width) = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
    *reinterpret_cast<V*>(dst + 2 * width) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
    *reinterpret_cast<V*>(dst + 3 * width) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
  }
};

template <>
struct Block<double> {
  static constexpr std::int64_t size = 2;
  using V __attribute__((vector_size(16), aligned(8), may_alias)) = double;
  static void transpose(const double* const* rows, std::int64_t at, double scale, double* dst,
                        std::int64_t width) {
    const V a = *reinterpret_cast<const V*>(rows[0] + at) * scale;
    const V b = *reinterpret_cast<const V*>(rows[1] + at) * scale;
    *reinterpret_cast<V*>(dst) = __builtin_shufflevector(a, b, 0, 2);
    *reinterpret_cast<V*>(dst + width) = __builtin_shufflevector(a, b, 1, 3);
  }
};

inline float widen(float x) {
  return x;
}
inline double widen(double x) {
  return x;
}
inline float widen(BFloat16 x) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(x.bits) << 16);
}
// The exponent is rebased by a product, which denormals survive. Infinity and NaN never come here.
inline float widen(Float16 x) {
  const std::uint32_t magnitude = static_cast<std::uint32_t>(x.bits & 0x7fff) << 13;
  const float value = __builtin_bit_cast(float, magnitude) * 0x1p112F;
  return (x.bits & 0x8000) != 0 ? -value : value;
}

template <class S, class T>
void pack_plain(const S* const* rows, std::int64_t count, std::int64_t width, std::int64_t stride,
                std::int64_t from, std::int64_t to, double scale, T* dst) {
  for (std::int64_t depth = from; depth < to; ++depth) {
    T* line = dst + depth * width;
    for (std::int64_t i = 0; i < count; ++i) {
      line[i] = static_cast<T>(widen(rows[i][depth * stride])) * static_cast<T>(scale);
    }
    for (std::int64_t i = count; i < width; ++i) line[i] = 0;
  }
}

// Rows that are neighbours in memory: a line of the panel is a line there.
template <std::int64_t Width, class S, class T>
void pack_lines(const S* first, std::int64_t stride, std::int64_t k, double scale, T* dst) {
  for (std::int64_t depth = 0; depth < k; ++depth) {
#pragma GCC unroll 16
    for (std::int64_t i = 0; i < Width; ++i) {
      dst[depth * Width + i] =
          static_cast<T>(widen(first[depth * stride + i])) * static_cast<T>(scale);
    }
  }
}

template <class S>
bool neighbours(const S* const* rows, std::int64_t count) {
  for (std::int64_t i = 1; i < count; ++i) {
    if (rows[i] != rows[0] + i) return false;
  }
  return true;
}

// Depth contiguous, all rows there: blocks of 16 bytes at a time.
template <class T>
void pack_blocks(const T* const* rows, std::int64_t width, std::int64_t k, double scale, T* dst) {
  constexpr std::int64_t size = Block<T>::size;
  // A width that is no multiple of the block (6 floats) ends in a block that reaches past the line:
  // it repeats its last row, spills into the following line and is written first, so the following
  // line's own blocks overwrite it. The last blocks of the panel would spill outside, so they take
  // the plain path.
  const std::int64_t ragged = width % size;
  const std::int64_t whole = width - ragged;
  const std::int64_t end = (k / size - (ragged != 0 ? 1 : 0)) * size;
  // A whole cache line of a few rows before the next rows: at strides of 4 KiB, say, rows fall on
  // the same place of the first level, which has room for few of them.
  constexpr std::int64_t line_size = 64 / static_cast<std::int64_t>(sizeof(T));
  std::int64_t depth = 0;
  while (depth < end) {
    const std::int64_t stop = end - depth < line_size ? end : depth + line_size;
    if (ragged != 0) {
      const T* last[size];
      for (std::int64_t i = 0; i < size; ++i) last[i] = rows[i < ragged ? whole + i : width - 1];
      for (std::int64_t d = depth; d < stop; d += size)
        Block<T>::transpose(last, d, static_cast<T>(scale), dst + d * width + whole, width);
    }
    for (std::int64_t i = 0; i < whole; i += size) {
      for (std::int64_t d = depth; d < stop; d += size)
        Block<T>::transpose(rows + i, d, static_cast<T>(scale), dst + d * width + i, width);
    }
    depth = stop;
  }
  pack_plain(rows, width, width, 1, depth < 0 ? 0 : depth, k, scale, dst);
}

// Narrower storage: widened a stretch at a time, then packed as the wide type.
template <class S, class T>
void pack_widened(const S* const* rows, std::int64_t width, std::int64_t k, double scale, T* dst) {
  constexpr std::int64_t stretch = 64;
  T wide[2 * kVectors * kLanes<float>][stretch];
  const T* at[2 * kVectors * kLanes<float>];
  for (std::int64_t from = 0; from < k; from += stretch) {
    const std::int64_t count = k - from < stretch ? k - from : stretch;
    for (std::int64_t i = 0; i < width; ++i) {
      for (std::int64_t depth = 0; depth < count; ++depth)
        wide[i][depth] = static_cast<T>(widen(rows[i][from + depth]));
      at[i] = wide[i];
    }
    pack_blocks<T>(at, width, count, scale, dst + from * width);
  }
}

template <class S, class T>
void pack(const S* const* rows, std::int64_t count, std::int64_t width, std::int64_t stride,
          std::int64_t k, double scale, T* dst) {
  if (count != width) return pack_plain(rows, count, width, stride, 0, k, scale, dst);
  if (stride == 1) {
    if constexpr (sizeof(S) == sizeof(T)) {
      return pack_blocks<T>(rows, width, k, scale, dst);
    } else {
      return pack_widened(rows, width, k, scale, dst);
    }
  }
  if (neighbours(rows, count)) {
    if (width == kRows) return pack_lines<kRows>(rows[0], stride, k, scale, dst);
    if (width == kCols<T>) return pack_lines<kCols<T>>(rows[0], stride, k, scale, dst);
  }
  pack_plain(rows, count, width, stride, 0, k, scale, dst);
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
