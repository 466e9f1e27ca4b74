// SPDX-License-Identifier: Apache-2.0
//
// Kernel bodies of symm, see symm.cu; plain C++ over a block context. Which sums meet in which
// order is a matter of n alone: neither the launch nor the device changes a bit.
#pragma once

#include "four.hpp"

#include <cmath>
#include <cstdint>

namespace fastfisher::cuda {

// The lower triangle, cut into strips of rows and these into chunks of columns, `group` strips
// wide: what one block works on. Strips s of a group of that many have s / group + 1 chunks.
struct SymmCut {
  std::int64_t strips = 0, group = 1;

  [[nodiscard]] FF_HD std::int64_t chunks(std::int64_t strip) const { return strip / group + 1; }
  [[nodiscard]] FF_HD std::int64_t first(std::int64_t strip) const {  // item of a strip
    const std::int64_t g = strip / group;
    return group * g * (g + 1) / 2 + strip % group * (g + 1);
  }
  [[nodiscard]] FF_HD std::int64_t items() const { return first(strips); }
  FF_HD void locate(std::int64_t item, std::int64_t& strip, std::int64_t& chunk) const {
    // Triangular numbers; the root may be off by one on either side.
    const double root = std::sqrt(8.0 * static_cast<double>(item / group) + 1);
    auto g = static_cast<std::int64_t>((root - 1) / 2);
    while (group * g * (g + 1) / 2 > item) --g;
    while (group * (g + 1) * (g + 2) / 2 <= item) ++g;
    const std::int64_t rest = item - group * g * (g + 1) / 2;
    strip = g * group + rest / (g + 1);
    chunk = rest % (g + 1);
  }
};

struct SymmProblem {
  const void* a = nullptr;  // [e, row, col], the part with col <= row is read
  std::int64_t network_stride = 0, row_stride = 0, col_stride = 0;
  const void* x = nullptr;  // [e, k, n], the first vector of this launch
  std::int64_t x_strides[3] = {0, 0, 0};
  void* out = nullptr;
  std::int64_t out_strides[3] = {0, 0, 0};
  const double* scale = nullptr;
  std::int64_t scale_stride = 0;
  std::int64_t n = 0, networks = 0, vectors = 0, panels = 0;
  SymmCut cut;
  bool aligned = false;  // rows of a lie without gaps and start at multiples of 16 bytes
  // Workspace, per network and panel of vectors: x as [row, vector], sums over the columns of an
  // item as [item, vector, row of its strip], sums over the rows of a strip as [strip, vector,
  // column], strip s with (s + 1) strips of columns.
  void *packed = nullptr, *by_row = nullptr, *by_col = nullptr;
};

// What tiles share: who does which item, and what is left to add up once each has its sums.
template <class T, int Rows, int Width, int Threads>
struct SymmSums {
  FF_HD static std::int64_t padded(const SymmCut& cut) { return cut.strips * Rows; }
  // Entries of a network's panel in the parts of the workspace for sums.
  FF_HD static std::int64_t by_row_size(const SymmCut& cut) { return cut.items() * Width * Rows; }
  FF_HD static std::int64_t by_col_at(std::int64_t strip) {
    return strip * (strip + 1) / 2 * Width * Rows;
  }
  FF_HD static std::int64_t by_col_size(const SymmCut& cut) { return by_col_at(cut.strips); }

  // Calls item(network, item, panel) for the share of a block. Panels of an item run side by side:
  // the second reads the matrix from the cache.
  template <BlockContext Block, class Item>
  FF_HD static void each_item(const Block& block, const SymmProblem& problem, const Item& item) {
    const std::int64_t items = problem.cut.items();
    for (std::int64_t index = block.index(); index < problem.networks * items * problem.panels;
         index += block.blocks())
      item(index / (items * problem.panels), index / problem.panels % items,
           index % problem.panels);
  }

  // Adds up in order. Batches of loads, the last one with zeros: one after the other they would
  // each wait for the memory.
  template <class Place>
  FF_HD static void add(double& sum, std::int64_t first, std::int64_t end, const Place& place) {
    constexpr int kBatch = 16;
    for (std::int64_t from = first; from < end; from += kBatch) {
      T values[kBatch];
      FF_UNROLL
      for (int u = 0; u < kBatch; ++u) values[u] = from + u < end ? *place(from + u) : T{0};
      FF_UNROLL
      for (int u = 0; u < kBatch; ++u) sum += static_cast<double>(values[u]);
    }
  }

