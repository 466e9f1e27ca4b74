// SPDX-License-Identifier: Apache-2.0
//
// [out out_b] = left^-1 [w b] right^-1 with Cholesky factors of both sides, by panels of right-hand
// sides, each one thread's own:
//   for each panel of columns: z = left^-1 [w b]                   parallel over panels
//   for each panel of rows: out^T = right^-1 z^T                   parallel over panels
// o^2 r + r^2 o multiply-adds for o rows and r columns, as many as with inverses.
#pragma once

#include "fastfisher/error.hpp"
#include "fastfisher/ops.hpp"
#include "parallel.hpp"
#include "psd_factor.hpp"
#include "sweep_kernels.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

namespace fastfisher::cpu {

template <class T>
class SandwichFactors {
 public:
  /// Numbers of workspace, a multiple of 64 bytes.
  static std::int64_t numbers(std::int64_t rows, std::int64_t columns, int threads) {
    const std::int64_t width = sweep_kernels<T>().width;
    const std::int64_t o = round_up(rows, width), r = round_up(columns, width);
    return o * r + threads * 2 * std::max(o, r) * width;
  }

  SandwichFactors(const Context& ctx, int threads, const SandwichItem& item, T* memory)
      : ctx_(ctx),
        threads_(threads),
        w_(view_of<const T, 2>(item.w)),
        b_(view_of<const T, 1>(item.b)),
        out_(view_of<T, 2>(item.out)),
        out_b_(view_of<T, 1>(item.out_b)),
        rows_(w_.extent(0)),
        columns_(w_.extent(1) + (b_.extent(0) > 0 ? 1 : 0)),
        left_(const_cast<T*>(static_cast<const T*>(item.left.data)), rows_),
        right_(const_cast<T*>(static_cast<const T*>(item.right.data)), columns_),
        z_(memory),
        desks_(memory + left_.columns.rows * right_.columns.rows) {}

  /// Throws unless both sides are factors of as many rows, made on a processor of this kind.
  void check(std::size_t index) const {
    const auto expect = [&](const char* name, const FactorPanels<T>& side) {
      if (side.is_signed()) return;
      std::string argument(name);
      argument.append("[").append(std::to_string(index)).append("]");
      throw Error(ErrorCode::shape, "sandwich", argument,
                  "expected a factor of " + std::to_string(side.n) +
                      " rows that psd made on a processor of this kind");
    };
    expect("left", left_);
    expect("right", right_);
  }

  void run() {
    parallel_for(ctx_, threads_, right_.columns.rows / width_,
                 [&](std::int64_t panel, int worker) { of_columns(panel, desk_of(worker)); });
    parallel_for(ctx_, threads_, left_.columns.rows / width_,
                 [&](std::int64_t panel, int worker) { of_rows(panel, desk_of(worker)); });
  }

 private:
  std::int64_t desk() const { return std::max(left_.columns.rows, right_.columns.rows) * width_; }
  T* desk_of(int worker) const { return desks_ + worker * 2 * desk(); }
  T* z(std::int64_t panel) const { return z_ + panel * left_.columns.rows * width_; }

  // Rows of a panel times their scales: powers of two.
  void rescale(const FactorPanels<T>& factor, T* x) const {
    for (std::int64_t i = 0; i < factor.n; ++i, x += width_) {
      for (std::int64_t j = 0; j < width_; ++j) x[j] *= factor.scale[i];
    }
  }

  void of_columns(std::int64_t panel, T* desk) const {
    T* const x = z(panel);
    load(panel * width_, x);
    rescale(left_, x);
    substitute(kernels_, left_, x, desk);
    rescale(left_, x);
  }

  void of_rows(std::int64_t panel, T* desk) const {
    T *const x = desk, *const y = desk + this->desk();
    for (std::int64_t c = 0; c < right_.columns.rows / width_; ++c)
      kernels_.transpose(z(c) + panel * width_ * width_, x + c * width_ * width_);
    rescale(right_, x);
    substitute(kernels_, right_, x, y);
    rescale(right_, x);
    store(panel * width_, x);
  }

  // Columns of [w b] from `first` on.
  void load(std::int64_t first, T* x) const {
    const std::int64_t count = std::clamp<std::int64_t>(w_.extent(1) - first, 0, width_);
    const bool bias = columns_ > w_.extent(1) && first + width_ >= columns_;
    for (std::int64_t i = 0; i < rows_; ++i, x += width_) {
      if (w_.stride(1) == 1) {
        std::copy_n(&w_(i, first), count, x);
      } else {
        for (std::int64_t j = 0; j < count; ++j) x[j] = w_(i, first + j);
      }
      std::fill(x + count, x + width_, T(0));
      if (bias) x[columns_ - 1 - first] = b_(i);
    }
  }

  // Rows of [out out_b] from `first` on, which are columns of x.
  void store(std::int64_t first, const T* x) const {
    alignas(64) T tile[kSweepWidth * kSweepWidth];
    const std::int64_t rows = std::min(width_, rows_ - first);
    for (std::int64_t from = 0; from < columns_; from += width_) {
      kernels_.transpose(x + from * width_, tile);
      const std::int64_t count = std::clamp<std::int64_t>(w_.extent(1) - from, 0, width_);
      const bool bias = columns_ > w_.extent(1) && from + width_ >= columns_;
      for (std::int64_t i = 0; i < rows; ++i) {
        const T* const row = tile + i * width_;
        if (out_.stride(1) == 1) {
          std::copy_n(row, count, &out_(first + i, from));
        } else {
          for (std::int64_t j = 0; j < count; ++j) out_(first + i, from + j) = row[j];
        }
        if (bias) out_b_(first + i) = row[columns_ - 1 - from];
      }
    }
  }

  const SweepKernels<T>& kernels_ = sweep_kernels<T>();
  const Context& ctx_;
  int threads_;
  View<const T, 2> w_;
  View<const T, 1> b_;
  View<T, 2> out_;
  View<T, 1> out_b_;
  std::int64_t rows_, columns_, width_ = sweep_kernels<T>().width;
  FactorPanels<T> left_, right_;
  T *z_, *desks_;
};

}  // namespace fastfisher::cpu
