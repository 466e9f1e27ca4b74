// SPDX-License-Identifier: Apache-2.0
//
// Kernel bodies of the reductions beside the products of J v and J^T u, which read the cotangents
// once and are as fast as the memory:
//   Contract:  out[n,c,k] (+)= sum_t g[n,c,t] z[n,t,k]
//   Weigh:     out[b,t,k] (+)= sum_r g[b,r,t] u[b,r,k]
// t runs over positions and units of a layer, or over the parameters of an explicit Jacobian.
// Separable cotangents are m[n,t] w[c,unit of t]. An entry's terms are added in an order that
// depends on the sizes alone. Plain C++ over a BlockContext, see contract.cu for the launch.
#pragma once

#include "axis.hpp"
#include "block.hpp"
#include "element.hpp"

#include <cstdint>

namespace fastfisher::cuda {

// Cotangents g[n,c,t], or m[n,t] and w[c,unit of t].
struct Cotangents {
  const void* data = nullptr;
  std::int64_t sample = 0, output = 0;
  Axis t;
  const void* w = nullptr;
  std::int64_t w_output = 0, w_unit = 0;
  std::int64_t unit_run = 1, units = 1;  // unit of t: t / unit_run % units

  [[nodiscard]] FF_HD std::int64_t weight_offset(std::int64_t index) const {
    return index / unit_run % units * w_unit;
  }
};

template <class T>
struct Contraction {
  Cotangents g;
  const T* z = nullptr;
  std::int64_t z_sample = 0, z_t = 0, z_k = 0;
  T* out = nullptr;
  std::int64_t out_sample = 0, out_output = 0, out_k = 0;
  std::int64_t samples = 0, outputs = 0, columns = 0;
  std::int64_t splits = 1, split_terms = 0;  // shares of t
  std::int64_t lanes = 32;                   // threads that add up one task, a divisor of the block
  bool accumulate = false;
  T* partial = nullptr;  // [splits][n][c][k], where splits > 1
};

// A thread adds terms of Outputs x Columns entries; `lanes` threads share them.
template <class S, class T, int Threads, int Outputs, int Columns>
struct Contract {
  static constexpr int kThreads = Threads;
  static constexpr int kEntries = Outputs * Columns;
  static constexpr int kTerms = 2;  // that a thread reads before it uses them

  struct Shared {
    T sums[Threads][kEntries + 1];  // one more: rows in different banks
  };

  // Outputs of a task: as even as can be, so that all threads have about as much to read.
  FF_HD static std::int64_t outputs_each(const Contraction<T>& p) {
    const std::int64_t groups = output_groups(p);
    return (p.outputs + groups - 1) / (groups > 0 ? groups : 1);
  }
  FF_HD static std::int64_t output_groups(const Contraction<T>& p) {
    return (p.outputs + Outputs - 1) / Outputs;
  }
  FF_HD static std::int64_t column_groups(const Contraction<T>& p) {
    return (p.columns + Columns - 1) / Columns;
  }
  FF_HD static std::int64_t blocks_of(const Contraction<T>& p) {
    const std::int64_t tasks = p.samples * output_groups(p) * column_groups(p) * p.splits;
    const std::int64_t at_once = Threads / p.lanes;
    return (tasks + at_once - 1) / at_once;
  }

  template <BlockContext Block>
  FF_HD static void run(const Block& block, Shared& shared, const Contraction<T>& p) {
    const std::int64_t groups = output_groups(p), column_steps = column_groups(p);
    const std::int64_t tasks = p.samples * groups * column_steps * p.splits;
    const std::int64_t blocks = blocks_of(p);
    const std::int64_t lane = block.thread() % p.lanes, team = block.thread() / p.lanes;
    for (std::int64_t at = block.index(); at < blocks; at += block.blocks()) {
      std::int64_t task = at * (Threads / p.lanes) + team;
      const bool busy = task < tasks;
      const std::int64_t c = busy ? task % groups * outputs_each(p) : 0;
      task /= groups;
      const std::int64_t k = busy ? task % column_steps * Columns : 0;
      task /= column_steps;
      const std::int64_t split = busy ? task % p.splits : 0;
      const std::int64_t n = busy ? task / p.splits : 0;
      T sums[Outputs][Columns];
      FF_UNROLL
      for (int i = 0; i < Outputs; ++i) {
        FF_UNROLL
        for (int j = 0; j < Columns; ++j) sums[i][j] = 0;
      }
      const std::int64_t left = p.outputs - c, most = outputs_each(p);
      const int outputs = static_cast<int>(left < most ? (left > 0 ? left : 0) : most);
      if (busy) add(p, n, c, outputs, k, split, lane, sums);
      FF_UNROLL
      for (int e = 0; e < kEntries; ++e)
        shared.sums[block.thread()][e] = sums[e / Columns][e % Columns];
      block.sync();
      for (std::int64_t e = lane; busy && e < kEntries; e += p.lanes) {
        const std::int64_t output = c + e / Columns, column = k + e % Columns;
        if (e / Columns >= outputs || column >= p.columns) continue;
        T total = 0;
        for (std::int64_t l = 0; l < p.lanes; ++l) total += shared.sums[team * p.lanes + l][e];
        if (p.splits > 1) {
          p.partial[((split * p.samples + n) * p.outputs + output) * p.columns + column] = total;
          continue;
        }
        T& to = p.out[n * p.out_sample + output * p.out_output + column * p.out_k];
        to = p.accumulate ? to + total : total;
      }
      block.sync();  // before the next task's sums
    }
  }