  // out = scale (sums over the chunks of the row's strip + sums over the strips below), of a matrix
  // that was multiplied by Lift::of(scale), a power of two.
  template <class Lift, BlockContext Block>
  FF_HD static void reduce(const Block& block, const SymmProblem& problem) {
    const SymmCut& cut = problem.cut;
    const std::int64_t n = problem.n;
    for (std::int64_t at = block.index() * Threads + block.thread();
         at < problem.networks * problem.vectors * n; at += block.blocks() * Threads) {
      const std::int64_t e = at / (problem.vectors * n), k = at / n % problem.vectors, i = at % n;
      const std::int64_t plane = e * problem.panels + k / Width, w = k % Width;
      const std::int64_t strip = i / Rows, first = cut.first(strip);
      const T* rows = static_cast<const T*>(problem.by_row) + plane * by_row_size(cut) +
                      (first * Width + w) * Rows + i % Rows;
      double sum = 0;
      add(sum, 0, cut.chunks(strip),
          [rows](std::int64_t chunk) { return rows + chunk * Width * Rows; });
      const T* cols = static_cast<const T*>(problem.by_col) + plane * by_col_size(cut);
      add(sum, strip, cut.strips,
          [=](std::int64_t s) { return cols + by_col_at(s) + w * (s + 1) * Rows + i; });
      const double scale = problem.scale[e * problem.scale_stride];
      static_cast<T*>(problem.out)[e * problem.out_strides[0] + k * problem.out_strides[1] +
                                   i * problem.out_strides[2]] =
          static_cast<T>(sum / Lift::of(scale)) * static_cast<T>(scale);
    }
  }
};

// The matrix as it is.
struct SymmPlain {
  FF_HD static double of(double) { return 1; }
};

// A block of Threads works on tiles of Rows x Cols and Width vectors.
template <class T, int Rows, int Cols, int Width, int Threads>
struct SymmTile : SymmSums<T, Rows, Width, Threads> {
  using Type = T;
  using Sums = SymmSums<T, Rows, Width, Threads>;
  using Sums::by_col_at, Sums::by_col_size, Sums::by_row_size;
  static constexpr int kThreads = Threads, kRows = Rows, kCols = Cols, kWidth = Width;
  static constexpr int kPanels = 4;  // of one launch at most: what they add up takes memory
  static constexpr int kPitch = Cols + 16 / static_cast<int>(sizeof(T));  // rows shift by 4 banks
  static constexpr int kRowLanes = Rows / 4, kSlices = Threads / kRowLanes, kSlice = Cols / kSlices;
  static constexpr int kColLanes = Cols / 4, kStacks = Threads / kColLanes, kStack = Rows / kStacks;
  static constexpr int kSums = kSlices * Rows > kStacks* Cols ? kSlices * Rows : kStacks * Cols;
  static_assert(Rows % Cols == 0 && Threads % kRowLanes == 0 && Threads % kColLanes == 0);
  static_assert(kSlice % 4 == 0 && Cols % kSlices == 0 && Rows % kStacks == 0 && Width % 4 == 0);

  struct Shared {
    alignas(16) T tile[2][Rows][kPitch];
    alignas(16) T left[Rows][Width];
    alignas(16) T right[2][Cols][Width];
    alignas(16) T sums[kSums * Width];
  };

  // Entries of a network's panel of x in the workspace.
  FF_HD static std::int64_t packed_size(const SymmCut& cut) { return Sums::padded(cut) * Width; }

  // packed = scale x, with zeros for the rows and vectors that there are not.
  template <BlockContext Block>
  FF_HD static void pack(const Block& block, const SymmProblem& problem) {
    const std::int64_t size = packed_size(problem.cut);
    T* const to = static_cast<T*>(problem.packed);
    for (std::int64_t at = block.index() * Threads + block.thread();
         at < size * problem.panels * problem.networks; at += block.blocks() * Threads) {
      const std::int64_t plane = at / size, e = plane / problem.panels;
      const std::int64_t k = plane % problem.panels * Width + at % Width, i = at % size / Width;
      T value = 0;
      if (k < problem.vectors && i < problem.n) {
        value =
            static_cast<T>(problem.scale[e * problem.scale_stride]) *
            static_cast<const T*>(problem.x)[e * problem.x_strides[0] + k * problem.x_strides[1] +
                                             i * problem.x_strides[2]];
      }
      to[at] = value;
    }
  }

