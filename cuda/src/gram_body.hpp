// SPDX-License-Identifier: Apache-2.0
//
// Kernel body of the Gram, see gram.cu; plain C++ over a WarpContext. What is summed into an entry,
// and in which order, depends on neither the launch nor the other rows.
#pragma once

#include "tile_body.hpp"

#include <cmath>
#include <cstdint>

namespace fastfisher::cuda {

// Where a layer's inner products of inputs, which scale those of its cotangents, come from.
enum class Inner : int {
  none,      // an explicit Jacobian
  computed,  // as another product of the tile: its rows are samples
  stored,    // in memory, one number a pair of samples
};

struct Layer {
  Rows a[2], g[2];  // left, right
  Inner inner = Inner::none;
  const void* stored = nullptr;   // [n,m] in the type of the products
  std::int64_t stored_first = 0;  // its first sample n
  std::int64_t stored_stride = 0;
  double fold_bias = 0;   // bias times the scales of a
  double fold_scale = 1;  // takes the scales out again
};

// Where entry (r, q) of a plane lies in the output.
struct Target {
  void* data = nullptr;
  bool wide = false;  // double, not float
  std::int64_t row_inner = 1, row_outer_stride = 0, row_inner_stride = 0;
  std::int64_t col_inner = 1, col_outer_stride = 0, col_inner_stride = 0;
  std::int64_t plane_stride = 0;
  std::int64_t offset = 0;  // of entry (0, 0)

  [[nodiscard]] FF_HD std::int64_t row(std::int64_t r) const {
    return offset + r / row_inner * row_outer_stride + r % row_inner * row_inner_stride;
  }
  [[nodiscard]] FF_HD std::int64_t col(std::int64_t q) const {
    return q / col_inner * col_outer_stride + q % col_inner * col_inner_stride;
  }
};

struct Problem {
  std::int64_t first_row = 0;  // rows before it are left out
  std::int64_t rows = 0, cols = 0, planes = 1;
  std::int64_t left_outputs = 1, right_outputs = 1;  // rows that share a sample
  int layers = 0;
  bool layer_planes = false;  // plane l is layer l alone
  bool few = false;           // at most kFewLayers layers a plane, no fold_scale
  bool square = false;        // only on and below the diagonal, mirrored
  bool mirror = true;         // false: leave the upper half as it is
  bool accumulate = false;    // add to what the output holds
  Target target;
};

// Few layers that are not scaled are added up in registers of the type of the products, which costs
// half a rounding a layer; others in float64 and in memory.
inline constexpr int kFewLayers = 4;

// Tiles of a problem, their products by `Product`. Scratch of one block: a double and a T for every
// entry of its tile. Few: see Problem.
template <class Product, bool Few>
struct GramTile {
  using T = typename Product::T;
  using Sums = typename Product::Sums;
  static constexpr int kThreads = Product::kThreads;
  static constexpr int kEdge = Product::kEdge, kEntries = Product::kEntries;
  static constexpr std::int64_t kSlotBytes =
      std::int64_t{kEdge} * kEdge * (sizeof(double) + sizeof(T));

  struct Shared {
    std::int64_t left_rows[kEdge], right_rows[kEdge];  // offsets of the factors' rows
    std::int64_t put_row[kEdge], put_col[kEdge];       // of the output's
    std::int64_t mirror_row[kEdge], mirror_col[kEdge];
    int sample_row[kEdge], sample_col[kEdge];  // from the tile's first sample
  };

  // Tile rows of the problem: the first may begin before first_row.
  FF_HD static std::int64_t top(const Problem& p) { return p.first_row / kEdge; }
  FF_HD static std::int64_t down(const Problem& p) { return (p.rows + kEdge - 1) / kEdge; }
  FF_HD static std::int64_t across(const Problem& p) { return (p.cols + kEdge - 1) / kEdge; }
  FF_HD static std::int64_t triangle(std::int64_t n) { return n * (n + 1) / 2; }

