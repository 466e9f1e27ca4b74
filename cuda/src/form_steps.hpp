// SPDX-License-Identifier: Apache-2.0
//
// A stretch of the parameters of per-sample gradients as a list of products, see form.hpp;
// `Machine` as in jvp_steps.hpp. Host code.
#pragma once

#include "layer_operands.hpp"

#include <algorithm>
#include <cstdint>

namespace fastfisher::cuda {

template <class T, class Machine>
class FormSteps {
 public:
  FormSteps(Machine& machine, const LayerFactors& layer, std::int64_t first, std::int64_t count,
            T* destination, std::int64_t row_stride)
      : machine_(machine),
        layer_(layer),
        sizes_(sizes_of(layer)),
        units_(sizes_.out / std::max<std::int64_t>(sizes_.groups, 1)),
        first_(first),
        end_(first + count),
        destination_(destination),
        row_stride_(row_stride) {}

  void run() {
    if (sizes_.samples * sizes_.outputs == 0 || end_ <= first_) return;
    if (layer_.form == LayerForm::jacobian) return copied();
    const std::int64_t weights = sizes_.out * sizes_.in;
    const std::int64_t to = std::min(end_, weights);
    const bool all = layer_.bias && first_ == 0 && end_ == sizes_.parameters;
    if (first_ < to) {
      // Part of a unit, whole units, part of a unit.
      const std::int64_t head = parts_of(first_, sizes_.in), tail = to / sizes_.in;
      if (head > tail) {
        block(tail, 1, first_ % sizes_.in, to % sizes_.in, false);
      } else {
        if (first_ % sizes_.in != 0) block(head - 1, 1, first_ % sizes_.in, sizes_.in, false);
        units(head, tail, all);
        if (to % sizes_.in != 0) block(tail, 1, 0, to % sizes_.in, false);
      }
    }
    if (layer_.bias && end_ > weights && !(all && weights > 0))
      biases(std::max<std::int64_t>(first_ - weights, 0), end_ - weights);
  }

 private:
  // Whole units from .. to: part of a group, whole groups at once, part of a group.
  void units(std::int64_t from, std::int64_t to, bool sums) {
    const std::int64_t head = parts_of(from, units_), tail = to / units_;
    if (from >= to) return;
    if (head > tail) return block(from, to - from, 0, sizes_.in, sums);
    if (from % units_ != 0) block(from, head * units_ - from, 0, sizes_.in, sums);
    if (head < tail) block(head * units_, units_, 0, sizes_.in, sums, tail - head);
    if (to % units_ != 0) block(tail * units_, to % units_, 0, sizes_.in, sums);
  }

  void biases(std::int64_t from, std::int64_t to) {
    // Sums over positions know no groups.
    Product<T> p = product(from, to - from, 1);
    p.cols = 0;
    place_sums(p, from, to - from);
    machine_.product(p);
  }

  // Units from unit .. unit + count of one group, or of so many whole groups, features i .. end.
  void block(std::int64_t unit, std::int64_t count, std::int64_t i, std::int64_t end, bool sums,
             std::int64_t groups = 1) {
    Product<T> p = product(unit, count, groups);
    const InputAxes inputs = inputs_of(layer_, 1, true);
    p.right = input_operand<T>(layer_, inputs, 0, true);
    p.right.rows.start = i;
    p.right.rows.origin += unit / units_ * inputs.group;
    p.right.batch[0] = inputs.sample;
    p.right.batch[1] = inputs.group;
    if (!p.right.patch) choose_path<T>(p.right);
    p.cols = end - i;
    p.out = destination_ + unit * sizes_.in + i - first_;
    p.out_row = {count, row_stride_, sizes_.in};
    p.out_col = {1, 1, 0};
    p.out_batch[0] = sizes_.outputs * row_stride_;
    p.out_batch[1] = units_ * sizes_.in;
    if (sums) place_sums(p, unit, count);
    machine_.product(p);
  }

  void place_sums(Product<T>& p, std::int64_t unit, std::int64_t count) {
    p.sums = destination_ + sizes_.out * sizes_.in + unit - first_;
    p.sums_row = {count, row_stride_, 1};
    p.sums_c = row_stride_;
    p.sums_batch[0] = sizes_.outputs * row_stride_;
    p.sums_batch[1] = units_;
  }

  // Rows (c,o), or o alone for separable cotangents, which are weighted when stored.
  Product<T> product(std::int64_t unit, std::int64_t count, std::int64_t groups) {
    Product<T> p;
    const CotangentAxes cotangents = positions_of(layer_);
    const ArrayRef& g = layer_.g;
    p.left.data = g.data;
    p.left.dtype = g.dtype;
    p.left.rows.origin = unit * cotangents.unit;
    p.left.rows.nest(count, cotangents.unit);
    p.rows = count;
    if (layer_.separable()) {
      p.weights = advanced(layer_.w, unit * layer_.w.stride(1));
      p.weights_dtype = p.left.dtype;
      p.weight_row = layer_.w.stride(1);
      p.weight_batch = units_ * layer_.w.stride(1);
      p.weight_c = layer_.w.stride(0);
      p.weight_count = sizes_.outputs;
      p.out_c = row_stride_;
    } else {
      p.left.rows.nest(sizes_.outputs, g.stride(1));
      p.rows *= sizes_.outputs;
    }
    p.left.depth = cotangents.positions;
    p.left.batch[0] = g.stride(0);
    p.left.batch[1] = units_ * cotangents.unit;
    choose_path<T>(p.left);
    p.depth = sizes_.positions;
    p.batches = sizes_.samples * groups;
    p.inner_batches = groups;
    return p;
  }

  void copied() {
    Widening<T> p;
    p.data = advanced(layer_.g, first_ * layer_.g.stride(2));
    p.dtype = layer_.g.dtype;
    p.extents[0] = sizes_.samples;
    p.extents[1] = sizes_.outputs;
    p.extents[2] = end_ - first_;
    for (int r = 0; r < 3; ++r) p.from[r] = layer_.g.stride(r);
    p.to[0] = sizes_.outputs * row_stride_;
    p.to[1] = row_stride_;
    p.to[2] = 1;
    p.out = destination_;
    machine_.widen(p);
  }

  Machine& machine_;
  const LayerFactors& layer_;
  LayerSizes sizes_;
  std::int64_t units_, first_, end_;
  T* destination_;
  std::int64_t row_stride_;
};

}  // namespace fastfisher::cuda