  template <WarpContext Block>
  FF_HD static void run(const Block& block, Shared& shared, const SymmProblem& problem) {
    Sums::each_item(block, problem, [&](std::int64_t e, std::int64_t index, std::int64_t panel) {
      item(block, shared, problem, e, index, panel);
    });
  }

  template <BlockContext Block>
  FF_HD static void reduce(const Block& block, const SymmProblem& problem) {
    Sums::template reduce<SymmPlain>(block, problem);
  }

 private:
  template <WarpContext Block>
  FF_HD static void item(const Block& block, Shared& shared, const SymmProblem& problem,
                         std::int64_t e, std::int64_t item, std::int64_t panel) {
    const SymmCut& cut = problem.cut;
    const int t = block.thread();
    std::int64_t strip = 0, chunk = 0;
    cut.locate(item, strip, chunk);
    const std::int64_t plane = e * problem.panels + panel, row = strip * Rows;
    const std::int64_t from = chunk * cut.group * Rows, end = (chunk + 1) * cut.group * Rows;
    const std::int64_t to = end < row + Rows ? end : row + Rows;
    const T* const a = static_cast<const T*>(problem.a) + e * problem.network_stride;
    const T* const x = static_cast<const T*>(problem.packed) + plane * packed_size(cut);
    T* const by_col = static_cast<T*>(problem.by_col) + plane * by_col_size(cut) + by_col_at(strip);

    block.sync();  // the last item is done with the shared memory
    copy_panel(block, &shared.left[0][0], x + row * Width, Rows);
    fetch(block, shared, problem, a, x, row, from, 0);
    T acc[4][Width] = {};
    int buffer = 0;
    for (std::int64_t col = from; col < to; col += Cols, buffer ^= 1) {
      if (col + Cols < to) {
        fetch(block, shared, problem, a, x, row, col + Cols, buffer ^ 1);
        block.template wait<1>();
      } else {
        block.template wait<0>();
      }
      block.sync();
      const bool diagonal = col >= row;
      if (diagonal) clear(block, shared.tile[buffer], static_cast<int>(col - row), 1);
      along_rows(t, shared.tile[buffer], shared.right[buffer], acc);
      if (diagonal) {  // its entries have served
        block.sync();
        clear(block, shared.tile[buffer], static_cast<int>(col - row), 0);
      }
      along_cols(t, shared, buffer);
      block.sync();
      T* const to_cols = by_col + col;
      for (int q = t; q < Width * Cols; q += Threads)
        to_cols[q / Cols * (strip + 1) * Rows + q % Cols] = total<kStacks, Width * Cols>(shared, q);
    }
    block.sync();  // the last tile's sums have been read
    for (int u = 0; u < 4; ++u) {
      for (int w = 0; w < Width; ++w) {
        shared.sums[(t / kRowLanes * Width + w) * Rows + t % kRowLanes + u * kRowLanes] = acc[u][w];
      }
    }
    block.sync();
    T* const by_row =
        static_cast<T*>(problem.by_row) + plane * by_row_size(cut) + item * Width * Rows;
    for (int q = t; q < Width * Rows; q += Threads)
      by_row[q] = total<kSlices, Width * Rows>(shared, q);
  }

  template <int Count, int Step>
  FF_HD static T total(const Shared& shared, int at) {
    T sum = shared.sums[at];
    for (int part = 1; part < Count; ++part) sum += shared.sums[part * Step + at];
    return sum;
  }

