// SPDX-License-Identifier: Apache-2.0
//
// The Gram of a device on the host: what gram.cpp does, with the bodies of its kernels on blocks of
// std::threads and host memory for the device's.
#pragma once

#include "draw.hpp"
#include "gram_problem.hpp"
#include "host_block.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

namespace fastfisher::test {

using cuda::ScanFound;

// One warp, and four that share a tile.
template <class Steps>
using OneWarp = cuda::TileProduct<Steps, 1, 1, 1, 2>;
template <class Steps>
using FourWarps = cuda::TileProduct<Steps, 2, 2, 1, 2>;

/// Products of packed rows, one thread an entry: what Hopper's own does, without its tensor cores.
struct PanelProduct {
  using T = float;
  using Panel = cuda::Panels<16>;
  static constexpr bool kPanels = true;
  static constexpr int kThreads = 32, kEdge = 16, kEntries = 8;
  static constexpr int kStageBytes = 16;
  using Sums = float[kEntries];
  float* ring;
  int stages;

  static int row_of(int thread, int x) { return thread / 2 + 0 * x; }
  static int col_of(int thread, int x) { return thread % 2 * 8 + x; }
  static float entry(const Sums& sums, int x) { return sums[x]; }

  void run(const HostBlock& block, const cuda::Rows (&sides)[2], std::int64_t i, std::int64_t j,
           std::int64_t plane, Sums& sums) const {
    const auto term = [](const std::byte* panel, int which, int r, int k) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, panel + which * Panel::kTermBytes + Panel::offset(r, k), sizeof bits);
      return cuda::widen(BFloat16{bits});
    };
    for (int x = 0; x < kEntries; ++x) {
      sums[x] = 0;
      const int r = row_of(block.thread(), x), q = col_of(block.thread(), x);
      for (std::int64_t chunk = 0; chunk < Panel::chunks(sides[0].depth); ++chunk) {
        const std::byte* a = Panel::at(sides[0], plane, i) + chunk * Panel::kBytes;
        const std::byte* b = Panel::at(sides[1], plane, j) + chunk * Panel::kBytes;
        float part = 0;
        for (int p = 0; p < cuda::kProducts; ++p) {
          for (int k = 0; k < Panel::kDepth; ++k)
            part += term(a, cuda::term_pair(p).x, r, k) * term(b, cuda::term_pair(p).y, q, k);
        }
        sums[x] += part;
      }
    }
  }
};

// Rows of all layers to panels, as gram.cpp has it.
inline void pack_all(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
                     GramOutputs outputs, std::vector<cuda::Layer>& layers,
                     std::vector<std::vector<cuda::Words>>& memory) {
  for (std::size_t k = 0; k < layers.size(); ++k) {
    for (std::size_t side = 0; side < (right.empty() ? 1U : 2U); ++side) {
      for (auto& problem : cuda::pack_problems(side == 0 ? left[k] : right[k], outputs)) {
        cuda::Rows& rows = problem.inputs ? layers[k].a[side] : layers[k].g[side];
        problem.rows = rows;
        const std::int64_t bytes = cuda::panels_bytes<16>(problem);
        memory.emplace_back(static_cast<std::size_t>(bytes / 16));
        problem.out = reinterpret_cast<std::byte*>(memory.back().data());
        using Pack = cuda::Pack<16>;
        launch<Pack>(2, [&](const HostBlock& block, Pack::Shared&) { Pack::run(block, problem); });
        rows.panels = problem.out;
        rows.panels_stride = bytes / problem.planes;
      }
    }
    if (!right.empty()) continue;
    layers[k].a[1] = layers[k].a[0];
    layers[k].g[1] = layers[k].g[0];
  }
}

