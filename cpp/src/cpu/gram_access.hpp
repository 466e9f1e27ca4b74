// SPDX-License-Identifier: Apache-2.0
//
// Where the rows of a Gram's factors and the entries of its output lie in strided memory.
#pragma once

#include "fastfisher/ops.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace fastfisher::cpu {

// Rows of one product in strided memory: row r is (r / inner, r % inner), depth k is (k / run, k %
// run).
struct Rows {
  const void* data = nullptr;
  std::int64_t inner = 1, outer_stride = 0, inner_stride = 0;
  std::int64_t run = 1, run_stride = 0, depth_stride = 0;
  double scale = 1;
  std::int64_t origin = 0;  ///< r / inner of the rows that `data` points to
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

// The inputs of a layer: a[n,t,i], or the input of a convolution, its spatial axes aligned to the
// last of three.
struct InputAccess {
  const void* data = nullptr;
  std::int64_t sample = 0, position = 0, feature = 0;  ///< strides; feature: channel
  std::array<std::int64_t, 3> extents{1, 1, 1}, strides{0, 0, 0}, out{1, 1, 1};
  std::array<std::int64_t, 3> kernel{1, 1, 1}, stride{1, 1, 1}, padding{0, 0, 0}, dilation{1, 1, 1};
  std::int64_t taps = 1;
};

inline InputAccess input_of(const LayerFactors& layer) {
  InputAccess input;
  const ArrayRef& a = layer.a;
  input.data = a.data;
  if (a.rank == 0) return input;
  input.sample = a.stride(0);
  input.feature = a.stride(1);
  if (layer.form == LayerForm::shared) {
    input.position = a.stride(1);
    input.feature = a.stride(2);
  }
  if (layer.form != LayerForm::conv) return input;
  input.taps = layer.conv.taps();
  const int rank = layer.conv.rank;
  for (int r = 0; r < rank; ++r) {
    const auto from = static_cast<std::size_t>(r), to = static_cast<std::size_t>(3 - rank + r);
    input.extents[to] = a.extent(2 + r);
    input.strides[to] = a.stride(2 + r);
    input.out[to] = layer.g.extent(layer.g.rank - rank + r);
    input.kernel[to] = layer.conv.kernel[from];
    input.stride[to] = layer.conv.stride[from];
    input.padding[to] = layer.conv.padding[from];
    input.dilation[to] = layer.conv.dilation[from];
  }
  return input;
}

// The cotangents g[n,c,t,o] (or m[n,t,o]) of a layer; t runs over up to three axes.
struct CotangentAccess {
  const void* data = nullptr;
  std::int64_t sample = 0, output = 0, unit = 0;  ///< strides; output: 0 if separable
  std::array<std::int64_t, 3> extents{1, 1, 1}, strides{0, 0, 0};
};

inline CotangentAccess cotangents_of(const LayerFactors& layer) {
  const ArrayRef& g = layer.g;
  CotangentAccess access;
  access.data = g.data;
  access.sample = g.stride(0);
  const int first = layer.separable() ? 1 : 2;  // of the axes after n and c
  if (!layer.separable()) access.output = g.stride(1);
  switch (layer.form) {
  case LayerForm::shared:
    access.extents[2] = g.extent(first);
    access.strides[2] = g.stride(first);
    access.unit = g.stride(first + 1);
    break;
  case LayerForm::conv:
    access.unit = g.stride(first);
    for (int r = 0; r < layer.conv.rank; ++r) {
      const auto to = static_cast<std::size_t>(3 - layer.conv.rank + r);
      access.extents[to] = g.extent(first + 1 + r);
      access.strides[to] = g.stride(first + 1 + r);
    }
    // Axes that lie behind one another are one: long runs of positions.
    for (std::size_t axis = 2; axis-- > 0;) {
      if (access.strides[axis] != access.strides[2] * access.extents[2] &&
          access.extents[axis] != 1)
        break;
      access.extents[2] *= access.extents[axis];
      access.extents[axis] = 1;
    }
    break;
  default:
    access.unit = g.stride(2);
    break;
  }
  return access;
}

inline std::int64_t positions_of(const CotangentAccess& access) {
  return access.extents[0] * access.extents[1] * access.extents[2];
}

/// Offset of position t.
inline std::int64_t offset_of(const CotangentAccess& access, std::int64_t t) {
  const std::int64_t w = t % access.extents[2], rest = t / access.extents[2];
  return rest / access.extents[1] * access.strides[0] +
         rest % access.extents[1] * access.strides[1] + w * access.strides[2];
}

/// Calls each(t, offset, stride, count) for runs of positions at one stride that make up [from,
/// to).
template <class Function>
void for_runs(const CotangentAccess& access, std::int64_t from, std::int64_t to,
              const Function& each) {
  for (std::int64_t t = from; t < to;) {
    const std::int64_t run = std::min(to - t, access.extents[2] - t % access.extents[2]);
    each(t, offset_of(access, t), access.strides[2], run);
    t += run;
  }
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