  // acc[u][w] += the thread's rows times its slice of columns.
  FF_HD static void along_rows(int t, const T (&tile)[Rows][kPitch], const T (&right)[Cols][Width],
                               T (&acc)[4][Width]) {
    const int lane = t % kRowLanes, slice = t / kRowLanes * kSlice;
    for (int c = slice; c < slice + kSlice; c += 4) {
      Four<T> a[4];
      for (int u = 0; u < 4; ++u) a[u] = four_at(&tile[lane + u * kRowLanes][c]);
      for (int k = 0; k < 4; ++k) {
        for (int w = 0; w < Width; w += 4) {
          const Four<T> x = four_at(&right[c + k][w]);
          for (int u = 0; u < 4; ++u) {
            for (int v = 0; v < 4; ++v) acc[u][w + v] += a[u].v[k] * x.v[v];
          }
        }
      }
    }
  }

  // Sums over the thread's rows for four columns.
  FF_HD static void along_cols(int t, Shared& shared, int buffer) {
    const int col = t % kColLanes * 4, stack = t / kColLanes;
    T sums[Width][4] = {};
#if defined(__CUDA_ARCH__)
#pragma unroll 4
#endif
    for (int m = 0; m < kStack; ++m) {
      const int row = stack + m * kStacks;
      const Four<T> a = four_at(&shared.tile[buffer][row][col]);
      for (int w = 0; w < Width; w += 4) {
        const Four<T> x = four_at(&shared.left[row][w]);
        for (int v = 0; v < 4; ++v) {
          for (int k = 0; k < 4; ++k) sums[w + v][k] += a.v[k] * x.v[v];
        }
      }
    }
    for (int w = 0; w < Width; ++w) {
      Four<T> four;
      for (int k = 0; k < 4; ++k) four.v[k] = sums[w][k];
      *reinterpret_cast<Four<T>*>(shared.sums + (stack * Width + w) * Cols + col) = four;
    }
  }

  // Zeros for entries from `above` columns right of the diagonal on; the tile starts at column
  // `shift` of the square in which the strip meets itself.
  template <BlockContext Block>
  FF_HD static void clear(const Block& block, T (&tile)[Rows][kPitch], int shift, int above) {
    for (int q = block.thread(); q < Rows * Cols; q += Threads) {
      if (q % Cols + shift >= q / Cols + above) tile[q / Cols][q % Cols] = 0;
    }
    block.sync();
  }

  template <WarpContext Block>
  FF_HD static void copy_panel(const Block& block, T* to, const T* from, int rows) {
    constexpr int kStep = 16 / static_cast<int>(sizeof(T));
    for (int q = block.thread() * kStep; q < rows * Width; q += Threads * kStep)
      block.template copy<16>(to + q, from + q, true);
  }

  // The tile at (row, col) and the vectors of its columns to a buffer, as one group of copies.
  template <WarpContext Block>
  FF_HD static void fetch(const Block& block, Shared& shared, const SymmProblem& problem,
                          const T* a, const T* x, std::int64_t row, std::int64_t col, int buffer) {
    constexpr int kBytes = static_cast<int>(sizeof(T));
    const std::int64_t down = problem.n - row, across = problem.n - col;
    const T* const from = a + row * problem.row_stride + col * problem.col_stride;
    T(&tile)[Rows][kPitch] = shared.tile[buffer];
    if (problem.aligned && across >= Cols) {
      constexpr int kStep = 16 / kBytes, kHop = Threads * kStep / Cols;
      static_assert(Threads * kStep % Cols == 0 && Rows % kHop == 0);
      const int at = block.thread() * kStep % Cols, first = block.thread() * kStep / Cols;
      for (int r = first, m = 0; m < Rows / kHop; ++m, r += kHop) {
        const bool inside = r < down;
        block.template copy<16>(&tile[r][at], inside ? from + r * problem.row_stride + at : a,
                                inside);
      }
    } else {
      constexpr int kHop = Threads / Cols;
      static_assert(Threads % Cols == 0 && Rows % kHop == 0);
      const int at = block.thread() % Cols, first = block.thread() / Cols;
      for (int r = first, m = 0; m < Rows / kHop; ++m, r += kHop) {
        const bool inside = r < down && at < across;
        block.template copy<kBytes>(
            &tile[r][at], inside ? from + r * problem.row_stride + at * problem.col_stride : a,
            inside);
      }
    }
    copy_panel(block, &shared.right[buffer][0][0], x + col * Width, Cols);
    block.commit();
  }
};

}  // namespace fastfisher::cuda
