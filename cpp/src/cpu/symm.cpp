// SPDX-License-Identifier: Apache-2.0
//
// out[e,k,n] = scale[e]^2 A_e x_e of symmetric matrices, reading the lower triangle alone and once
// for all vectors: n^2 / 2 entries of traffic, 2 n^2 k flops. A tile serves the rows that it stands
// in and, transposed, those of its columns. The rows are dealt to lanes, a fixed number for each n,
// each with sums of its own that are added up in order: bits do not depend on the threads.
//
// symmetry: largest magnitude and largest |a_ij - a_ji| in one read of the whole.
#include "backend.hpp"
#include "parallel.hpp"
#include "symm_kernels.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

namespace fastfisher::cpu {
namespace {

constexpr std::int64_t kStrip = 32;   // rows of a tile
constexpr std::int64_t kChunk = 512;  // columns of a tile: panels of them stay in the cache
constexpr std::int64_t kMostLanes = 16;
constexpr std::int64_t kSquare = 32;  // of the check
constexpr std::int64_t kAlignment = 64;
constexpr double kSerialWork = 1e5;

std::int64_t lanes_of(std::int64_t n) {
  return std::clamp<std::int64_t>(n / 512, 1, kMostLanes);
}

std::int64_t panels_of(std::int64_t vectors) {
  return (vectors + kSymmWidth - 1) / kSymmWidth;
}

// Entries of one matrix's share of the workspace: its vectors as panels, then its lanes' sums.
std::int64_t items_of(std::int64_t n, std::int64_t vectors) {
  return (lanes_of(n) + 1) * panels_of(vectors) * n * kSymmWidth;
}

// A tile of the matrix, where it lies or, for strides that the kernel does not take, as a copy.
template <class T>
struct Tile {
  const T* data;
  std::int64_t lda;
};

template <class T>
Tile<T> tile_of(const T* a, std::int64_t row_stride, std::int64_t col_stride, std::int64_t row,
                std::int64_t col, std::int64_t rows, std::int64_t cols, T* copy) {
  const T* from = a + row * row_stride + col * col_stride;
  if (col_stride == 1) return {from, row_stride};
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j)
      copy[i * cols + j] = from[i * row_stride + j * col_stride];
  }
  return {copy, cols};
}

template <class T>
struct Lane {
  const SymmKernels<T>& kernels;
  const T* a;
  std::int64_t row_stride, col_stride, n, panels;
  const T* x;  // [panels][n][width]
  T* sums;     // the same

  void strip(std::int64_t first) const {
    alignas(64) T copy[kStrip * kChunk];
    const std::int64_t rows = std::min(kStrip, n - first);
    for (std::int64_t col = 0; col < first; col += kChunk) {
      const std::int64_t cols = std::min(kChunk, first - col);
      const Tile<T> tile = tile_of(a, row_stride, col_stride, first, col, rows, cols, copy);
      for (std::int64_t p = 0; p < panels; ++p) {
        const std::int64_t i = (p * n + first) * kSymmWidth, j = (p * n + col) * kSymmWidth;
        kernels.tile(tile.data, tile.lda, rows, cols, x + i, x + j, sums + i, sums + j);
      }
    }
    // Where the strip meets itself, row by row up to the diagonal.
    const Tile<T> tile = tile_of(a, row_stride, col_stride, first, first, rows, rows, copy);
    for (std::int64_t p = 0; p < panels; ++p) {
      const T* in = x + (p * n + first) * kSymmWidth;
      T* out = sums + (p * n + first) * kSymmWidth;
      for (std::int64_t i = 0; i < rows; ++i) {
        const T* row = tile.data + i * tile.lda;
        if (i > 0)
          kernels.tile(row, tile.lda, 1, i, in + i * kSymmWidth, in, out + i * kSymmWidth, out);
        for (std::int64_t k = 0; k < kSymmWidth; ++k)
          out[i * kSymmWidth + k] += row[i] * in[i * kSymmWidth + k];
      }
    }
  }
};

