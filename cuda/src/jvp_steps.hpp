// SPDX-License-Identifier: Apache-2.0
//
// J v as a list of products and reductions, see jvp.cu. `Machine` runs them: a device, the host in
// tests, or one that only adds up the memory they need. Host code.
#pragma once

#include "fastfisher/ops.hpp"
#include "layer_operands.hpp"

#include <algorithm>
#include <cstdint>
#include <span>

namespace fastfisher::cuda {

/// Beyond so many columns an explicit Jacobian is multiplied by tiles, not read once a few columns.
constexpr std::int64_t kReducedColumns = 32;
/// Columns of one product at most.
constexpr std::int64_t kColumnsAtOnce = 64;

/// Samples and columns of what lies between two products, of `entries` numbers a sample and column.
struct Chunk {
  std::int64_t samples = 1, columns = 1;

  Chunk(std::int64_t all_samples, std::int64_t all_columns, std::int64_t entries, std::int64_t size,
        const ProductLimits& limits) {
    const std::int64_t fit = limits.chunk_bytes / std::max<std::int64_t>(entries * size, 1);
    columns = std::clamp<std::int64_t>(std::min(all_columns, fit), 1, kColumnsAtOnce);
    samples = std::clamp<std::int64_t>(fit / columns, 1, std::max<std::int64_t>(all_samples, 1));
  }
};

template <class S, class T, class Machine>
class JvpSteps {
 public:
  JvpSteps(Machine& machine, std::span<const LayerFactors> layers, const ArrayRef& v,
           const ArrayRef& out)
      : machine_(machine), layers_(layers), v_(v), out_(out) {}

  void run() {
    if (out_.size() == 0) return;
    for (const LayerFactors& layer : layers_) {
      const LayerSizes sizes = sizes_of(layer);
      if (layer.form == LayerForm::jacobian) {
        if (sizes.in > 0) explicit_layer(layer, sizes);
      } else if (sizes.out * sizes.positions > 0 && sizes.parameters > 0) {
        for_chunks(layer, sizes);
      }
      parameter_ += sizes.parameters;
    }
    if (accumulate_) return;
    Collection<T> zeros;
    for (int r = 0; r < 3; ++r) {
      zeros.extents[r] = out_.extent(r);
      zeros.strides[r] = out_.stride(r);
    }
    zeros.out = static_cast<T*>(out_.data);
    machine_.collect(zeros);
  }

 private:
  // Entry (parameter, column) of v; of out (sample, 0, column).
  [[nodiscard]] const T* v_at(std::int64_t parameter, std::int64_t column) const {
    return static_cast<const T*>(
        advanced(v_, (parameter_ + parameter) * v_.stride(0) + column * v_.stride(1)));
  }
  [[nodiscard]] T* out_at(std::int64_t n, std::int64_t column) const {
    return static_cast<T*>(advanced(out_, n * out_.stride(0) + column * out_.stride(2)));
  }

  void explicit_layer(const LayerFactors& layer, const LayerSizes& sizes) {
    if (out_.extent(2) <= kReducedColumns) {
      Contraction<T> p = contraction(layer, 0, sizes.samples, 0, out_.extent(2));
      p.z = v_at(0, 0);
      p.z_t = v_.stride(0);
      p.z_k = v_.stride(1);
      machine_.template contract<S>(p);
    } else {
      Product<T> p;
      p.left.data = layer.g.data;
      p.left.rows.nest(sizes.outputs, layer.g.stride(1));
      p.left.rows.nest(sizes.samples, layer.g.stride(0));
      p.left.depth.nest(sizes.in, layer.g.stride(2));
      p.left.dtype = layer.g.dtype;
      choose_path<T>(p.left);
      p.right.data = v_at(0, 0);
      p.right.rows.nest(out_.extent(2), v_.stride(1));
      p.right.depth.nest(sizes.in, v_.stride(0));
      choose_path<T>(p.right);
      p.rows = sizes.samples * sizes.outputs;
      p.cols = out_.extent(2);
      p.depth = sizes.in;
      p.accumulate = accumulate_;
      p.out = out_at(0, 0);
      p.out_row = {sizes.outputs, out_.stride(0), out_.stride(1)};
      p.out_col = {1, out_.stride(2), 0};
      machine_.product(p);
    }
    accumulate_ = true;
  }

