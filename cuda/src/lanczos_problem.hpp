// SPDX-License-Identifier: Apache-2.0
//
// The launches that make a block of rows orthonormal and orthogonal to those before, in turn, as
// the kernel bodies read them. Plain C++, so that tests run it without a device.
#pragma once

#include "lanczos_turn_body.hpp"
#include "panel_steps_problem.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace fastfisher::cuda {

inline ArrayRef rows_of(const ArrayRef& basis, std::int64_t first, std::int64_t count) {
  ArrayRef rows = basis;
  rows.data = static_cast<std::byte*>(basis.data) + first * basis.stride(1) * size_of(basis.dtype);
  rows.extents[1] = count;
  return rows;
}

// What is taken out first goes to the caller's small[step]; then two sweeps of dots, turn and
// combine: what was missed is taken out, and the factor of what is left.
template <class Dots>
struct LanczosBlock {
  PanelProblem out_dots, out_combine, sweep_dots, sweep_combine;
  TurnProblem turn;

  // In float64: dots and factor of a block, parts of dots.
  static std::int64_t workspace(std::int64_t networks, std::int64_t b, std::int64_t rows,
                                std::int64_t n) {
    std::int64_t parts = 0;
    for (std::int64_t p = 0; p <= rows; ++p)
      parts = std::max(parts, p * dot_parts<Dots>(networks, p, b, n));
    return networks * b * (rows + b + parts);
  }

  LanczosBlock(const ArrayRef& basis, std::int64_t p, const ArrayRef& small, std::int64_t step,
               double* workspace) {
    const std::int64_t e = basis.extent(0), b = small.extent(2), row = p + b;
    const ArrayRef block = rows_of(basis, p, b), before = rows_of(basis, 0, p);
    ArrayRef mine = small;
    mine.rank = 3;
    mine.data = static_cast<double*>(small.data) + step * small.stride(0);
    for (int r = 0; r < 3; ++r) {
      mine.extents[r] = small.extent(r + 1);
      mine.strides[r] = small.stride(r + 1);
    }
    ArrayRef part = mine;
    part.extents[2] = p;
    const ArrayRef dots = array_ref(workspace, e, b, row);
    double* const lower = workspace + e * b * row;
    ArrayRef missed = dots;
    missed.extents[2] = p;
    out_dots = panel_problem(before, block, part, false);
    out_combine = panel_problem(before, block, part, true);
    out_combine.sign = -1;
    sweep_dots = panel_problem(rows_of(basis, 0, row), block, dots, false);
    sweep_combine = panel_problem(before, block, missed, true);
    sweep_combine.sign = -1;
    sweep_combine.lower = lower;
    for (PanelProblem* of : {&out_dots, &sweep_dots}) cut_dots<Dots>(*of, lower + e * b * b);
    turn.dots = static_cast<const double*>(dots.data);
    turn.lower = lower;
    turn.step = static_cast<double*>(mine.data);
    for (int r = 0; r < 3; ++r) turn.step_strides[r] = mine.stride(r);
    turn.networks = e;
    turn.before = p;
    turn.width = mine.extent(2);
    turn.vectors = static_cast<int>(b);
  }
};

}  // namespace fastfisher::cuda
