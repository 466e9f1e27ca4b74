// SPDX-License-Identifier: Apache-2.0
//
// Kernel body of the matrix product, see product_problem.hpp: plain multiply-adds in registers, in
// the order of the depths within one share of them; ProductSum adds the shares in their order.
// Plain C++ over a PipelinedBlock, see product.cu for the launch.
#pragma once

#include "product_load.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace fastfisher::cuda {

// T: type of the products. A block of Lanes^2 threads owns tiles of Edge^2 entries, (Edge/Lanes)^2
// of them a thread, and works on Depth depths while those of the next Stages - 1 are on their way.
template <class T, int Edge, int Depth, int Lanes, int Stages = 3>
struct ProductTile {
  static constexpr int kEdge = Edge;
  static constexpr int kThreads = Lanes * Lanes;
  static constexpr int kMicro = Edge / Lanes;
  static constexpr int kVector = kMicro % 4 == 0 ? 4 : 1;  // entries of a row that lie together
  static_assert(kThreads >= Edge && Edge % Lanes == 0);    // a thread adds up one row

  using Load = ProductLoad<T, Edge, Depth, kThreads>;
  static constexpr int kPitch = Load::kPitch;
  static constexpr int kChunk = Lanes * kVector;  // edge of what is stored at once

  struct Operands {
    alignas(16) T left[Stages][Depth][kPitch];
    alignas(16) T right[Stages][Depth][kPitch];
  };
  // What the block works on; kept here and not in registers, of which the sums take most.
  struct Tile {
    std::int64_t b, split, row, col, from, depth;
    int rows, cols, steps;
  };
  struct Shared {
    union {
      Operands operands;
      T chunk[kChunk][kChunk + 1];  // once the operands are used up
    };
    typename Load::template Places<Edge> left_rows, right_rows;
    typename Load::template Places<Depth> left_depth[2], right_depth[2];
    std::int64_t out_rows[Edge], out_cols[Edge], add_rows[Edge], add_cols[Edge];
    Product<T> product;
    Tile tile;

    Shared() {}  // NOLINT: as it comes from the device
  };

  FF_HD static std::int64_t tiles_of(const Product<T>& p) {
    const std::int64_t down = rows_of(p), across = cols_of(p);
    return p.batches * p.splits * (p.square ? down * (down + 1) / 2 : down * across);
  }

  // Tile `index` of the product, which is copied to `shared` first.
  template <PipelinedBlock Block>
  FF_HD static void run(const Block& block, Shared& shared, const Product<T>& given,
                        std::int64_t index) {
    block.sync();  // whoever reads the product before
    constexpr int kWords = sizeof(Product<T>) / sizeof(std::uint32_t);
    static_assert(sizeof(Product<T>) % sizeof(std::uint32_t) == 0);
    const auto* from = reinterpret_cast<const unsigned char*>(&given);
    auto* to = reinterpret_cast<unsigned char*>(&shared.product);
    for (int word = block.thread(); word < kWords; word += kThreads)
      std::memcpy(to + 4 * word, from + 4 * word, 4);
    block.sync();
    const Product<T>& p = shared.product;
    const std::int64_t down = rows_of(p), across = cols_of(p);
    const std::int64_t each = p.square ? down * (down + 1) / 2 : down * across;
    const std::int64_t at = index % each, split = index / each % p.splits;
    const std::int64_t b = index / each / p.splits;
    std::int64_t i = 0, j = 0;
    if (p.square) {
      // Triangular numbers, by a root that may be off by one.
      i = static_cast<std::int64_t>((std::sqrt(8.0 * static_cast<double>(at) + 1) - 1) / 2);
      while (i * (i + 1) / 2 > at) --i;
      while ((i + 1) * (i + 2) / 2 <= at) ++i;
      j = at - i * (i + 1) / 2;
    } else {
      // Eight rows of tiles at a time: tiles that run together share their operands.
      const std::int64_t band = at / (8 * across), rest = at % (8 * across);
      const std::int64_t height = down - 8 * band < 8 ? down - 8 * band : 8;
      i = 8 * band + rest % height;
      j = rest / height;
    }
    tile(block, shared, b, split, i * Edge, j * Edge);
  }

