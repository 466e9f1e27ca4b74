// SPDX-License-Identifier: Apache-2.0
//
// Kernel bodies of symm for float32 on tensor cores, see symm.cu; plain C++ over a block context.
//
// Numbers are sums of two of TF32, rounded to nearest: a = a0 + a1 up to the last bit of 24, as
// a1 has at most 12, of which 11 are read. A product is a1 x0 + a0 x1 + a0 x0, in this order and
// over eight terms in one accumulator that starts at zero; what is dropped is below 2^-22 of it.
// Tensor cores cut off what they add instead of rounding it, so that long sums there would drift:
// these short ones are added up outside, in float32.
//
// The matrix is multiplied by a power of two first (SymmLift), which the result makes up for.
// Halved, its largest finite entries do not round to infinity. With a large scale, which says that
// the entries are tiny, it is 2^32, or a1 would lie below the least normal number, where TF32 has
// no digits left. Without such a scale a1 fades out for |a| below 2^-100 or so: an error of at most
// 2^-135 (2^-125 if the hardware takes such numbers for zero), to be seen only where no entry is
// much larger. The same goes for vectors (times scale) without an entry above 2^-100.
#pragma once

#include "element.hpp"
#include "symm_body.hpp"

namespace fastfisher::cuda {

struct SymmLift {
  FF_HD static double of(double scale) { return scale * scale > 0x1p90 ? 0x1p32 : 0.5; }
};

// A block of RowWarps x ColWarps warps, each with a patch of 32 x 32 of a part of a tile; strips
// are Parts of these parts high. Both directions read the patch from shared memory: for its columns
// a product wants it transposed, in other lanes than for its rows.
template <int Width, int RowWarps, int ColWarps, int Parts>
struct SymmMma : SymmSums<float, 32 * RowWarps * Parts, Width, 32 * RowWarps * ColWarps> {
  static constexpr int kThreads = 32 * RowWarps * ColWarps, kWidth = Width;
  static constexpr int kPartRows = 32 * RowWarps, kRows = kPartRows * Parts, kCols = 32 * ColWarps;
  static constexpr int kPanels = 32 / Width;           // of one launch at most, see SymmTile
  static constexpr int kPanel = Width / 8;             // operands of 8 vectors side by side
  static constexpr int kUnroll = Width <= 24 ? 2 : 1;  // steps of 8, as far as registers go
  using Sums = SymmSums<float, kRows, Width, kThreads>;
  using Sums::by_col_at, Sums::by_col_size, Sums::by_row_size;
  static_assert(Width % 8 == 0 && Width <= 32 && kRows % kCols == 0);
  static_assert(Parts % 2 == 0);  // the parts of a tile alternate between the buffers
  static_assert(RowWarps <= 2);   // sums of a tile's columns fit in where its vectors were
  static_assert(kThreads % 32 == 0 && ColWarps * Width * kRows <= 2 * kPartRows * kCols);

  struct Shared {
    alignas(16) float tile[2][kPartRows * kCols];  // later the sums of the strip's rows
    alignas(16) float left[kRows * Width * 2];
    alignas(16) float right[2][kCols * Width * 2];
  };

  // Of vectors every 8 rows by 8 vectors are 32 Fours, one a lane: with g = lane / 4, t = lane % 4
  // x0 of rows 2t and 2t + 1 and vector g, then x1. A product's depth t is row 2t, depth t + 4 is
  // row 2t + 1: both directions read the vectors alike, and two entries of a matrix row at once.
  FF_HD static std::int64_t packed_size(const SymmCut& cut) {
    return Sums::padded(cut) * Width * 2;
  }

