// SPDX-License-Identifier: Apache-2.0
//
// Drawn layers of every form in strided memory, and rows of their Jacobian by plain loops.
#pragma once

#include "draw.hpp"
#include "fastfisher/ops.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <deque>
#include <random>
#include <vector>

namespace fastfisher::test {

inline double number(float value) {
  return static_cast<double>(value);
}
inline double number(double value) {
  return value;
}
inline double number(BFloat16 value) {
  return static_cast<double>(std::bit_cast<float>(std::uint32_t{value.bits} << 16));
}
inline double number(Float16 value) {  // of normal numbers
  const double mantissa = 1 + (value.bits & 0x3ff) / 1024.0;
  const double size = std::ldexp(mantissa, (value.bits >> 10 & 0x1f) - 15);
  return (value.bits & 0x8000) != 0 ? -size : size;
}

template <class T>
T drawn() {
  if constexpr (sizeof(T) == 2) {
    // Random signs and digits, sizes from 1/8 to 4.
    const auto bits = static_cast<unsigned>(draw(0, 0xffff));
    const auto exponent =
        static_cast<unsigned>(draw(-3, 1) + (dtype_of<T> == DType::f16 ? 15 : 127));
    const unsigned shift = dtype_of<T> == DType::f16 ? 10 : 7;
    const unsigned mantissa = (1U << shift) - 1;
    return T{static_cast<std::uint16_t>((bits & (0x8000U | mantissa)) | exponent << shift)};
  } else {
    static std::normal_distribution<T> normal;
    return normal(engine);
  }
}

// Arrays with drawn axis order and direction; the memory lives as long as this.
template <class T>
struct Arrays {
  std::deque<std::vector<T>> memory;