 private:
  FF_HD static void add(const Contraction<T>& p, std::int64_t n, std::int64_t c, int outputs,
                        std::int64_t k, std::int64_t split, std::int64_t lane,
                        T (&sums)[Outputs][Columns]) {
    const S* g = static_cast<const S*>(p.g.data) + n * p.g.sample + c * p.g.output;
    const S* w = static_cast<const S*>(p.g.w);
    if (w != nullptr) w += c * p.g.w_output;
    const std::int64_t step = w == nullptr ? p.g.output : p.g.w_output;
    const T* z = p.z + n * p.z_sample + k * p.z_k;
    const std::int64_t first = split * p.split_terms, rest = p.g.t.count - first;
    const std::int64_t end = first + (rest < p.split_terms ? rest : p.split_terms);
    const int columns = p.columns - k < Columns ? static_cast<int>(p.columns - k) : Columns;
    for (std::int64_t from = first + lane; from < end; from += kTerms * p.lanes) {
      T x[kTerms][Outputs], y[kTerms][Columns];
      FF_UNROLL
      for (int a = 0; a < kTerms; ++a) {
        const std::int64_t t = from + a * p.lanes;
        const bool valid = t < end;
        const std::int64_t at = valid ? p.g.t.offset(t) : 0;
        const S* line = w == nullptr ? g + at : w + (valid ? p.g.weight_offset(t) : 0);
        FF_UNROLL
        for (int i = 0; i < Outputs; ++i)
          x[a][i] = valid && i < outputs ? static_cast<T>(widen(line[i * step])) : T(0);
        const T m = valid && w != nullptr ? static_cast<T>(widen(g[at])) : T(1);
        FF_UNROLL
        for (int j = 0; j < Columns; ++j)
          y[a][j] = valid && j < columns ? m * z[t * p.z_t + j * p.z_k] : T(0);
      }
      FF_UNROLL
      for (int a = 0; a < kTerms; ++a) {
        FF_UNROLL
        for (int i = 0; i < Outputs; ++i) {
          FF_UNROLL
          for (int j = 0; j < Columns; ++j) sums[i][j] += x[a][i] * y[a][j];
        }
      }
    }
  }
};

// The rows r of Weigh are (n, c) of an explicit Jacobian, and c of each sample otherwise.
template <class T>
struct Weighing {
  Cotangents g;  // sample: stride of b
  std::int64_t g_row[2] = {0, 0};
  const T* u = nullptr;
  std::int64_t u_batch = 0, u_row[2] = {0, 0}, u_k = 0;
  T* out = nullptr;
  std::int64_t out_batch = 0, out_t = 0, out_k = 0;
  std::int64_t batches = 0, rows = 0, inner_rows = 1, columns = 0;
  std::int64_t splits = 1, split_rows = 0;
  bool accumulate = false;
  T* partial = nullptr;  // [splits][b][t][k], where splits > 1
};

template <class S, class T, int Threads, int Columns>
struct Weigh {
  static constexpr int kThreads = Threads;
  static constexpr int kAhead = Columns == 1 ? 8 : 5;  // rows read before they are used
  struct Shared {};
  struct Place {
    std::int64_t outer, inner;

    FF_HD void advance(std::int64_t extent) {
      if (++inner == extent) {
        inner = 0;
        ++outer;
      }
    }
  };

  FF_HD static std::int64_t blocks_of(const Weighing<T>& p) {
    return p.batches * p.splits * ((p.g.t.count + Threads - 1) / Threads) *
           ((p.columns + Columns - 1) / Columns);
  }

  template <BlockContext Block>
  FF_HD static void run(const Block& block, const Weighing<T>& p) {
    const std::int64_t steps = (p.g.t.count + Threads - 1) / Threads;
    const std::int64_t column_steps = (p.columns + Columns - 1) / Columns;
    const std::int64_t blocks = blocks_of(p);
    for (std::int64_t task = block.index(); task < blocks; task += block.blocks()) {
      const std::int64_t t = task % steps * Threads + block.thread();
      const std::int64_t k = task / steps % column_steps * Columns;
      const std::int64_t split = task / steps / column_steps % p.splits;
      const std::int64_t b = task / steps / column_steps / p.splits;
      if (t < p.g.t.count) one(p, b, t, k, split);
    }
  }

