// SPDX-License-Identifier: Apache-2.0
//
// J^T u as a list of products and reductions, see vjp.cu; `Machine` as in jvp_steps.hpp. Host code.
#pragma once

#include "jvp_steps.hpp"

namespace fastfisher::cuda {

template <class S, class T, class Machine>
class VjpSteps {
 public:
  VjpSteps(Machine& machine, std::span<const LayerFactors> layers, const ArrayRef& u,
           const ArrayRef& out)
      : machine_(machine), layers_(layers), u_(u), out_(out) {}

  void run() {
    if (out_.size() == 0) return;
    for (const LayerFactors& layer : layers_) {
      const LayerSizes sizes = sizes_of(layer);
      if (sizes.parameters > 0) {
        if (layer.form == LayerForm::jacobian) {
          explicit_layer(layer, sizes);
        } else {
          for_chunks(layer, sizes);
        }
      }
      parameter_ += sizes.parameters;
    }
  }

 private:
  [[nodiscard]] const T* u_at(std::int64_t n, std::int64_t column) const {
    return static_cast<const T*>(advanced(u_, n * u_.stride(0) + column * u_.stride(2)));
  }
  [[nodiscard]] T* out_at(std::int64_t parameter, std::int64_t column) const {
    return static_cast<T*>(
        advanced(out_, (parameter_ + parameter) * out_.stride(0) + column * out_.stride(1)));
  }

  void explicit_layer(const LayerFactors& layer, const LayerSizes& sizes) {
    if (out_.extent(1) <= kReducedColumns) {
      Weighing<T> p;
      p.g = cotangents_of(layer, 0);
      p.g.sample = 0;  // samples are rows
      p.g_row[0] = layer.g.stride(0);
      p.g_row[1] = layer.g.stride(1);
      p.u = u_at(0, 0);
      p.u_row[0] = u_.stride(0);
      p.u_row[1] = u_.stride(1);
      p.u_k = u_.stride(2);
      p.out = out_at(0, 0);
      p.out_t = out_.stride(0);
      p.out_k = out_.stride(1);
      p.batches = 1;
      p.rows = sizes.samples * sizes.outputs;
      p.inner_rows = std::max<std::int64_t>(sizes.outputs, 1);
      p.columns = out_.extent(1);
      machine_.template weigh<S>(p);
      return;
    }
    Product<T> p;
    p.left.data = u_at(0, 0);
    p.left.rows.nest(out_.extent(1), u_.stride(2));
    p.left.depth.nest(sizes.outputs, u_.stride(1));
    p.left.depth.nest(sizes.samples, u_.stride(0));
    choose_path<T>(p.left);
    p.right.data = layer.g.data;
    p.right.rows.nest(sizes.in, layer.g.stride(2));
    p.right.depth.nest(sizes.outputs, layer.g.stride(1));
    p.right.depth.nest(sizes.samples, layer.g.stride(0));
    p.right.dtype = layer.g.dtype;
    choose_path<T>(p.right);
    p.rows = out_.extent(1);
    p.cols = sizes.in;
    p.depth = sizes.samples * sizes.outputs;
    p.out = out_at(0, 0);
    p.out_row = {1, out_.stride(1), 0};
    p.out_col = {1, out_.stride(0), 0};
    machine_.product(p);
  }

  void for_chunks(const LayerFactors& layer, const LayerSizes& sizes) {
    const std::int64_t terms = sizes.positions * sizes.out;  // of h, a sample and column
    const Chunk chunk(sizes.samples, out_.extent(1), terms, sizeof(T), machine_.limits());
    T* h = machine_.middle(chunk.samples * chunk.columns * terms);
    for (std::int64_t k = 0; k < out_.extent(1); k += chunk.columns) {
      const std::int64_t columns = std::min(chunk.columns, out_.extent(1) - k);
      std::int64_t n = 0;
      do {  // without samples too: the result is zero then
        const std::int64_t samples = std::min(chunk.samples, sizes.samples - n);
        if (samples * terms > 0) weigh(layer, n, samples, k, columns, terms, h);
        Product<T> p = product_of(layer, sizes, n, samples, columns);
        p.left.data = h;
        choose_path<T>(p.left);
        p.accumulate = n > 0;
        place(p, layer, sizes, k, columns);
        machine_.product(p);
        n += chunk.samples;
      } while (n < sizes.samples);
    }
  }

  // h[n,t,k] = sum_c g[n,c,t] u[n,c,k].
  void weigh(const LayerFactors& layer, std::int64_t n, std::int64_t samples, std::int64_t k,
             std::int64_t columns, std::int64_t terms, T* h) {
    Weighing<T> p;
    p.g = cotangents_of(layer, n);
    p.g_row[1] = p.g.output;
    p.u = u_at(n, k);
    p.u_batch = u_.stride(0);
    p.u_row[1] = u_.stride(1);
    p.u_k = u_.stride(2);
    p.out = h;
    p.out_batch = terms * columns;
    p.out_t = columns;
    p.out_k = 1;
    p.batches = samples;
    p.rows = u_.extent(1);
    p.inner_rows = std::max<std::int64_t>(p.rows, 1);
    p.columns = columns;
    machine_.template weigh<S>(p);
  }

  // W[o,i,k] = sum over (n,s) of h[n,s,o,k] a[n,s,i], each group by itself.
  Product<T> product_of(const LayerFactors& layer, const LayerSizes& sizes, std::int64_t n,
                        std::int64_t samples, std::int64_t columns) {
    Product<T> p;
    const bool conv = layer.form == LayerForm::conv;
    const std::int64_t units = sizes.out / sizes.groups, terms = sizes.positions * sizes.out;
    const InputAxes inputs = inputs_of(layer, samples, false);
    p.left.rows.nest(columns, 1);
    p.left.rows.nest(units, conv ? sizes.positions * columns : columns);
    p.left.depth.nest(sizes.positions, conv ? columns : sizes.out * columns);
    p.left.depth.nest(samples, terms * columns);
    p.left.batch[0] = units * sizes.positions * columns;
    p.right = input_operand<T>(layer, inputs, n, true);
    p.right.batch[0] = inputs.group;
    p.batches = sizes.groups;
    p.rows = units * columns;
    p.cols = sizes.in;
    p.depth = samples * sizes.positions;
    return p;
  }

  void place(Product<T>& p, const LayerFactors& layer, const LayerSizes& sizes, std::int64_t k,
             std::int64_t columns) {
    const std::int64_t units = sizes.out / sizes.groups;
    p.out = out_at(0, k);
    p.out_row = {columns, sizes.in * out_.stride(0), out_.stride(1)};
    p.out_col = {1, out_.stride(0), 0};
    p.out_batch[0] = units * sizes.in * out_.stride(0);
    if (!layer.bias) return;
    p.sums = out_at(sizes.out * sizes.in, k);
    p.sums_row = {columns, out_.stride(0), out_.stride(1)};
    p.sums_batch[0] = units * out_.stride(0);
  }

  Machine& machine_;
  std::span<const LayerFactors> layers_;
  const ArrayRef& u_;
  const ArrayRef& out_;
  std::int64_t parameter_ = 0;
};

}  // namespace fastfisher::cuda