  // packed = scale x in two halves, with zeros for the rows and vectors that there are not.
  template <BlockContext Block>
  FF_HD static void pack(const Block& block, const SymmProblem& problem) {
    const std::int64_t size = packed_size(problem.cut) / 4;
    auto* const to = static_cast<Four<float>*>(problem.packed);
    for (std::int64_t at = block.index() * kThreads + block.thread();
         at < size * problem.panels * problem.networks; at += block.blocks() * kThreads) {
      const std::int64_t plane = at / size, e = plane / problem.panels, rest = at % size;
      const std::int64_t k =
          plane % problem.panels * Width + rest / 32 % kPanel * 8 + rest % 32 / 4;
      const std::int64_t i = rest / 32 / kPanel * 8 + rest % 4 * 2;
      const float* const x = static_cast<const float*>(problem.x) + e * problem.x_strides[0];
      const auto scale = static_cast<float>(problem.scale[e * problem.scale_stride]);
      Four<float> halves;
      for (int h = 0; h < 2; ++h) {
        float value = 0;
        if (k < problem.vectors && i + h < problem.n)
          value = scale * x[k * problem.x_strides[1] + (i + h) * problem.x_strides[2]];
        split_any(value, halves.v[h], halves.v[2 + h]);
      }
      to[at] = halves;
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
    Sums::template reduce<SymmLift>(block, problem);
  }

 private:
  // Of a warp and a lane of it.
  struct Place {
    int row, col, g, t;  // where the warp's patch starts in a part
    FF_HD explicit Place(int thread)
        : row(thread / 32 / ColWarps * 32),
          col(thread / 32 % ColWarps * 32),
          g(thread % 32 / 4),
          t(thread % 4) {}
  };

  // Where a part keeps an entry. Groups of 8 columns trade places within 32 so that neither eight
  // lanes with four columns each of rows 2t (or 2t + 1) meet in a bank, nor sixteen with two of
  // four consecutive rows; there is no padding.
  FF_HD static int shift_of(int row) { return ((row << 2) & 8) | (((row ^ (row >> 2)) & 1) << 4); }
  FF_HD static int at(int row, int col) { return row * kCols + (col ^ shift_of(row)); }

  FF_HD static void split(float value, float& high, float& low) {
    high = float_of((bits_of(value) + 0x1000U) & 0xffffe000U);
    low = value - high;
  }
  // Also of the largest numbers, which are cut off, and of what is not finite.
  FF_HD static void split_any(float value, float& high, float& low) {
    constexpr std::uint32_t kInfinity = 0x7f800000U;
    split(value, high, low);
    if ((bits_of(value) & kInfinity) == kInfinity) {
      high = value;
      low = 0;
    } else if ((bits_of(high) & kInfinity) == kInfinity) {
      high = float_of(bits_of(value) & 0xffffe000U);
      low = value - high;
    } else {
      low = float_of((bits_of(low) + 0x1000U) & 0xffffe000U);
    }
  }

  template <WarpContext Block>
  FF_HD static void item(const Block& block, Shared& shared, const SymmProblem& problem,
                         std::int64_t e, std::int64_t item, std::int64_t panel) {
    const SymmCut& cut = problem.cut;
    const Place place(block.thread());
    std::int64_t strip = 0, chunk = 0;
    cut.locate(item, strip, chunk);
    const std::int64_t plane = e * problem.panels + panel, row = strip * kRows;
    const std::int64_t from = chunk * cut.group * kRows, end = (chunk + 1) * cut.group * kRows;
    const std::int64_t to = end < row + kRows ? end : row + kRows;
    const float* const a = static_cast<const float*>(problem.a) + e * problem.network_stride;
    const float* const x = static_cast<const float*>(problem.packed) + plane * packed_size(cut);
    float* const by_col =
        static_cast<float*>(problem.by_col) + plane * by_col_size(cut) + by_col_at(strip);
    const auto lift = static_cast<float>(SymmLift::of(problem.scale[e * problem.scale_stride]));

    block.sync();  // the last item is done with the shared memory
    copy_panel(block, shared.left, x + row * Width * 2, kRows);
    copy_panel(block, shared.right[0], x + from * Width * 2, kCols);
    fetch(block, shared.tile[0], problem, a, row, from);
    float rows[Parts][2][kPanel][4] = {};
    int panels = 0;  // which of the two holds the tile's vectors
    for (std::int64_t col = from; col < to; col += kCols, panels ^= 1) {
      float cols[2][kPanel][4] = {};
      FF_UNROLL
      for (int part = 0; part < Parts; ++part) {
        if (part + 1 < Parts) {
          fetch(block, shared.tile[(part + 1) % 2], problem, a, row + (part + 1) * kPartRows, col);
          block.template wait<1>();
        } else if (col + kCols < to) {
          copy_panel(block, shared.right[panels ^ 1], x + (col + kCols) * Width * 2, kCols);
          fetch(block, shared.tile[0], problem, a, row, col + kCols);
          block.template wait<1>();
        } else {
          block.template wait<0>();
        }
        block.sync();
        // Others may write here two parts later at the earliest.
        if (part == 0 && col > from)
          put_cols(block, shared.right[panels ^ 1], by_col + col - kCols, (strip + 1) * kRows);
        float* const tile = shared.tile[part % 2];
        const float* const left = shared.left + part * kPartRows * Width * 2;
        const std::int64_t shift = col - row - part * kPartRows;
        const bool diagonal = shift + kCols > 0;
        if (diagonal) clear(block, tile, static_cast<int>(shift), 1);
        along_rows(block, place, tile, shared.right[panels], lift, rows[part]);
        if (diagonal) {  // its entries have served
          block.sync();
          clear(block, tile, static_cast<int>(shift), 0);
        }
        along_cols(block, place, tile, left, lift, cols);
        block.sync();
      }
      keep_cols(place, shared.right[panels], cols);
    }
    float* const sums = shared.tile[0];
    keep_rows(place, sums, rows);
    block.sync();
    put_cols(block, shared.right[panels ^ 1], by_col + to - kCols, (strip + 1) * kRows);
    float* const by_row =
        static_cast<float*>(problem.by_row) + plane * by_row_size(cut) + item * Width * kRows;
    for (int q = block.thread(); q < Width * kRows; q += kThreads) {
      float sum = sums[q];
      for (int w = 1; w < ColWarps; ++w) sum += sums[w * Width * kRows + q];
      by_row[q] = sum;
    }
  }

  // acc[b] += a x[b] of 16 x 8 entries and the lane's Fours of vectors.
  template <WarpContext Block>
  FF_HD static void multiply(const Block& block, const float (&a)[4], const float lift,
                             const Four<float> (&x)[kPanel], float (&acc)[kPanel][4]) {
    float high[4], low[4], sum[kPanel][4];
    FF_UNROLL
    for (int k = 0; k < 4; ++k) split(a[k] * lift, high[k], low[k]);
    FF_UNROLL
    for (int b = 0; b < kPanel; ++b) {
      FF_UNROLL
      for (int k = 0; k < 4; ++k) sum[b][k] = 0;
      block.mma(sum[b], low, {x[b].v[0], x[b].v[1]});
    }
    FF_UNROLL
    for (int b = 0; b < kPanel; ++b) block.mma(sum[b], high, {x[b].v[2], x[b].v[3]});
    FF_UNROLL
    for (int b = 0; b < kPanel; ++b) block.mma(sum[b], high, {x[b].v[0], x[b].v[1]});
    FF_UNROLL
    for (int b = 0; b < kPanel; ++b) {
      FF_UNROLL
      for (int k = 0; k < 4; ++k) acc[b][k] += sum[b][k];
    }
  }

  // The lane's part of the vectors from a row on, and of those k rows further.
  FF_HD static const float* panel_at(const Place& place, const float* panel, int row) {
    return panel + row * Width * 2 + (place.g * 4 + place.t) * 4;
  }
  FF_HD static void read(const float* panel, int k, Four<float> (&x)[kPanel]) {
    FF_UNROLL
    for (int b = 0; b < kPanel; ++b) x[b] = four_at(panel + k * Width * 2 + b * 128);
  }

  // acc[m] += the patch's rows 16 m ... times the vectors of its columns.
  template <WarpContext Block>
  FF_HD static void along_rows(const Block& block, const Place& place, const float* tile,
                               const float* right, float lift, float (&acc)[2][kPanel][4]) {
    const float* const base = tile + (place.row + place.g) * kCols + place.col + 2 * place.t;
    const int shift = shift_of(place.g);  // of row + 8 as well
    const float* const panel = panel_at(place, right, place.col);
#if defined(__CUDA_ARCH__)
#pragma unroll(kUnroll)
#endif
    for (int k = 0; k < 32; k += 8) {
      Four<float> x[kPanel];
      read(panel, k, x);
      FF_UNROLL
      for (int m = 0; m < 2; ++m) {
        Two a[2];
        FF_UNROLL
        for (int h = 0; h < 2; ++h) {
          const float* const from = base + (m * 16 + h * 8) * kCols + (k ^ shift);
          a[h] = *reinterpret_cast<const Two*>(from);
        }
        multiply(block, {a[0].v[0], a[1].v[0], a[0].v[1], a[1].v[1]}, lift, x, acc[m]);
      }
    }
  }

  // acc[m] += the patch's columns 4 g + 2 m (+ 1) times the vectors of its rows: the columns of a
  // product are those that a lane reads at once.
  template <WarpContext Block>
  FF_HD static void along_cols(const Block& block, const Place& place, const float* tile,
                               const float* left, float lift, float (&acc)[2][kPanel][4]) {
    const float* const panel = panel_at(place, left, place.row);
    const float* base[2];
    FF_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int row = 2 * place.t + h;
      base[h] = tile + at(place.row + row, place.col + 4 * place.g);
    }
#if defined(__CUDA_ARCH__)
#pragma unroll(kUnroll)
#endif
    for (int k = 0; k < 32; k += 8) {
      Four<float> x[kPanel], a[2];
      read(panel, k, x);
      FF_UNROLL
      for (int h = 0; h < 2; ++h) a[h] = four_at(base[h] + k * kCols);
      FF_UNROLL
      for (int m = 0; m < 2; ++m) {
        multiply(block, {a[0].v[2 * m], a[0].v[2 * m + 1], a[1].v[2 * m], a[1].v[2 * m + 1]}, lift,
                 x, acc[m]);
      }
    }
  }