  FF_HD static std::int64_t plane_tiles(const Problem& p) {
    return p.square ? triangle(down(p)) - triangle(top(p)) : (down(p) - top(p)) * across(p);
  }
  FF_HD static std::int64_t tiles_of(const Problem& p) { return p.planes * plane_tiles(p); }

  // Tile `at` of a plane. Kept together are tiles of few rows and few columns, for the cache: they
  // are counted down the columns of bands of kBand tile rows.
  static constexpr std::int64_t kBand = 8;
  FF_HD static void place(const Problem& p, std::int64_t at, std::int64_t& i, std::int64_t& j) {
    std::int64_t first = top(p), height = kBand;
    const auto limit = [&] { height = down(p) - first < kBand ? down(p) - first : kBand; };
    if (!p.square) {
      first += at / (kBand * across(p)) * kBand;
      at %= kBand * across(p);
      limit();
      i = first + at % height;
      j = at / height;
      return;
    }
    // Triangular numbers; the root may be off by one on either side.
    const std::int64_t absolute = at + triangle(first);
    auto row =
        static_cast<std::int64_t>((std::sqrt(8.0 * static_cast<double>(absolute) + 1) - 1) / 2);
    while (triangle(row) > absolute) --row;
    while (triangle(row + 1) <= absolute) ++row;
    first += (row - first) / kBand * kBand;
    limit();
    at = absolute - triangle(first);
    if (at < height * (first + 1)) {  // columns that all rows of the band reach
      i = first + at % height;
      j = at / height;
      return;
    }
    at -= height * (first + 1);
    std::int64_t below = 1;  // the triangle behind them, row by row
    while (triangle(below) <= at) ++below;
    i = first + below;
    j = first + 1 + at - triangle(below - 1);
  }

  // `slot`: scratch of this block; unused when each plane has one layer and no inner product is
  // computed.
  template <WarpContext Block>
  FF_HD static void run(const Block& block, Shared& shared, Product& product,
                        const Problem& problem, const Layer* layers, std::byte* slots,
                        std::uint64_t* overflow) {
    const std::int64_t tiles = tiles_of(problem), a_plane = plane_tiles(problem);
    std::byte* const slot = slots + block.index() * kSlotBytes;
    for (std::int64_t index = block.index(); index < tiles; index += block.blocks()) {
      std::int64_t i = 0, j = 0;
      place(problem, index % a_plane, i, j);
      tile(block, shared, product, problem, layers, slot, overflow, index / a_plane, i * kEdge,
           j * kEdge);
    }
  }

  // use(sides, tile row, tile column, plane) of every product that run() makes, in its order.
  template <BlockContext Block, class Use>
  FF_HD static void each_product(const Block& block, const Problem& problem, const Layer* layers,
                                 const Use& use) {
    const std::int64_t tiles = tiles_of(problem), a_plane = plane_tiles(problem);
    for (std::int64_t index = block.index(); index < tiles; index += block.blocks()) {
      std::int64_t i = 0, j = 0;
      place(problem, index % a_plane, i, j);
      const std::int64_t plane = index / a_plane;
      const int first = first_layer(problem, plane), last = last_layer(problem, plane);
      for (int layer = first; layer < last; ++layer) {
        if (layers[layer].inner == Inner::computed) use(layers[layer].a, i, j, 0);
        use(layers[layer].g, i, j, problem.layer_planes ? 0 : plane);
      }
    }
  }

 private:
  FF_HD static int first_layer(const Problem& problem, std::int64_t plane) {
    return problem.layer_planes ? static_cast<int>(plane) : 0;
  }
  FF_HD static int last_layer(const Problem& problem, std::int64_t plane) {
    return problem.layer_planes ? static_cast<int>(plane) + 1 : problem.layers;
  }

  FF_HD static int at_most_edge(std::int64_t count) {
    return count < kEdge ? static_cast<int>(count) : kEdge;
  }

