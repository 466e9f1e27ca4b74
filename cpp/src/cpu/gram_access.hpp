// SPDX-License-Identifier: Apache-2.0
//
// Where the rows of a Gram's factors and the entries of its output lie in strided memory.
#pragma once

#include "fastfisher/ops.hpp"

#include <algorithm>
#include <cstdint>

namespace fastfisher::cpu {

// Rows of one product in strided memory: row r is (r / inner, r % inner), depth k is (k / run, k %
// run).
struct Rows {
  const void* data = nullptr;
  std::int64_t inner = 1, outer_stride = 0, inner_stride = 0;
  std::int64_t run = 1, run_stride = 0, depth_stride = 0;
  double scale = 1;
};

inline Rows rows_of_a(const ArrayRef& a) {
  return {a.data, 1, a.stride(0), 0, std::max<std::int64_t>(a.extent(1), 1), 0, a.stride(1), 1};
}

inline Rows rows_of_g(const ArrayRef& g, GramOutputs outputs) {
  const std::int64_t c = std::max<std::int64_t>(g.extent(1), 1);
  const std::int64_t o = std::max<std::int64_t>(g.extent(2), 1);
  if (outputs == GramOutputs::full)
    return {g.data, c, g.stride(0), g.stride(1), o, 0, g.stride(2), 1};
  Rows rows{g.data, 1, g.stride(0), 0, o, g.stride(1), g.stride(2), 1};
  if (g.stride(1) == o * g.stride(2)) rows.run = c * o;  // one run over outputs and features
  return rows;
}

// Where entry (r, q) of a plane lies in the output.
struct Target {
  void* data = nullptr;
  std::int64_t row_inner = 1, row_outer_stride = 0, row_inner_stride = 0;
  std::int64_t col_inner = 1, col_outer_stride = 0, col_inner_stride = 0;

  [[nodiscard]] std::int64_t row(std::int64_t r) const {
    return r / row_inner * row_outer_stride + r % row_inner * row_inner_stride;
  }
  [[nodiscard]] std::int64_t col(std::int64_t q) const {
    return q / col_inner * col_outer_stride + q % col_inner * col_inner_stride;
  }
  [[nodiscard]] bool packed_cols() const {
    return col_inner == 1 ? col_outer_stride == 1
                          : col_inner_stride == 1 && col_outer_stride == col_inner;
  }
};

inline Target target_of(const ArrayRef& out, GramOutputs outputs) {
  if (outputs != GramOutputs::full) return {out.data, 1, out.stride(0), 0, 1, out.stride(1), 0};
  return {out.data,      std::max<std::int64_t>(out.extent(1), 1), out.stride(0),
          out.stride(1), std::max<std::int64_t>(out.extent(3), 1), out.stride(2),
          out.stride(3)};
}

}  // namespace fastfisher::cpu
