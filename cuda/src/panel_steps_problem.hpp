// SPDX-License-Identifier: Apache-2.0
//
// Panels and their small matrix as the kernel bodies read them. Plain C++, so that tests run it
// without a device.
#pragma once

#include "fastfisher/view.hpp"
#include "panel_steps_body.hpp"

#include <algorithm>
#include <cstdint>

namespace fastfisher::cuda {

inline bool starts_aligned(const ArrayRef& rows) {
  const std::int64_t step = 16 / size_of(rows.dtype);
  return reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 &&
         (rows.extent(0) == 1 || rows.stride(0) % step == 0) &&
         (rows.extent(1) == 1 || rows.stride(1) % step == 0);
}

inline PanelProblem panel_problem(const ArrayRef& x, const ArrayRef& y, const ArrayRef& small,
                                  bool keep) {
  PanelProblem problem;
  problem.x = {x.data, x.stride(0), x.stride(1), x.extent(1)};
  problem.y = {y.data, y.stride(0), y.stride(1), y.extent(1)};
  problem.small = static_cast<double*>(small.data);
  for (int r = 0; r < 3; ++r) problem.small_strides[r] = small.stride(r);
  problem.networks = y.extent(0);
  problem.n = y.extent(2);
  problem.aligned = starts_aligned(x) && starts_aligned(y);
  problem.keep = keep;
  return problem;
}

// Parts of n for products of i rows with j, such that long rows make work for a whole device.
template <class Dots>
std::int64_t dot_parts(std::int64_t networks, std::int64_t i, std::int64_t j, std::int64_t n) {
  constexpr std::int64_t kBlocks = 264, kShortest = std::int64_t{8} * Dots::kThreads;
  const std::int64_t tasks = std::max<std::int64_t>(1, Dots::tasks(networks, i, j));
  return std::clamp<std::int64_t>(std::min(n / kShortest, kBlocks / tasks), 1, kBlocks);
}

template <class Dots>
void cut_dots(PanelProblem& dots, double* partial) {
  constexpr std::int64_t kStep = std::int64_t{4} * Dots::kThreads;
  dots.parts = dot_parts<Dots>(dots.networks, dots.x.rows, dots.y.rows, dots.n);
  dots.stretch = (dots.n + dots.parts * kStep - 1) / (dots.parts * kStep) * kStep;
  dots.partial = partial;
}

// The launches of panel_remove, in turn. The workspace holds [e,j,i] without gaps, then the parts
// of dots.
template <class Dots>
struct PanelRemoval {
  PanelProblem first_dots, first_combine, second_dots, second_combine, inner;

  static std::int64_t workspace(std::int64_t networks, std::int64_t i, std::int64_t j,
                                std::int64_t n) {
    const std::int64_t parts =
        std::max(i * dot_parts<Dots>(networks, i, j, n), j * dot_parts<Dots>(networks, j, j, n));
    return networks * j * (i + parts);
  }

  PanelRemoval(const ArrayRef& x, const ArrayRef& y, const ArrayRef& small, double* workspace) {
    const std::int64_t e = y.extent(0), i = x.extent(1), j = y.extent(1);
    ArrayRef total = small, rest = small;
    total.extents[2] = i;
    rest.extents[2] = j;
    rest.data = static_cast<double*>(small.data) + i * small.stride(2);
    const ArrayRef part = array_ref(workspace, e, j, i);
    first_dots = panel_problem(x, y, total, false);
    first_combine = panel_problem(x, y, total, true);
    second_dots = panel_problem(x, y, part, false);
    second_combine = panel_problem(x, y, part, true);
    inner = panel_problem(y, y, rest, false);
    first_combine.sign = second_combine.sign = -1;
    second_dots.more = first_dots.small;
    for (int r = 0; r < 3; ++r) second_dots.more_strides[r] = first_dots.small_strides[r];
    for (PanelProblem* dots : {&first_dots, &second_dots, &inner})
      cut_dots<Dots>(*dots, workspace + e * j * i);
  }
};

}  // namespace fastfisher::cuda