 private:
  // Tiles one below the other: at least one where there is a corner to be written.
  FF_HD static std::int64_t rows_of(const Product<T>& p) {
    const std::int64_t down = (p.rows + Edge - 1) / Edge;
    return down == 0 && p.sums_corner != nullptr ? 1 : down;
  }
  // Tiles side by side: at least one where the sums of rows are wanted.
  FF_HD static std::int64_t cols_of(const Product<T>& p) {
    const std::int64_t across = (p.cols + Edge - 1) / Edge;
    return across == 0 && p.sums != nullptr ? 1 : across;
  }
  FF_HD static int part(std::int64_t count) {
    return count < 0 ? 0 : count < Edge ? static_cast<int>(count) : Edge;
  }
  // Rows and columns of a thread; those of a warp form a patch of 4 x 8 threads, which read few
  // different words at once.
  FF_HD static int row_lane(int thread) {
    if constexpr (Lanes % 8 == 0) {
      const int warp = thread / 32, lane = thread % 32;
      return warp / (Lanes / 8) * 4 + lane / 8;
    } else {
      return thread / Lanes;
    }
  }
  FF_HD static int col_lane(int thread) {
    if constexpr (Lanes % 8 == 0) {
      const int warp = thread / 32, lane = thread % 32;
      return warp % (Lanes / 8) * 8 + lane % 8;
    } else {
      return thread % Lanes;
    }
  }
  // Entry u of a thread's rows: kVector together, one group each stretch of Lanes * kVector.
  FF_HD static int place(int lane, int u) {
    return u / kVector * (Lanes * kVector) + lane * kVector + u % kVector;
  }

  template <PipelinedBlock Block>
  FF_HD static void tile(const Block& block, Shared& shared, std::int64_t b, std::int64_t split,
                         std::int64_t row, std::int64_t col) {
    const Product<T>& p = shared.product;
    if (block.thread() == 0) {
      Tile& t = shared.tile;
      t.b = b;
      t.split = split;
      t.row = row;
      t.col = col;
      t.rows = part(p.rows - row);
      t.cols = part(p.cols - col);
      t.from = split * p.split_depth;
      const std::int64_t rest = p.depth - t.from;
      t.depth = rest < p.split_depth ? rest : p.split_depth;
      t.steps = t.depth > 0 ? static_cast<int>((t.depth + Depth - 1) / Depth) : 0;
    }
    block.sync();
    locate(block, shared);
    for (int step = 0; step < 2; ++step) depths(block, shared, step);
    block.sync();
    const int steps = shared.tile.steps;
    for (int step = 0; step < Stages - 1; ++step) {
      if (step < steps) fetch(block, shared, step, step % Stages);
      block.commit();
      block.sync();  // the depths of this step have been read
      depths(block, shared, step + 2);
    }

    T sums[kMicro][kMicro];
    FF_UNROLL
    for (int u = 0; u < kMicro; ++u) {
      FF_UNROLL
      for (int v = 0; v < kMicro; ++v) sums[u][v] = 0;
    }
    T of_row = 0;
    const bool wants_sums = p.sums != nullptr && shared.tile.col == 0 && block.thread() < Edge;
    const int top = row_lane(block.thread()), side = col_lane(block.thread());
    int stage = 0;
    for (int step = 0; step < steps; ++step) {
      block.template wait<Stages - 2>();
      block.sync();
      if (step + Stages - 1 < steps) {
        fetch(block, shared, step + Stages - 1, stage == 0 ? Stages - 1 : stage - 1);
        depths(block, shared, step + Stages);
      }
      block.commit();
      multiply(shared.operands.left[stage], shared.operands.right[stage], top, side, sums);
      if (wants_sums) {
        for (int k = 0; k < Depth; ++k) of_row += shared.operands.left[stage][k][block.thread()];
      }
      stage = stage + 1 == Stages ? 0 : stage + 1;
    }
    block.template wait<0>();
    block.sync();
    store(block, shared, sums, of_row, wants_sums);
  }

