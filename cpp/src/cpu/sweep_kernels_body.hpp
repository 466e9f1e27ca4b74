// SPDX-License-Identifier: Apache-2.0
//
// Included once by each sweep_kernels_<isa>.cpp, which is compiled for that instruction set and
// defines FF_VECTOR_BYTES; the rules are those of tile_kernels_body.hpp.
//
// Micro kernel: up to 8 x 2 vectors of sums in registers, per step of the depth a broadcast for
// each row and two loads. The tiles of a panel's 16 rows are 6, 6 and 4 high, of 32 rows all are 8,
// so that none reaches into the next panel.

#include "sweep_kernels.hpp"
#include "tile_pack_body.hpp"

namespace fastfisher::cpu {
namespace {

static_assert(kCols<float> <= kSweepWidth);

template <class T>
constexpr std::int64_t kHigh = kCols<T> == 32   ? 8
                               : kCols<T> == 16 ? 6
                                                : 4;

/// Bytes of the panel after this one that each tile asks for in a step of the depth.
template <class T>
constexpr std::int64_t kAhead = [] {
  constexpr std::int64_t tiles = (kCols<T> + kHigh<T> - 1) / kHigh<T>;
  return (kCols<T> * static_cast<std::int64_t>(sizeof(T)) + tiles - 1) / tiles;
}();

template <class T, std::int64_t Rows>
void micro(const T* left, const T* right, std::int64_t depth, T* c, bool accumulate,
           const char* ahead) {
  using V = typename VectorOf<T>::type;
  constexpr std::int64_t lanes = kLanes<T>, width = kCols<T>;
  V sum[Rows][kVectors] = {};
  // The tile after this one: its memory follows.
#pragma GCC unroll 8
  for (std::int64_t i = 0; i < Rows; ++i) __builtin_prefetch(c + (Rows + i) * width);
#pragma GCC unroll 2
  for (std::int64_t at = 0; at < depth * width; at += width) {
    __builtin_prefetch(ahead);
    ahead += kAhead<T>;
    const V right_0 = *reinterpret_cast<const V*>(right + at);
    const V right_1 = *reinterpret_cast<const V*>(right + at + lanes);
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < Rows; ++i) {
      sum[i][0] += left[at + i] * right_0;
      sum[i][1] += left[at + i] * right_1;
    }
  }
#pragma GCC unroll 8
  for (std::int64_t i = 0; i < Rows; ++i) {
    V& first = *reinterpret_cast<V*>(c + i * width);
    V& second = *reinterpret_cast<V*>(c + i * width + lanes);
    first = accumulate ? first + sum[i][0] : sum[i][0];
    second = accumulate ? second + sum[i][1] : sum[i][1];
  }
}

template <class T>
void product(const T* left, std::int64_t pitch, const T* right, std::int64_t depth,
             std::int64_t rows, T* c, bool accumulate) {
  constexpr std::int64_t width = kCols<T>, high = kHigh<T>;
  static_assert(width % high == 0 || width % high == 4);
  for (std::int64_t i = 0; i < rows; i += width, left += pitch) {
    std::int64_t r = 0;
    const char* ahead = reinterpret_cast<const char*>(left + pitch);
    for (; r + high <= width && i + r < rows; r += high, ahead += kAhead<T> * depth)
      micro<T, high>(left + r, right, depth, c + (i + r) * width, accumulate, ahead);
    if (r < width && i + r < rows)
      micro<T, 4>(left + r, right, depth, c + (i + r) * width, accumulate, ahead);
  }
}

template <class T>
void turn(const T* from, T scale, T* to) {
  constexpr std::int64_t width = kCols<T>, size = Block<T>::size;
  for (std::int64_t i = 0; i < width; i += size) {
    const T* rows[size];
    for (std::int64_t r = 0; r < size; ++r) rows[r] = from + (i + r) * width;
    for (std::int64_t j = 0; j < width; j += size)
      Block<T>::transpose(rows, j, scale, to + j * width + i, width);
  }
}

// Elimination on [S | I] with S = -a = (L D^-1/2) D (L D^-1/2)^T: the rows of I become those of the
// inverse of the unit factor.
template <class T>
std::int64_t leaf(const T* a, std::int64_t size, T* inverse) {
  using V = typename VectorOf<T>::type;
  constexpr std::int64_t lanes = kLanes<T>, width = kCols<T>;
  // Of S the rows right of the diagonal are used: the columns of -a below it.
  T s[width][width], roots[width] = {};
  turn(a, T(-1), &s[0][0]);
  for (std::int64_t i = 0; i < width; ++i) {
    for (std::int64_t j = 0; j < width; ++j)
      inverse[i * width + j] = i == j && i < size ? T(1) : T(0);
  }
  for (std::int64_t j = 0; j < size; ++j) {
    const T pivot = s[j][j];
    // Not the other way round: NaN is not positive either.
    if (!(pivot > 0)) return j + 1;
    const T back = 1 / pivot;
    if constexpr (sizeof(T) == sizeof(float)) {
      roots[j] = 1 / __builtin_sqrtf(pivot);
    } else {
      roots[j] = 1 / __builtin_sqrt(pivot);
    }
    const V s_1 = *reinterpret_cast<const V*>(&s[j][lanes]);
    const V x_0 = *reinterpret_cast<const V*>(inverse + j * width);
    if (j < lanes) {
      const V s_0 = *reinterpret_cast<const V*>(&s[j][0]);
      for (std::int64_t i = j + 1; i < size; ++i) {
        const T f = s[j][i] * back;
        *reinterpret_cast<V*>(&s[i][0]) -= f * s_0;
        *reinterpret_cast<V*>(&s[i][lanes]) -= f * s_1;
        *reinterpret_cast<V*>(inverse + i * width) -= f * x_0;
      }
    } else {
      const V x_1 = *reinterpret_cast<const V*>(inverse + j * width + lanes);
      for (std::int64_t i = j + 1; i < size; ++i) {
        const T f = s[j][i] * back;
        *reinterpret_cast<V*>(&s[i][lanes]) -= f * s_1;
        *reinterpret_cast<V*>(inverse + i * width) -= f * x_0;
        *reinterpret_cast<V*>(inverse + i * width + lanes) -= f * x_1;
      }
    }
  }
  for (std::int64_t i = 0; i < size; ++i) {
    *reinterpret_cast<V*>(inverse + i * width) *= roots[i];
    *reinterpret_cast<V*>(inverse + i * width + lanes) *= roots[i];
  }
  return 0;
}

// From the first row down, or from the last one up: what is done comes off all rows that are not.
template <class T>
void substitute(const T* tile, bool transposed, T* x) {
  using V = typename VectorOf<T>::type;
  constexpr std::int64_t lanes = kLanes<T>, width = kCols<T>;
  for (std::int64_t step = 0; step < width; ++step) {
    const std::int64_t row = transposed ? width - 1 - step : step;
    const T* const factors = tile + row * width;
    V& x_0 = *reinterpret_cast<V*>(x + row * width);
    V& x_1 = *reinterpret_cast<V*>(x + row * width + lanes);
    const V done_0 = x_0 * factors[row], done_1 = x_1 * factors[row];
    x_0 = done_0;
    x_1 = done_1;
    const std::int64_t from = transposed ? 0 : row + 1, to = transposed ? row : width;
    for (std::int64_t r = from; r < to; ++r) {
      *reinterpret_cast<V*>(x + r * width) -= factors[r] * done_0;
      *reinterpret_cast<V*>(x + r * width + lanes) -= factors[r] * done_1;
    }
  }
}

template <class T>
void transpose(const T* from, T* to) {
  turn(from, T(1), to);
}

template <class T>
typename VectorOf<T>::type magnitude(typename VectorOf<T>::type x) {
  using Bits = std::conditional_t<sizeof(T) == sizeof(float), std::uint32_t, std::uint64_t>;
  using Word __attribute__((vector_size(FF_VECTOR_BYTES), aligned(sizeof(T)), may_alias)) = Bits;
  constexpr Bits sign = Bits{1} << (8 * sizeof(T) - 1);
  return __builtin_bit_cast(typename VectorOf<T>::type, __builtin_bit_cast(Word, x) & ~sign);
}

template <class T, std::int64_t Count>
void load_strip(const T* a, std::int64_t lda, std::int64_t i, std::int64_t from, std::int64_t to,
                const T* scale, T unit, T* data, std::int64_t height, T* sums) {
  using V = typename VectorOf<T>::type;
  constexpr std::int64_t lanes = kLanes<T>, width = kCols<T>;
  V rows[Count] = {};
  std::int64_t panel = from / width;
  T* out = data + (panel * height - width * (panel * (panel + 1) / 2) + i) * width;
  for (std::int64_t j = from; j < to; j += width) {
#pragma GCC unroll 2
    for (std::int64_t half = 0; half < width; half += lanes) {
      const V scales = *reinterpret_cast<const V*>(scale + j + half);
      V columns = {};
#pragma GCC unroll 4
      for (std::int64_t r = 0; r < Count; ++r) {
        const V x = *reinterpret_cast<const V*>(a + r * lda + j - from + half);
        *reinterpret_cast<V*>(out + r * width + half) = x * -scale[i + r] * scales;
        const V size = magnitude<T>(x) * unit;
        rows[r] += size;
        columns += size;
      }
      *reinterpret_cast<V*>(sums + j + half) += columns;
    }
    out += (height - width * ++panel) * width;
  }
#pragma GCC unroll 4
  for (std::int64_t r = 0; r < Count; ++r) {
    for (std::int64_t lane = 0; lane < lanes; ++lane) sums[i + r] += rows[r][lane];
  }
}

template <class T>
void load(const T* a, std::int64_t lda, std::int64_t count, std::int64_t i, std::int64_t from,
          std::int64_t to, const T* scale, T unit, T* data, std::int64_t height, T* sums) {
  if (count == kSweepStrip)
    return load_strip<T, kSweepStrip>(a, lda, i, from, to, scale, unit, data, height, sums);
  for (std::int64_t r = 0; r < count; ++r)
    load_strip<T, 1>(a + r * lda, lda, i + r, from, to, scale, unit, data, height, sums);
}

template <class T, bool Sums>
void store_rows(const T* panel, std::int64_t count, std::int64_t i, std::int64_t j, const T* scale,
                T unit, T* out, std::int64_t n, T* lanes_of, T* sums) {
  using V = typename VectorOf<T>::type;
  constexpr std::int64_t lanes = kLanes<T>, width = kCols<T>, size = Block<T>::size;
  // On its way to the other side: rows of `out` a power of two apart would evict each other.
  alignas(64) T tile[kSweepTile * width];
  V columns[kVectors] = {};
  // Lines that are written below, row after row of the mirror, and those of the panel after this
  // one: asked for ahead, for a store that misses holds up all that follow.
  constexpr std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(T));
  static_assert(kSweepTile % line == 0 && kSweepTile % width == 0);
  constexpr std::int64_t lines = kSweepTile / line, share = width * lines / kSweepTile;
  for (std::int64_t r = 0; r < count; ++r) {
#pragma GCC unroll 4
    for (std::int64_t u = r * share; u < (r + 1) * share; ++u)
      __builtin_prefetch(out + (j + u / lines) * n + i + u % lines * line, 1);
    __builtin_prefetch(out + (i + r) * n + j + width, 1);
    __builtin_prefetch(out + (i + r) * n + j + 2 * width - 1, 1);
#pragma GCC unroll 2
    for (std::int64_t v = 0; v < kVectors; ++v) {
      const std::int64_t at = r * width + v * lanes;
      V x = *reinterpret_cast<const V*>(panel + at);
      if constexpr (Sums) {
        x = x * scale[i + r] * *reinterpret_cast<const V*>(scale + j + v * lanes);
        const V magnitudes = magnitude<T>(x) * unit;
        *reinterpret_cast<V*>(lanes_of + at) += magnitudes;
        columns[v] += magnitudes;
      } else {
        x *= unit;
      }
      *reinterpret_cast<V*>(out + (i + r) * n + j + v * lanes) = x;
      *reinterpret_cast<V*>(tile + at) = x;
    }
  }
  if constexpr (Sums) {
#pragma GCC unroll 2
    for (std::int64_t v = 0; v < kVectors; ++v)
      *reinterpret_cast<V*>(sums + v * lanes) += columns[v];
  }
  const std::int64_t whole = count / size * size;
  for (std::int64_t q = 0; q < width; q += size) {
    for (std::int64_t r = 0; r < whole; r += size) {
      const T* rows[size];
      for (std::int64_t u = 0; u < size; ++u) rows[u] = tile + (r + u) * width;
      Block<T>::transpose(rows, q, T(1), out + (j + q) * n + i + r, n);
    }
  }
  for (std::int64_t r = whole; r < count; ++r) {
    for (std::int64_t q = 0; q < width; ++q) out[(j + q) * n + i + r] = tile[r * width + q];
  }
}

template <class T>
void store(const T* panel, std::int64_t count, std::int64_t i, std::int64_t j, const T* scale,
           T unit, T* out, std::int64_t n, T* lanes_of, T* sums) {
  if (scale == nullptr) {
    store_rows<T, false>(panel, count, i, j, scale, unit, out, n, lanes_of, sums);
  } else {
    store_rows<T, true>(panel, count, i, j, scale, unit, out, n, lanes_of, sums);
  }
}

template <class T>
SweepKernels<T> make_kernels(const char* name) {
  return {kCols<T>,   name,         product<T>, leaf<T>, substitute<T>,
          pack<T, T>, transpose<T>, load<T>,    store<T>};
}

}  // namespace
}  // namespace fastfisher::cpu