template <class Product, bool Few>
void launch_some(const cuda::Problem& problem, const std::vector<cuda::Layer>& layers,
                 std::int64_t blocks, std::uint64_t* overflow) {
  using Tile = cuda::GramTile<Product, Few>;
  if (Tile::tiles_of(problem) == 0) return;
  const int stages = static_cast<int>(draw(2, 4));
  std::vector<std::byte> slots(static_cast<std::size_t>(blocks * Tile::kSlotBytes));
  std::vector<cuda::Words> ring(static_cast<std::size_t>(stages * Product::kStageBytes / 16));
  launch<Tile>(blocks, [&](const HostBlock& block, typename Tile::Shared& shared) {
    Product product{reinterpret_cast<typename Product::T*>(ring.data()), stages};
    Tile::run(block, shared, product, problem, layers.data(), slots.data(), overflow);
  });
}

template <class Product>
void launch_tiles(const cuda::Problem& problem, const std::vector<cuda::Layer>& layers,
                  std::int64_t blocks, std::uint64_t* overflow) {
  const bool few = cuda::is_few(problem, layers);
  (few ? launch_some<Product, true> : launch_some<Product, false>)(problem, layers, blocks,
                                                                   overflow);
}

// What gram.cpp does, with host memory for the device's.
template <class S, class Product>
GramReport run(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
               GramOutputs outputs, const ArrayRef& out, std::int64_t blocks) {
  using Scan = cuda::Scan<S, 4>;
  using T = typename Product::T;
  constexpr bool kWide = sizeof(T) == 8;
  const std::vector<cuda::ScanArgument> arguments = cuda::scan_arguments(left, right);
  std::vector<ScanFound> found(arguments.size());
  for (std::size_t k = 0; k < found.size(); ++k) {
    const cuda::ScanInput input = cuda::scan_input(arguments[k].array);
    launch<Scan>(2, [&](const HostBlock& block, typename Scan::Shared& shared) {
      Scan::run(block, shared, input, &found[k]);
    });
  }
  GramReport report = cuda::report_of(arguments, found);
  if (report.kind != GramReport::Kind::ok || out.size() == 0) return report;
  const auto magnitudes = cuda::magnitudes_of(arguments, found, left);
  std::vector<cuda::Layer> layers;
  for (std::size_t k = 0; k < left.size(); ++k) {
    const bool square = right.empty();
    layers.push_back(cuda::layer_of(
        left[k], square ? left[k] : right[k], cuda::exponents_of(magnitudes[k], kWide),
        cuda::exponents_of(magnitudes[square ? k : left.size() + k], kWide), outputs, kWide));
  }
  std::vector<std::vector<cuda::Words>> panels;
  if constexpr (Product::kPanels) pack_all(left, right, outputs, layers, panels);
  cuda::Problem problem = cuda::problem_of(left, right, outputs, out);
  problem.layers = static_cast<int>(layers.size());
  std::uint64_t overflow = 0;
  if (!cuda::stores_inner(problem)) {
    launch_tiles<Product>(problem, layers, blocks, &overflow);
  } else {
    const std::int64_t samples = problem.rows / problem.left_outputs;
    const std::int64_t others = problem.cols / problem.right_outputs;
    const std::int64_t most = cuda::GramTile<Product, true>::kEdge * blocks;
    for (std::int64_t from = 0; from < samples; from += most) {
      const std::int64_t to = std::min(from + most, samples);
      std::vector<T> stored(static_cast<std::size_t>((to - from) * others) * layers.size(),
                            std::numeric_limits<T>::quiet_NaN());
      const cuda::Strip strip = {reinterpret_cast<std::byte*>(stored.data()), kWide, from, to,
                                 others};
      const cuda::InnerProducts inner = cuda::store_inner(problem, strip, layers);
      launch_tiles<Product>(inner.problem, inner.layers, blocks, &overflow);
      launch_tiles<Product>(cuda::rows_of(problem, strip), layers, blocks, &overflow);
    }
  }
  if (overflow != 0) report.kind = GramReport::Kind::overflow;
  return report;
}

}  // namespace fastfisher::test