  template <WarpContext Block>
  FF_HD static void tile(const Block& block, Shared& shared, Product& product,
                         const Problem& problem, const Layer* layers, std::byte* slot,
                         std::uint64_t* overflow, std::int64_t plane, std::int64_t row,
                         std::int64_t col) {
    const int rows = at_most_edge(problem.rows - row), cols = at_most_edge(problem.cols - col);
    const std::int64_t n = row / problem.left_outputs, m = col / problem.right_outputs;
    block.sync();  // the tile before has been stored
    for (int r = block.thread(); r < kEdge; r += kThreads) {
      const Target& target = problem.target;
      // Beyond the edge of the output any place will do: those entries are not stored.
      const std::int64_t y = row + (r < rows ? r : 0), x = col + (r < cols ? r : 0);
      shared.put_row[r] = target.row(y);
      shared.put_col[r] = target.col(x);
      if (problem.square) {
        shared.mirror_row[r] = target.row(x);
        shared.mirror_col[r] = target.col(y);
      }
      shared.sample_row[r] = static_cast<int>(y / problem.left_outputs - n);
      shared.sample_col[r] = static_cast<int>(x / problem.right_outputs - m);
    }
    if constexpr (Product::kPanels) block.sync();  // other products have a barrier of their own

    const int first = first_layer(problem, plane), last = last_layer(problem, plane);
    Scratch scratch = {reinterpret_cast<double*>(slot) + block.thread(),
                       reinterpret_cast<T*>(slot + std::int64_t{kEdge} * kEdge * 8) +
                           block.thread()};
    Sums sums;
    Kept kept = {};
    for (int index = first; index < last; ++index) {
      const Layer& layer = layers[index];
      if (layer.inner == Inner::computed) {
        multiply(block, shared, product, layer.a, row, rows, col, cols, 0, sums);
        FF_UNROLL
        for (int x = 0; x < kEntries; ++x) scratch.inners[at(x)] = Product::entry(sums, x);
      }
      const std::int64_t planes = problem.layer_planes ? 0 : plane;
      multiply(block, shared, product, layer.g, row, rows, col, cols, planes, sums);
      if (layer.inner == Inner::none) {
        add(layer, index == first, sums, scratch, kept, [](int) { return T(1); });
      } else if (layer.inner == Inner::computed) {
        add(layer, index == first, sums, scratch, kept,
            [&](int x) { return scratch.inners[at(x)]; });
      } else {
        const auto* stored = static_cast<const T*>(layer.stored) +
                             (n - layer.stored_first) * layer.stored_stride + m;
        const auto stride = static_cast<int>(layer.stored_stride);
        add(layer, index == first, sums, scratch, kept, [&](int x) {
          return stored[std::int64_t{shared.sample_row[Product::row_of(block.thread(), x)]} *
                            stride +
                        shared.sample_col[Product::col_of(block.thread(), x)]];
        });
      }
    }
    const auto total = [&](int x) {
      if constexpr (Few) {
        return kept[x];
      } else {
        return scratch.totals[at(x)];
      }
    };
    if (problem.target.wide) {
      store<double>(block, shared, problem, plane, row, rows, col, cols, total, overflow);
    } else {
      store<float>(block, shared, problem, plane, row, rows, col, cols, total, overflow);
    }
  }

  // A few entries at a time: what is read of them is asked for before anything is written.
  static constexpr int kSome = kEntries < 8 ? kEntries : 8;
  using Kept = T[Few ? kEntries : 1];
  struct Scratch {
    double* totals;
    T* inners;
  };

