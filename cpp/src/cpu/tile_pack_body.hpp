// SPDX-License-Identifier: Apache-2.0
//
// Packing of rows into panels, and the shapes of the micro kernel that reads them. A part of
// tile_kernels_body.hpp, by whose rules it is compiled once for each instruction set.
#pragma once

#include "tile_kernels.hpp"

namespace fastfisher::cpu {
namespace {

// A micro tile, whose sums stay in registers: of 16, six times two leave four for operands.
#if !defined(FF_TILE_ROWS)
#define FF_TILE_ROWS 6
#define FF_TILE_VECTORS 2
#endif
constexpr std::int64_t kRows = FF_TILE_ROWS;
constexpr std::int64_t kVectors = FF_TILE_VECTORS;

template <class T>
constexpr std::int64_t kLanes = FF_VECTOR_BYTES / static_cast<std::int64_t>(sizeof(T));
template <class T>
constexpr std::int64_t kCols = kVectors * kLanes<T>;

// Where byte `at` of what is asked for ahead lies.
inline const char* byte_of(const Ahead& ahead, std::int64_t at) {
  const std::int64_t segment = at / ahead.segment;
  const char* const first = ahead.base + at % ahead.segment;
  if (ahead.inner == 1) return first + segment * ahead.pitch;
  return first + segment / ahead.inner * ahead.pitch + segment % ahead.inner * ahead.inner_pitch;
}

template <class T>
struct VectorOf {
  using type __attribute__((vector_size(FF_VECTOR_BYTES), aligned(sizeof(T)), may_alias)) = T;
};

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
  // Rows that are not there: all of their zeros at once.
  if (count < width && from < to) {
    const auto entries = static_cast<std::size_t>((to - from) * width);
    __builtin_memset(dst + from * width, 0, entries * sizeof(T));
  }
  for (std::int64_t depth = from; depth < to; ++depth) {
    T* line = dst + depth * width;
    for (std::int64_t i = 0; i < count; ++i)
      line[i] = static_cast<T>(widen(rows[i][depth * stride])) * static_cast<T>(scale);
  }
}

// Rows that are neighbours in memory: a line of the panel is a line there.
template <std::int64_t Width, class S, class T>
void pack_lines(const S* first, std::int64_t stride, std::int64_t k, double scale, T* dst) {
  const T factor = static_cast<T>(scale);
  if constexpr (sizeof(S) == sizeof(T)) {
    constexpr std::int64_t lanes = 16 / static_cast<std::int64_t>(sizeof(T));
    using V = typename Block<T>::V;
    for (std::int64_t depth = 0; depth < k; ++depth) {
      const T* from = first + depth * stride;
      T* to = dst + depth * Width;
#pragma GCC unroll 8
      for (std::int64_t i = 0; i + lanes <= Width; i += lanes)
        *reinterpret_cast<V*>(to + i) = *reinterpret_cast<const V*>(from + i) * factor;
#pragma GCC unroll 4
      for (std::int64_t i = Width / lanes * lanes; i < Width; ++i) to[i] = from[i] * factor;
    }
  } else {
    for (std::int64_t depth = 0; depth < k; ++depth) {
#pragma GCC unroll 16
      for (std::int64_t i = 0; i < Width; ++i)
        dst[depth * Width + i] = static_cast<T>(widen(first[depth * stride + i])) * factor;
    }
  }
}

// Rows anywhere, as many as a panel has: no loop over them is left.
template <std::int64_t Width, class S, class T>
void pack_scattered(const S* const* rows, std::int64_t stride, std::int64_t k, double scale,
                    T* dst) {
  const T factor = static_cast<T>(scale);
  for (std::int64_t depth = 0; depth < k; ++depth) {
#pragma GCC unroll 16
    for (std::int64_t i = 0; i < Width; ++i)
      dst[depth * Width + i] = static_cast<T>(widen(rows[i][depth * stride])) * factor;
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
      // So many rows are more than the processor follows by itself: ask for the next line of each.
      for (std::int64_t q = i; q < i + size; ++q)
        __builtin_prefetch(
            reinterpret_cast<const char*>(reinterpret_cast<std::intptr_t>(rows[q] + depth) + 64));
      for (std::int64_t d = depth; d < stop; d += size)
        Block<T>::transpose(rows + i, d, static_cast<T>(scale), dst + d * width + i, width);
    }
    depth = stop;
  }
  pack_plain(rows, width, width, 1, depth < 0 ? 0 : depth, k, scale, dst);
}

// The same for fewer rows than a panel has, with zeros for the others.
template <class T>
void pack_few(const T* const* rows, std::int64_t count, std::int64_t width, std::int64_t k,
              double scale, T* dst) {
  constexpr std::int64_t size = Block<T>::size;
  const std::int64_t whole = count / size * size, end = k / size * size;
  const T factor = static_cast<T>(scale);
  for (std::int64_t depth = 0; depth < end; depth += size) {
    for (std::int64_t i = 0; i < whole; i += size)
      Block<T>::transpose(rows + i, depth, factor, dst + depth * width + i, width);
    for (std::int64_t d = depth; d < depth + size; ++d) {
      T* const line = dst + d * width;
      for (std::int64_t i = whole; i < count; ++i) line[i] = rows[i][d] * factor;
      for (std::int64_t i = count; i < width; ++i) line[i] = 0;
    }
  }
  pack_plain(rows, count, width, 1, end, k, scale, dst);
}

// The same for rows that are neighbours in memory.
template <class S, class T>
void pack_few_lines(const S* first, std::int64_t count, std::int64_t width, std::int64_t stride,
                    std::int64_t k, double scale, T* dst) {
  const T factor = static_cast<T>(scale);
  for (std::int64_t depth = 0; depth < k; ++depth) {
    const S* const from = first + depth * stride;
    T* const line = dst + depth * width;
    for (std::int64_t i = 0; i < count; ++i) line[i] = static_cast<T>(widen(from[i])) * factor;
    for (std::int64_t i = count; i < width; ++i) line[i] = 0;
  }
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
  const bool lines = stride != 1 && neighbours(rows, count);
  if (count != width) {
    if (lines && count > 0) return pack_few_lines(rows[0], count, width, stride, k, scale, dst);
    if constexpr (sizeof(S) == sizeof(T)) {
      if (stride == 1) return pack_few(rows, count, width, k, scale, dst);
    }
    return pack_plain(rows, count, width, stride, 0, k, scale, dst);
  }
  if (stride == 1) {
    if constexpr (sizeof(S) == sizeof(T)) {
      return pack_blocks<T>(rows, width, k, scale, dst);
    } else {
      return pack_widened(rows, width, k, scale, dst);
    }
  }
  if (width == kRows) {
    if (lines) return pack_lines<kRows>(rows[0], stride, k, scale, dst);
    return pack_scattered<kRows>(rows, stride, k, scale, dst);
  }
  if (lines && width == kCols<T>) return pack_lines<kCols<T>>(rows[0], stride, k, scale, dst);
  pack_plain(rows, count, width, stride, 0, k, scale, dst);
}

}  // namespace
}  // namespace fastfisher::cpu