  // Where the rows of both operands lie. Beyond the last one the first will do: those sums are not
  // stored.
  template <PipelinedBlock Block>
  FF_HD static void locate(const Block& block, Shared& shared) {
    const Product<T>& p = shared.product;
    const Tile& t = shared.tile;
    for (int e = block.thread(); e < 2 * Edge; e += kThreads) {
      const int r = e % Edge;
      if (e < Edge && t.rows > 0) {
        shared.left_rows.put(r, p.left.rows.cell(t.row + (r < t.rows ? r : 0)),
                             Load::base_of(p.left, p.batch_offset(p.left.batch, t.b)),
                             Load::size_of(p.left));
      } else if (e >= Edge && t.cols > 0) {
        shared.right_rows.put(r, p.right.rows.cell(t.col + (r < t.cols ? r : 0)),
                              Load::base_of(p.right, p.batch_offset(p.right.batch, t.b)),
                              Load::size_of(p.right));
      }
    }
  }

  FF_HD static void multiply(const T (&left)[Depth][kPitch], const T (&right)[Depth][kPitch],
                             int top, int side, T (&sums)[kMicro][kMicro]) {
    FF_UNROLL
    for (int k = 0; k < Depth; ++k) {
      T x[kMicro], y[kMicro];
      FF_UNROLL
      for (int u = 0; u < kMicro; ++u) {
        x[u] = left[k][place(top, u)];
        y[u] = right[k][place(side, u)];
      }
      FF_UNROLL
      for (int u = 0; u < kMicro; ++u) {
        FF_UNROLL
        for (int v = 0; v < kMicro; ++v) sums[u][v] += x[u] * y[v];
      }
    }
  }

  // What the depths of one step add to a row's address.
  template <PipelinedBlock Block>
  FF_HD static void depths(const Block& block, Shared& shared, int step) {
    const Product<T>& p = shared.product;
    const std::int64_t first = std::int64_t{step} * Depth;
    for (int e = block.thread_again(); e < 2 * Depth; e += kThreads) {
      const std::int64_t k = first + e % Depth;
      if (k >= shared.tile.depth) continue;
      if (e < Depth) {
        shared.left_depth[step % 2].put(e, p.left.depth.cell(shared.tile.from + k), 0,
                                        Load::size_of(p.left));
      } else {
        shared.right_depth[step % 2].put(e - Depth, p.right.depth.cell(shared.tile.from + k), 0,
                                         Load::size_of(p.right));
      }
    }
  }

  template <PipelinedBlock Block>
  FF_HD static void fetch(const Block& block, Shared& shared, int step, int stage) {
    const Product<T>& p = shared.product;
    const std::int64_t rest = shared.tile.depth - std::int64_t{step} * Depth;
    const int depths = rest < Depth ? static_cast<int>(rest) : Depth;
    if (shared.tile.rows > 0) {
      Load::template load<false>(block, p.left, shared.left_rows, shared.left_depth[step % 2],
                                 depths, shared.operands.left[stage]);
    }
    if (shared.tile.cols == 0) return;
    if (p.right.patch) {
      Load::template load<true>(block, p.right, shared.right_rows, shared.right_depth[step % 2],
                                depths, shared.operands.right[stage]);
    } else {
      Load::template load<false>(block, p.right, shared.right_rows, shared.right_depth[step % 2],
                                 depths, shared.operands.right[stage]);
    }
  }