  // Adds a layer to the totals; `inner(x)` is the product of the inputs.
  template <class Read>
  FF_HD static void add(const Layer& layer, [[maybe_unused]] bool opens, const Sums& sums,
                        [[maybe_unused]] const Scratch& scratch, [[maybe_unused]] Kept& kept,
                        const Read& inner) {
    FF_UNROLL
    for (int begin = 0; begin < kEntries; begin += kSome) {
      T factor[kSome];
      FF_UNROLL
      for (int e = 0; e < kSome; ++e) factor[e] = inner(begin + e);
      if constexpr (Few) {
        const auto bias = static_cast<T>(layer.fold_bias);
        FF_UNROLL
        for (int e = 0; e < kSome; ++e)
          kept[begin + e] += (factor[e] + bias) * Product::entry(sums, begin + e);
      } else {
        double before[kSome];
        FF_UNROLL
        for (int e = 0; e < kSome; ++e) before[e] = opens ? 0 : scratch.totals[at(begin + e)];
        FF_UNROLL
        for (int e = 0; e < kSome; ++e) {
          const double value = (static_cast<double>(factor[e]) + layer.fold_bias) *
                               static_cast<double>(Product::entry(sums, begin + e));
          scratch.totals[at(begin + e)] = value * layer.fold_scale + before[e];
        }
      }
    }
  }

  // Neighbouring threads, neighbouring places.
  FF_HD static std::int64_t at(int x) { return static_cast<std::int64_t>(x) * kThreads; }

  template <WarpContext Block>
  FF_HD static void multiply(const Block& block, Shared& shared, Product& product,
                             const Rows (&sides)[2], std::int64_t row, int rows, std::int64_t col,
                             int cols, std::int64_t plane, Sums& sums) {
    if constexpr (Product::kPanels) {
      product.run(block, sides, row / kEdge, col / kEdge, plane, sums);
    } else {
      block.sync();  // the product before has been read
      for (int r = block.thread(); r < kEdge; r += kThreads) {
        if (r < rows) shared.left_rows[r] = sides[0].row(row + r) + plane * sides[0].plane_stride;
        if (r < cols) shared.right_rows[r] = sides[1].row(col + r) + plane * sides[1].plane_stride;
      }
      block.sync();
      product.run(block, {&sides[0], shared.left_rows, rows}, {&sides[1], shared.right_rows, cols},
                  sums);
    }
  }

  // The tile, and when square the mirror image of what is below the diagonal.
  template <class S, WarpContext Block, class Total>
  FF_HD static void store(const Block& block, const Shared& shared, const Problem& problem,
                          std::int64_t plane, std::int64_t row, int rows, std::int64_t col,
                          int cols, const Total& total, std::uint64_t* overflow) {
    S* const out = static_cast<S*>(problem.target.data) + plane * problem.target.plane_stride;
    const bool mirrored = problem.square && problem.mirror;
    // All of the tile is wanted, and none of it is its own mirror image.
    const bool whole = rows == kEdge && cols == kEdge && row >= problem.first_row &&
                       !(problem.square && col + kEdge > row);
    bool bad = false;
    FF_UNROLL
    for (int begin = 0; begin < kEntries; begin += kSome) {
      double before[kSome] = {};
      if (problem.accumulate) {
        FF_UNROLL
        for (int e = 0; e < kSome; ++e) {
          // Every place is one of the output, wanted or not.
          before[e] =
              static_cast<double>(out[shared.put_row[Product::row_of(block.thread(), begin + e)] +
                                      shared.put_col[Product::col_of(block.thread(), begin + e)]]);
        }
      }
      FF_UNROLL
      for (int e = 0; e < kSome; ++e) {
        const int y = Product::row_of(block.thread(), begin + e);
        const int x = Product::col_of(block.thread(), begin + e);
        const std::int64_t r = row + y, q = col + x;
        const bool wanted =
            whole || (y < rows && x < cols && r >= problem.first_row && !(problem.square && q > r));
        if (!wanted) continue;
        const auto value =
            static_cast<S>(problem.accumulate ? static_cast<double>(total(begin + e)) + before[e]
                                              : static_cast<double>(total(begin + e)));
        bad = bad || !(std::abs(value) <= kLargest<S>);
        out[shared.put_row[y] + shared.put_col[x]] = value;
        if (mirrored && q < r) out[shared.mirror_row[x] + shared.mirror_col[y]] = value;
      }
    }
    if (bad) block.atomic_max(overflow, 1);
  }
};

}  // namespace fastfisher::cuda
