// SPDX-License-Identifier: Apache-2.0
//
// The host's side of symm on a device: cut, workspace and strides as the kernel bodies read them.
// Plain C++, so that tests run it without a device.
#pragma once

#include "fastfisher/view.hpp"
#include "symm_body.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace fastfisher::cuda {

template <class Tile>
SymmCut symm_cut(std::int64_t n) {
  SymmCut cut;
  cut.strips = (n + Tile::kRows - 1) / Tile::kRows;
  // Long chunks where there are enough of them for a device.
  cut.group = cut.strips >= 64 ? 4 : cut.strips >= 32 ? 2 : 1;
  return cut;
}

// Offsets in the workspace, from its first multiple of kAlign on.
template <class T, class Tile>
struct SymmMemory {
  static constexpr std::int64_t kAlign = 256;
  std::int64_t by_row_at, by_col_at, bytes;

  SymmMemory(std::int64_t networks, std::int64_t n, std::int64_t vectors) {
    const SymmCut cut = symm_cut<Tile>(n);
    const std::int64_t planes =
        networks *
        std::min<std::int64_t>(Tile::kPanels, (vectors + Tile::kWidth - 1) / Tile::kWidth);
    const auto room = [planes](std::int64_t entries) {
      const auto size = static_cast<std::int64_t>(sizeof(T)) * planes * entries;
      return (size + kAlign - 1) / kAlign * kAlign;
    };
    by_row_at = room(Tile::packed_size(cut));
    by_col_at = by_row_at + room(Tile::by_row_size(cut));
    bytes = by_col_at + room(Tile::by_col_size(cut)) + kAlign;
  }
};

// The product with vectors first ... of x; `workspace` is aligned.
template <class T, class Tile>
SymmProblem symm_problem(const ArrayRef& a, const ArrayRef& x, const ArrayRef& scale,
                         const ArrayRef& out, std::int64_t first, std::byte* workspace) {
  SymmProblem problem;
  // The matrix equals its transpose: the axis of stride one runs along the rows.
  const bool turn = a.stride(1) == 1 && a.stride(2) != 1;
  problem.a = a.data;
  problem.network_stride = a.stride(0);
  problem.row_stride = a.stride(turn ? 2 : 1);
  problem.col_stride = a.stride(turn ? 1 : 2);
  const auto step = static_cast<std::int64_t>(16 / sizeof(T));
  problem.aligned = problem.col_stride == 1 && problem.row_stride % step == 0 &&
                    (a.extent(0) == 1 || problem.network_stride % step == 0) &&
                    reinterpret_cast<std::uintptr_t>(a.data) % 16 == 0;
  problem.x = static_cast<const T*>(x.data) + first * x.stride(1);
  problem.out = static_cast<T*>(out.data) + first * out.stride(1);
  for (int r = 0; r < 3; ++r) {
    problem.x_strides[r] = x.stride(r);
    problem.out_strides[r] = out.stride(r);
  }
  problem.scale = static_cast<const double*>(scale.data);
  problem.scale_stride = scale.stride(0);
  problem.n = a.extent(1);
  problem.networks = a.extent(0);
  problem.vectors = std::min<std::int64_t>(x.extent(1) - first, Tile::kPanels * Tile::kWidth);
  problem.panels = (problem.vectors + Tile::kWidth - 1) / Tile::kWidth;
  problem.cut = symm_cut<Tile>(problem.n);
  const SymmMemory<T, Tile> memory(problem.networks, problem.n, x.extent(1));
  problem.packed = workspace;
  problem.by_row = workspace + memory.by_row_at;
  problem.by_col = workspace + memory.by_col_at;
  return problem;
}

}  // namespace fastfisher::cuda