 private:
  FF_HD static void one(const Weighing<T>& p, std::int64_t b, std::int64_t t, std::int64_t k,
                        std::int64_t split) {
    const std::int64_t first = split * p.split_rows, rest = p.rows - first;
    const std::int64_t end = first + (rest < p.split_rows ? rest : p.split_rows);
    const std::int64_t at = b * p.g.sample + p.g.t.offset(t);
    const S* g = static_cast<const S*>(p.g.data);
    const S* w = static_cast<const S*>(p.g.w);
    if (w != nullptr) w += p.g.weight_offset(t);
    const T* u = p.u + b * p.u_batch + k * p.u_k;
    const int columns = p.columns - k < Columns ? static_cast<int>(p.columns - k) : Columns;
    T sums[Columns];
    FF_UNROLL
    for (int j = 0; j < Columns; ++j) sums[j] = 0;
    Place place{first / p.inner_rows, first % p.inner_rows};
    for (std::int64_t r = first; r < end; r += kAhead) {
      T x[kAhead];
      Place next = place;
      FF_UNROLL
      for (int a = 0; a < kAhead; ++a) {
        x[a] = 0;
        if (r + a >= end) continue;
        x[a] = static_cast<T>(w == nullptr
                                  ? widen(g[at + next.outer * p.g_row[0] + next.inner * p.g_row[1]])
                                  : widen(w[next.inner * p.g.w_output]));
        next.advance(p.inner_rows);
      }
      FF_UNROLL
      for (int a = 0; a < kAhead; ++a) {
        if (r + a >= end) continue;
        const T* line = u + place.outer * p.u_row[0] + place.inner * p.u_row[1];
        FF_UNROLL
        for (int j = 0; j < Columns; ++j) {
          if (j < columns) sums[j] += x[a] * line[j * p.u_k];
        }
        place.advance(p.inner_rows);
      }
    }
    const T m = w == nullptr ? T(1) : static_cast<T>(widen(g[at]));
    for (int j = 0; j < Columns; ++j) {
      if (j >= columns) break;
      const T value = w == nullptr ? sums[j] : m * sums[j];
      if (p.splits > 1) {
        p.partial[((split * p.batches + b) * p.g.t.count + t) * p.columns + k + j] = value;
        continue;
      }
      T& to = p.out[b * p.out_batch + t * p.out_t + (k + j) * p.out_k];
      to = p.accumulate ? to + value : value;
    }
  }
};

// Adds up shares in their order: out[i,j,k] (+)= sum over splits of partial[split][i][j][k].
template <class T>
struct Collection {
  const T* partial = nullptr;
  std::int64_t splits = 0;
  std::int64_t extents[3] = {0, 0, 0}, strides[3] = {0, 0, 0};
  T* out = nullptr;
  bool accumulate = false;

  [[nodiscard]] FF_HD std::int64_t entries() const { return extents[0] * extents[1] * extents[2]; }
};

template <class T, int Threads>
struct Collect {
  static constexpr int kThreads = Threads;
  struct Shared {};

  FF_HD static std::int64_t blocks_of(const Collection<T>& p) {
    return (p.entries() + Threads - 1) / Threads;
  }

  // Without shares: zeros.
  template <BlockContext Block>
  FF_HD static void run(const Block& block, const Collection<T>& p) {
    const std::int64_t entries = p.entries();
    for (std::int64_t e = block.index() * Threads + block.thread(); e < entries;
         e += block.blocks() * Threads) {
      T sum = 0;
      for (std::int64_t split = 0; split < p.splits; ++split) sum += p.partial[split * entries + e];
      const std::int64_t row = e / p.extents[2];
      T& to = p.out[row / p.extents[1] * p.strides[0] + row % p.extents[1] * p.strides[1] +
                    e % p.extents[2] * p.strides[2]];
      to = p.accumulate ? to + sum : sum;
    }
  }
};

// out[i,j,k] = data[i,j,k] in the type of arithmetic.
template <class T>
struct Widening {
  const void* data = nullptr;
  DType dtype = dtype_of<T>;
  std::int64_t extents[3] = {0, 0, 0}, from[3] = {0, 0, 0}, to[3] = {0, 0, 0};
  T* out = nullptr;

  [[nodiscard]] FF_HD std::int64_t entries() const { return extents[0] * extents[1] * extents[2]; }
};

template <class T, int Threads>
struct Widen {
  static constexpr int kThreads = Threads;
  struct Shared {};

  FF_HD static std::int64_t blocks_of(const Widening<T>& p) {
    return (p.entries() + Threads - 1) / Threads;
  }

  template <BlockContext Block>
  FF_HD static void run(const Block& block, const Widening<T>& p) {
    for (std::int64_t e = block.index() * Threads + block.thread(); e < p.entries();
         e += block.blocks() * Threads) {
      const std::int64_t row = e / p.extents[2], k = e % p.extents[2];
      const std::int64_t i = row / p.extents[1], j = row % p.extents[1];
      p.out[i * p.to[0] + j * p.to[1] + k * p.to[2]] = static_cast<T>(
          element<T>(p.data, p.dtype, i * p.from[0] + j * p.from[1] + k * p.from[2]));
    }
  }
};

}  // namespace fastfisher::cuda