template <class T>
void symm_typed(const Context& ctx, const View<const T, 3>& a, const View<const T, 3>& x,
                const View<const double, 1>& scale, const View<T, 3>& out) {
  const std::int64_t networks = a.extent(0), n = a.extent(1), vectors = x.extent(1);
  const std::int64_t lanes = lanes_of(n), panels = panels_of(vectors), items = items_of(n, vectors);
  const std::int64_t panel = n * kSymmWidth;
  auto* const base = reinterpret_cast<T*>(
      (reinterpret_cast<std::uintptr_t>(ctx.workspace.data()) + 63) & ~std::uintptr_t{63});
  const double work = static_cast<double>(networks * n) * static_cast<double>(n * vectors);
  const int threads = work < kSerialWork ? 1 : thread_count(ctx);
  const ParallelRegion region;
  const std::int64_t stretch = 1024, parts = (n + stretch - 1) / stretch;
  const auto packed = [&](std::int64_t e) { return base + e * items; };
  parallel_for(ctx, threads, networks * parts, [&](std::int64_t task, int) {
    const std::int64_t e = task / parts, from = task % parts * stretch;
    const T factor = static_cast<T>(scale(e));
    for (std::int64_t k = 0; k < panels * kSymmWidth; ++k) {
      T* to = packed(e) + k / kSymmWidth * panel + k % kSymmWidth;
      for (std::int64_t i = from; i < std::min(n, from + stretch); ++i)
        to[i * kSymmWidth] = k < vectors ? factor * x(e, k, i) : T{0};
    }
  });
  // The matrix equals its transpose: the axis of stride one runs along the rows.
  const bool turn = a.stride(1) == 1 && a.stride(2) != 1;
  parallel_for(ctx, threads, networks * lanes, [&](std::int64_t task, int) {
    const std::int64_t e = task / lanes, lane = task % lanes;
    T* sums = packed(e) + (1 + lane) * panels * panel;
    std::fill(sums, sums + panels * panel, T{0});
    const Lane<T> work_of{
        symm_kernels<T>(), &a(e, 0, 0), a.stride(turn ? 2 : 1), a.stride(turn ? 1 : 2), n, panels,
        packed(e),         sums};
    for (std::int64_t first = lane * kStrip; first < n; first += lanes * kStrip)
      work_of.strip(first);
  });
  parallel_for(ctx, threads, networks * parts, [&](std::int64_t task, int) {
    const std::int64_t e = task / parts, from = task % parts * stretch;
    const T factor = static_cast<T>(scale(e));
    const std::int64_t to = std::min(n, from + stretch);
    for (std::int64_t p = 0; p < panels; ++p) {
      T* total = packed(e) + panels * panel + p * panel;
      for (std::int64_t lane = 1; lane < lanes; ++lane) {
        const T* more = total + lane * panels * panel;
        for (std::int64_t i = from * kSymmWidth; i < to * kSymmWidth; ++i) total[i] += more[i];
      }
      for (std::int64_t k = p * kSymmWidth; k < std::min(vectors, (p + 1) * kSymmWidth); ++k) {
        for (std::int64_t i = from; i < to; ++i)
          out(e, k, i) = factor * total[i * kSymmWidth + k % kSymmWidth];
      }
    }
  });
}

// Largest magnitude and asymmetry of rows first ... and the columns up to them. Strides that the
// kernel does not take are copied to tiles.
template <class T>
void check_strip(const T* data, std::int64_t by_row, std::int64_t by_col, std::int64_t n,
                 std::int64_t first, Magnitude<T>& largest, Magnitude<T>& apart) {
  const SymmKernels<T>& kernels = symm_kernels<T>();
  const std::int64_t rows = std::min(kSquare, n - first);
  for (std::int64_t col = 0; col <= first; col += kSquare) {
    const std::int64_t cols = std::min(kSquare, n - col);
    const T* const here = data + first * by_row + col * by_col;
    const T* const there = data + col * by_row + first * by_col;
    if (by_col == 1) {
      kernels.check(here, there, by_row, rows, cols, largest, apart);
      continue;
    }
    T tile[kSquare][kSquare], mirror[kSquare][kSquare];
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < cols; ++j) {
        tile[i][j] = here[i * by_row + j * by_col];
        mirror[j][i] = there[j * by_row + i * by_col];
      }
    }
    kernels.check(&tile[0][0], &mirror[0][0], kSquare, rows, cols, largest, apart);
  }
}

template <class T>
void symmetry_typed(const Context& ctx, const View<const T, 3>& a, const View<double, 2>& out) {
  const std::int64_t networks = a.extent(0), n = a.extent(1), blocks = (n + kSquare - 1) / kSquare;
  const bool turn = a.stride(1) == 1 && a.stride(2) != 1;
  const std::int64_t by_row = a.stride(turn ? 2 : 1), by_col = a.stride(turn ? 1 : 2);
  const double work = static_cast<double>(networks * n) * static_cast<double>(n);
  const int threads = work < kSerialWork ? 1 : thread_count(ctx);
  std::vector<Magnitude<T>> found(static_cast<std::size_t>(2 * networks * blocks), 0);
  parallel_for(ctx, threads, networks * blocks, [&](std::int64_t task, int) {
    const std::int64_t e = task / blocks, first = (blocks - 1 - task % blocks) * kSquare;
    const T* const data = &a(e, 0, 0);
    Magnitude<T> largest = 0, apart = 0;
    check_strip<T>(data, by_row, by_col, n, first, largest, apart);
    found[static_cast<std::size_t>(2 * task)] = largest;
    found[static_cast<std::size_t>(2 * task + 1)] = apart;
  });
  for (std::int64_t e = 0; e < networks; ++e) {
    for (std::int64_t which = 0; which < 2; ++which) {
      Magnitude<T> most = 0;
      for (std::int64_t block = 0; block < blocks; ++block)
        most = std::max(most, found[static_cast<std::size_t>(2 * (e * blocks + block) + which)]);
      out(e, which) = static_cast<double>(std::bit_cast<T>(most));
    }
  }
}

}  // namespace

void symm(const Context& ctx, const ArrayRef& a, const ArrayRef& x, const ArrayRef& scale,
          const ArrayRef& out) {
  if (out.size() == 0) return;
  if (static_cast<std::int64_t>(ctx.workspace.size()) < cpu::symm_workspace(ctx, a, out.extent(1)))
    throw Error(ErrorCode::memory, "symm", "workspace", "is smaller than symm_workspace");
  visit_dtype(out.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    symm_typed<T>(ctx, view_of<const T, 3>(a), view_of<const T, 3>(x),
                  view_of<const double, 1>(scale), view_of<T, 3>(out));
  });
}

std::int64_t symm_workspace(const Context&, const ArrayRef& a, std::int64_t vectors) {
  return a.extent(0) * items_of(a.extent(1), vectors) * size_of(a.dtype) + kAlignment;
}

void symmetry(const Context& ctx, const ArrayRef& a, const ArrayRef& out) {
  visit_dtype(a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    symmetry_typed<T>(ctx, view_of<const T, 3>(a), view_of<double, 2>(out));
  });
}

}  // namespace fastfisher::cpu