  ArrayRef make(const std::vector<std::int64_t>& extents) {
    std::vector<std::size_t> order(extents.size());
    for (std::size_t r = 0; r < order.size(); ++r) order[r] = r;
    if (draw(0, 1) == 0) std::shuffle(order.begin(), order.end(), engine);
    ArrayRef array;
    array.dtype = dtype_of<T>;
    array.rank = static_cast<int>(extents.size());
    std::int64_t size = 1, offset = 0;
    for (std::size_t k = order.size(); k-- > 0;) {
      const std::size_t axis = order[k];
      const std::int64_t step = draw(0, 5) == 0 ? 2 : 1;
      array.extents[axis] = extents[axis];
      array.strides[axis] = size * step;
      if (draw(0, 5) == 0) {
        offset += std::max<std::int64_t>(0, extents[axis] - 1) * array.strides[axis];
        array.strides[axis] = -array.strides[axis];
      }
      size *= std::max<std::int64_t>(1, extents[axis]) * step;
    }
    memory.emplace_back(static_cast<std::size_t>(size));
    for (T& value : memory.back()) value = drawn<T>();
    array.data = memory.back().data() + offset;
    return array;
  }
};

template <class T>
double at(const ArrayRef& array, std::initializer_list<std::int64_t> index) {
  std::int64_t offset = 0;
  std::size_t r = 0;
  for (const std::int64_t k : index) offset += k * array.strides[r++];
  return number(static_cast<const T*>(array.data)[offset]);
}

template <class T>
LayerFactors draw_layer(Arrays<T>& arrays, std::int64_t n, std::int64_t c) {
  LayerFactors layer;
  layer.form = static_cast<LayerForm>(draw(0, 3));
  layer.bias = draw(0, 1) == 0 && layer.form != LayerForm::jacobian;
  std::int64_t i = draw(0, 40), o = draw(0, 30);
  const bool separable = draw(0, 3) == 0;
  std::vector<std::int64_t> rows{o};
  switch (layer.form) {
  case LayerForm::jacobian:
    layer.g = arrays.make({n, c, draw(0, 60)});
    return layer;
  case LayerForm::dense:
    layer.a = arrays.make({n, i});
    layer.g = arrays.make({n, c, o});
    return layer;
  case LayerForm::shared:
    rows = {draw(0, 9), o};
    layer.a = arrays.make({n, rows[0], i});
    break;
  case LayerForm::conv: {
    layer.conv.rank = static_cast<int>(draw(1, 3));
    layer.conv.groups = draw(1, 3);
    i = layer.conv.groups * draw(1, 3);
    o = layer.conv.groups * draw(1, 8);
    rows = {o};
    std::vector<std::int64_t> input{n, i};
    for (std::size_t r = 0; r < static_cast<std::size_t>(layer.conv.rank); ++r) {
      layer.conv.kernel[r] = draw(1, 3);
      layer.conv.stride[r] = draw(1, 3);
      layer.conv.padding[r] = draw(0, 2);
      layer.conv.dilation[r] = draw(1, 2);
      input.push_back(draw(1, 8));
      rows.push_back(layer.conv.output_extent(static_cast<int>(r), input.back()));
    }
    layer.a = arrays.make(input);
    break;
  }
  }
  if (separable) {
    layer.w = arrays.make({c, o});
    rows.insert(rows.begin(), n);
  } else {
    rows.insert(rows.begin(), {n, c});
  }
  layer.g = arrays.make(rows);
  return layer;
}

// Input of position `s` at feature i of the group, zero in the padding.
template <class T>
double patch(const LayerFactors& layer, std::int64_t n, std::int64_t channel, std::int64_t tap,
             std::int64_t s) {
  const ConvGeometry& conv = layer.conv;
  std::array<std::int64_t, 3> place{};
  for (int r = conv.rank - 1; r >= 0; --r) {
    const auto axis = static_cast<std::size_t>(r);
    const std::int64_t extent = layer.g.extent(layer.g.rank - conv.rank + r);
    place[axis] = s % extent * conv.stride[axis] - conv.padding[axis] +
                  tap % conv.kernel[axis] * conv.dilation[axis];
    s /= extent;
    tap /= conv.kernel[axis];
    if (place[axis] < 0 || place[axis] >= layer.a.extent(2 + r)) return 0;
  }
  return at<T>(layer.a, {n, channel, place[0], place[1], place[2]});
}

template <class T>
double gradient(const LayerFactors& layer, std::int64_t n, std::int64_t c, std::int64_t s,
                std::int64_t o) {
  const double w = layer.separable() ? at<T>(layer.w, {c, o}) : 1;
  if (layer.form == LayerForm::dense) return at<T>(layer.g, {n, c, o});
  if (layer.form == LayerForm::shared) {
    return layer.separable() ? w * at<T>(layer.g, {n, s, o}) : at<T>(layer.g, {n, c, s, o});
  }
  std::array<std::int64_t, 3> place{};
  for (int r = layer.conv.rank - 1; r >= 0; --r) {
    const std::int64_t extent = layer.g.extent(layer.g.rank - layer.conv.rank + r);
    place[static_cast<std::size_t>(r)] = s % extent;
    s /= extent;
  }
  if (layer.separable()) return w * at<T>(layer.g, {n, o, place[0], place[1], place[2]});
  return at<T>(layer.g, {n, c, o, place[0], place[1], place[2]});
}

// Row (n, c) of the Jacobian of one layer.
template <class T>
std::vector<double> jacobian_row(const LayerFactors& layer, std::int64_t n, std::int64_t c) {
  const LayerSizes sizes = sizes_of(layer);
  std::vector<double> row(static_cast<std::size_t>(sizes.parameters), 0);
  if (layer.form == LayerForm::jacobian) {
    for (std::int64_t p = 0; p < sizes.in; ++p)
      row[static_cast<std::size_t>(p)] = at<T>(layer.g, {n, c, p});
    return row;
  }
  const std::int64_t taps = layer.conv.taps();
  for (std::int64_t o = 0; o < sizes.out; ++o) {
    for (std::int64_t s = 0; s < sizes.positions; ++s) {
      const double g = gradient<T>(layer, n, c, s, o);
      for (std::int64_t i = 0; i < sizes.in; ++i) {
        double a = 0;
        if (layer.form == LayerForm::conv) {
          const std::int64_t group = o / (sizes.out / sizes.groups);
          a = patch<T>(layer, n, group * (sizes.in / taps) + i / taps, i % taps, s);
        } else {
          a = layer.form == LayerForm::dense ? at<T>(layer.a, {n, i}) : at<T>(layer.a, {n, s, i});
        }
        row[static_cast<std::size_t>(o * sizes.in + i)] += g * a;
      }
      if (layer.bias) row[static_cast<std::size_t>(sizes.out * sizes.in + o)] += g;
    }
  }
  return row;
}

}  // namespace fastfisher::test