  template <PipelinedBlock Block>
  FF_HD static void store(const Block& block, Shared& shared, const T (&sums)[kMicro][kMicro],
                          T of_row, bool wants_sums) {
    const int thread = block.thread();
    const Product<T>& p = shared.product;
    const Tile& t = shared.tile;
    const bool shares = p.splits > 1;
    T* partial = p.partial + (t.split * p.batches + t.b) * p.rows * p.pitch();
    if (p.sums_corner != nullptr && t.split == 0 && t.row + t.col == 0 && thread == 0)
      p.put(*p.sums_corner, static_cast<T>(p.depth) * p.scale);
    if (wants_sums && thread < t.rows) {
      if (shares) {
        partial[(t.row + thread) * p.pitch() + p.cols] = of_row;
      } else {
        p.put_sum(t.b, t.row + thread, of_row);
      }
    }
    for (int r = thread; r < Edge && !shares; r += kThreads) {
      shared.out_rows[r] = p.out_row.offset(t.row + r);
      shared.out_cols[r] = p.out_col.offset(t.col + r);
      if (p.add != nullptr) {
        shared.add_rows[r] = p.add_row.offset(t.row + r);
        shared.add_cols[r] = p.add_col.offset(t.col + r);
      }
    }
    FF_UNROLL
    for (int u = 0; u < kMicro; u += kVector) {
      FF_UNROLL
      for (int v = 0; v < kMicro; v += kVector) {
        FF_UNROLL
        for (int i = 0; i < kVector; ++i) {
          FF_UNROLL
          for (int j = 0; j < kVector; ++j) {
            shared.chunk[row_lane(thread) * kVector + i][col_lane(thread) * kVector + j] =
                sums[u + i][v + j];
          }
        }
        block.sync();
        const int r = u / kVector * kChunk, q = v / kVector * kChunk;
        if (shares) {
          keep(block, shared, partial, r, q);
        } else {
          place_chunk(block, shared, r, q);
        }
        block.sync();
      }
    }
  }

  // A chunk of a share, from row r and column q of the tile.
  template <PipelinedBlock Block>
  FF_HD static void keep(const Block& block, const Shared& shared, T* partial, int r, int q) {
    const Tile& t = shared.tile;
    const std::int64_t pitch = shared.product.pitch();
    T* to = partial + (t.row + r) * pitch + t.col + q;
    for (int e = block.thread(); e < kChunk * kChunk; e += kThreads) {
      const int i = e / kChunk, j = e % kChunk;
      if (r + i < t.rows && q + j < t.cols) to[i * pitch + j] = shared.chunk[i][j];
    }
  }

  template <PipelinedBlock Block>
  FF_HD static void place_chunk(const Block& block, const Shared& shared, int r, int q) {
    const Product<T>& p = shared.product;
    const Tile& t = shared.tile;
    T* out = p.out + p.batch_offset(p.out_batch, t.b);
    const T* add = p.add == nullptr ? nullptr : p.add + p.batch_offset(p.add_batch, t.b);
    for (std::int64_t c = 0; c < p.weight_count; ++c) {
      for (int e = block.thread(); e < kChunk * kChunk; e += kThreads) {
        const int i = e / kChunk, j = e % kChunk;
        const std::int64_t row = t.row + r + i;
        if (r + i >= t.rows || q + j >= t.cols || (p.square && t.col + q + j > row)) continue;
        T value = shared.chunk[i][j] * (p.scale * p.weight(t.b, row, c));
        if (add != nullptr) value += add[shared.add_rows[r + i] + shared.add_cols[q + j]];
        p.put(out[shared.out_rows[r + i] + shared.out_cols[q + j] + c * p.out_c], value);
      }
    }
    // The mirror image, along its own rows.
    for (int e = block.thread(); p.square && e < kChunk * kChunk; e += kThreads) {
      const int i = e % kChunk, j = e / kChunk;
      const std::int64_t row = t.row + r + i, col = t.col + q + j;
      if (r + i >= t.rows || q + j >= t.cols || col >= row) continue;
      p.put(out[p.out_row.offset(col) + p.out_col.offset(row)], shared.chunk[i][j] * p.scale);
    }
  }
};

}  // namespace fastfisher::cuda