  // Sums of the warp's columns as [row of warps, vector, column].
  FF_HD static void keep_cols(const Place& place, float* to, const float (&acc)[2][kPanel][4]) {
    FF_UNROLL
    for (int b = 0; b < kPanel; ++b) {
      FF_UNROLL
      for (int v = 0; v < 2; ++v) {
        Four<float> sums;
        FF_UNROLL
        for (int c = 0; c < 4; ++c) sums.v[c] = acc[c / 2][b][c % 2 * 2 + v];
        const int vector = place.row / 32 * Width + b * 8 + 2 * place.t + v;
        *reinterpret_cast<Four<float>*>(to + vector * kCols + place.col + 4 * place.g) = sums;
      }
    }
  }

  // Sums of the warp's rows as [column of warps, vector, row of the strip].
  FF_HD static void keep_rows(const Place& place, float* to,
                              const float (&acc)[Parts][2][kPanel][4]) {
    FF_UNROLL
    for (int q = 0; q < Parts * 2 * kPanel; ++q) {
      const int part = q / kPanel / 2, m = q / kPanel % 2, b = q % kPanel;
      FF_UNROLL
      for (int d = 0; d < 4; ++d) {
        const int vector = place.col / 32 * Width + b * 8 + 2 * place.t + d % 2;
        to[vector * kRows + part * kPartRows + place.row + m * 16 + d / 2 * 8 + place.g] =
            acc[part][m][b][d];
      }
    }
  }