  void for_chunks(const LayerFactors& layer, const LayerSizes& sizes) {
    const std::int64_t terms = sizes.positions * sizes.out;  // of z, a sample and column
    const Chunk chunk(sizes.samples, out_.extent(2), terms, sizeof(T), machine_.limits());
    T* z = machine_.middle(chunk.samples * chunk.columns * terms);
    for (std::int64_t k = 0; k < out_.extent(2); k += chunk.columns) {
      const std::int64_t columns = std::min(chunk.columns, out_.extent(2) - k);
      for (std::int64_t n = 0; n < sizes.samples; n += chunk.samples) {
        const std::int64_t samples = std::min(chunk.samples, sizes.samples - n);
        Product<T> product = layer.form == LayerForm::conv
                                 ? conv_product(layer, sizes, n, samples, k, columns)
                                 : product_of(layer, sizes, n, samples, k, columns);
        product.out = z;
        machine_.product(product);
        Contraction<T> p = contraction(layer, n, samples, k, columns);
        p.z = z;
        p.z_sample = terms * columns;
        p.z_t = columns;
        p.z_k = 1;
        machine_.template contract<S>(p);
      }
    }
    accumulate_ = true;
  }

  // z[n,s,o,k]: rows (n,s), columns (o,k).
  Product<T> product_of(const LayerFactors& layer, const LayerSizes& sizes, std::int64_t n,
                        std::int64_t samples, std::int64_t k, std::int64_t columns) {
    Product<T> p;
    p.left = input_operand<T>(layer, inputs_of(layer, samples, false), n, false);
    p.right = vector_operand(sizes, sizes.out, k, columns);
    p.rows = samples * sizes.positions;
    p.cols = sizes.out * columns;
    p.depth = sizes.in;
    p.out_row = {1, p.cols, 0};
    p.out_col = {1, 1, 0};
    if (layer.bias) {
      p.add = v_at(sizes.out * sizes.in, k);
      p.add_col = {columns, v_.stride(0), v_.stride(1)};
    }
    return p;
  }

  // z[n,o,s,k] for each group: rows (o,k), columns (n,s).
  Product<T> conv_product(const LayerFactors& layer, const LayerSizes& sizes, std::int64_t n,
                          std::int64_t samples, std::int64_t k, std::int64_t columns) {
    Product<T> p;
    const std::int64_t units = sizes.out / sizes.groups;
    const InputAxes inputs = inputs_of(layer, samples, false);
    p.left = vector_operand(sizes, units, k, columns);
    p.left.batch[0] = units * sizes.in * v_.stride(0);
    choose_path<T>(p.left);
    p.right = input_operand<T>(layer, inputs, n, false);
    p.right.batch[0] = inputs.group;
    p.batches = sizes.groups;
    p.rows = units * columns;
    p.cols = samples * sizes.positions;
    p.depth = sizes.in;
    p.out_row = {columns, sizes.positions * columns, 1};
    p.out_col = {sizes.positions, sizes.out * sizes.positions * columns, columns};
    p.out_batch[0] = units * sizes.positions * columns;
    if (layer.bias) {
      p.add = v_at(sizes.out * sizes.in, k);
      p.add_row = {columns, v_.stride(0), v_.stride(1)};
      p.add_batch[0] = units * v_.stride(0);
    }
    return p;
  }

  // V as rows (o,k) of depth i.
  Operand vector_operand(const LayerSizes& sizes, std::int64_t units, std::int64_t k,
                         std::int64_t columns) {
    Operand x;
    x.data = v_at(0, k);
    x.rows.nest(columns, v_.stride(1));
    x.rows.nest(units, sizes.in * v_.stride(0));
    x.depth.nest(sizes.in, v_.stride(0));
    choose_path<T>(x);
    return x;
  }

  Contraction<T> contraction(const LayerFactors& layer, std::int64_t n, std::int64_t samples,
                             std::int64_t k, std::int64_t columns) {
    Contraction<T> p;
    p.g = cotangents_of(layer, n);
    p.out = out_at(n, k);
    p.out_sample = out_.stride(0);
    p.out_output = out_.stride(1);
    p.out_k = out_.stride(2);
    p.samples = samples;
    p.outputs = out_.extent(1);
    p.columns = columns;
    p.accumulate = accumulate_;
    return p;
  }

  Machine& machine_;
  std::span<const LayerFactors> layers_;
  const ArrayRef& v_;
  const ArrayRef& out_;
  std::int64_t parameter_ = 0;
  bool accumulate_ = false;
};

}  // namespace fastfisher::cuda