  // The sums of a tile's columns to the workspace, whose vectors are `pitch` apart.
  template <BlockContext Block>
  FF_HD static void put_cols(const Block& block, const float* from, float* to, std::int64_t pitch) {
    for (int q = block.thread() * 4; q < Width * kCols; q += kThreads * 4) {
      Four<float> sum = four_at(from + q);
      for (int w = 1; w < RowWarps; ++w) {
        const Four<float> other = four_at(from + w * Width * kCols + q);
        for (int k = 0; k < 4; ++k) sum.v[k] += other.v[k];
      }
      *reinterpret_cast<Four<float>*>(to + q / kCols * pitch + q % kCols) = sum;
    }
  }

  // Zeros for entries from `above` columns right of the diagonal on; the part's first column is
  // `shift` columns right of its first row.
  template <BlockContext Block>
  FF_HD static void clear(const Block& block, float* tile, int shift, int above) {
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
    for (int q = block.thread(); q < kPartRows * kCols; q += kThreads) {
      if (q % kCols + shift >= q / kCols + above) tile[at(q / kCols, q % kCols)] = 0;
    }
    block.sync();
  }

  template <WarpContext Block>
  FF_HD static void copy_panel(const Block& block, float* to, const float* from, int rows) {
    for (int q = block.thread() * 4; q < rows * Width * 2; q += kThreads * 4)
      block.template copy<16>(to + q, from + q, true);
  }

  // The part of a tile at (row, col) to a buffer; closes a group of copies.
  template <WarpContext Block>
  FF_HD static void fetch(const Block& block, float* tile, const SymmProblem& problem,
                          const float* a, std::int64_t row, std::int64_t col) {
    const std::int64_t down = problem.n - row, across = problem.n - col;
    const float* const from = a + row * problem.row_stride + col * problem.col_stride;
    if (problem.aligned && across >= kCols) {
      constexpr int kHop = kThreads * 4 / kCols;
      static_assert(kThreads * 4 % kCols == 0 && kPartRows % kHop == 0);
      const int c = block.thread() * 4 % kCols, first = block.thread() * 4 / kCols;
      const float* next = from + first * problem.row_stride + c;
      const std::int64_t hop = kHop * problem.row_stride;
      if (down >= kPartRows) {
        FF_UNROLL
        for (int r = first, m = 0; m < kPartRows / kHop; ++m, r += kHop, next += hop)
          block.template copy<16>(tile + at(r, c), next, true);
      } else {
        FF_UNROLL
        for (int r = first, m = 0; m < kPartRows / kHop; ++m, r += kHop, next += hop)
          block.template copy<16>(tile + at(r, c), r < down ? next : a, r < down);
      }
    } else {
      constexpr int kHop = kThreads / kCols;
      static_assert(kThreads % kCols == 0 && kPartRows % kHop == 0);
      const int c = block.thread() % kCols, first = block.thread() / kCols;
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
      for (int r = first; r < kPartRows; r += kHop) {
        const bool inside = r < down && c < across;
        block.template copy<4>(tile + at(r, c),
                               inside ? from + r * problem.row_stride + c * problem.col_stride : a,
                               inside);
      }
    }
    block.commit();
  }
};

}  // namespace fastfisher::cuda
