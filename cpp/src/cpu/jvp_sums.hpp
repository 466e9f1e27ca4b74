// SPDX-License-Identifier: Apache-2.0
//
// The cotangents' part of J v: out[n,c,k] += sum_{s,o} g[n,c,s,o] z[n,s,o,k] for a block of units
// and positions whose z is in cache. See jvp.cpp for where it stands.
#pragma once

#include "contract_kernels.hpp"
#include "jvp_plan.hpp"
#include "products.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace fastfisher::cpu {

/// One piece and the columns that are multiplied at once.
template <class S, class T>
struct JvpWork {
  const Piece& piece;
  const JvpPlan& plan;
  const Inputs<S, T>& inputs;
  const Cotangents<S, T>& cotangents;
  std::int64_t column;  ///< the first one

  /// Units of a block; of an explicit Jacobian, parameters.
  [[nodiscard]] std::int64_t units(std::int64_t block) const {
    const std::int64_t all = piece.explicit_form() ? piece.features : piece.units;
    return std::min(plan.units, all - block * plan.units);
  }
};

/// Where one thread keeps what it works on.
template <class T>
struct JvpDesk {
  T *inputs, *z, *lines, *rows, *sums;
};

template <class S, class T>
class JvpSums {
 public:
  using Work = JvpWork<S, T>;
  using Desk = JvpDesk<T>;

  explicit JvpSums(const View<T, 3>& out) : out_(out) {}

  /// out[n] += g[n] z for one block of units and positions of one sample, whose cotangents have
  /// been `asked` for or not.
  void add(const Work& work, std::int64_t n, std::int64_t first, std::int64_t units, std::int64_t s,
           std::int64_t count, const T* z, const ZLayout& layout, bool asked, const Desk& d) const {
    if (columns_inside(work.piece, work.plan.columns)) {
      weigh(work, n, first, units, s, count, z, layout, d);
    } else if (work.piece.layer->separable()) {
      contract_separable(work, n, first, units, s, count, z, layout, d);
    } else {
      contract(work, n, first, units, s, count, z, layout, asked, d);
    }
  }

  /// Explicit Jacobian: the blocks' stretches of parameters, each for all samples of the group.
  void add_stretches(const Work& work, std::int64_t block, std::int64_t blocks, std::int64_t n,
                     std::int64_t samples, const T* packed, const Desk& d) const {
    std::array<const T*, kJvpOutputs> x;
    std::array<const T*, kProductColumns> y;
    const std::int64_t columns = work.plan.columns;
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t count = work.units(block + b), from = (block + b) * work.plan.units;
      for (std::int64_t k = 0; k < columns; ++k)
        y[static_cast<std::size_t>(k)] = packed + b * work.plan.vector.size() + k * work.plan.units;
      for (std::int64_t at = n; at < n + samples; ++at) {
        for (std::int64_t c = 0; c < work.piece.outputs; c += kJvpOutputs) {
          const std::int64_t outputs = std::min(kJvpOutputs, work.piece.outputs - c);
          for (std::int64_t q = 0; q < outputs; ++q) {
            x[static_cast<std::size_t>(q)] =
                work.cotangents.row(at, c + q, 0, from, count, d.rows + q * work.plan.rows);
          }
          std::fill_n(d.sums, outputs * columns, T{0});
          contract_.dots(x.data(), outputs, y.data(), columns, count, d.sums, 0);
          store(work, at, c, outputs, d.sums);
        }
      }
    }
  }

 private:
  // Columns of z inside.
  void weigh(const Work& work, std::int64_t n, std::int64_t first, std::int64_t units,
             std::int64_t s, std::int64_t count, const T* z, const ZLayout& layout,
             const Desk& d) const {
    const std::int64_t columns = work.plan.columns;
    std::array<const T*, kJvpManyOutputs> x;
    for (std::int64_t c = 0; c < work.piece.outputs; c += kJvpManyOutputs) {
      const std::int64_t outputs = std::min(kJvpManyOutputs, work.piece.outputs - c);
      std::fill_n(d.sums, outputs * columns, T{0});
      for (std::int64_t at = 0; at < count; ++at) {
        for (std::int64_t q = 0; q < outputs; ++q) {
          x[static_cast<std::size_t>(q)] =
              work.cotangents.row(n, c + q, s + at, first, units, d.rows + q * work.plan.rows);
        }
        contract_.weigh(x.data(), outputs, z + at * layout.pitch, columns, units, d.sums);
      }
      store(work, n, c, outputs, d.sums);
    }
  }

  // Positions or units inside.
  void contract(const Work& work, std::int64_t n, std::int64_t first, std::int64_t units,
                std::int64_t s, std::int64_t count, const T* z, const ZLayout& layout, bool asked,
                const Desk& d) const {
    const bool inside = work.piece.positions_inside();
    const std::int64_t pitch = layout.pitch;
    const std::int64_t outers = inside ? units : count, inner = inside ? count : units;
    const std::int64_t outer_from = inside ? first : s, inner_from = inside ? s : first;
    // Rows that follow each other in memory on both sides are one long row; where several columns
    // meet it, short enough for the first cache level.
    const std::int64_t columns = work.plan.columns;
    const std::int64_t long_row = columns > 1 ? kJvpCachedRow : kJvpLongRow;
    const std::int64_t together = pitch == inner && work.cotangents.packed(inner)
                                      ? std::max<std::int64_t>(1, long_row / inner)
                                      : 1;
    // Rows that nobody has asked for before are asked for while those before them are read.
    const std::int64_t ahead = asked               ? 0
                               : outers > together ? work.cotangents.distance(0, together)
                                                   : work.cotangents.distance(kJvpOutputs, 0);
    std::array<const T*, kJvpOutputs> x;
    std::array<const T*, kProductColumns> y;
    for (std::int64_t c = 0; c < work.piece.outputs; c += kJvpOutputs) {
      const std::int64_t outputs = std::min(kJvpOutputs, work.piece.outputs - c);
      std::fill_n(d.sums, outputs * columns, T{0});
      for (std::int64_t outer = 0; outer < outers; outer += together) {
        const std::int64_t entries = std::min(together, outers - outer) * inner;
        for (std::int64_t k = 0; k < columns; ++k)
          y[static_cast<std::size_t>(k)] = z + k * layout.plane + outer * pitch;
        for (std::int64_t q = 0; q < outputs; ++q) {
          x[static_cast<std::size_t>(q)] = work.cotangents.row(
              n, c + q, outer_from + outer, inner_from, inner, d.rows + q * work.plan.rows);
        }
        contract_.dots(x.data(), outputs, y.data(), columns, entries, d.sums, ahead);
      }
      store(work, n, c, outputs, d.sums);
    }
  }

  // The same for g = m w: positions first, then units.
  void contract_separable(const Work& work, std::int64_t n, std::int64_t first, std::int64_t units,
                          std::int64_t s, std::int64_t count, const T* z, const ZLayout& layout,
                          const Desk& d) const {
    const bool inside = work.piece.positions_inside();
    const std::int64_t columns = work.plan.columns;
    T* sums = d.sums;  // [k, o]
    std::fill_n(sums, columns * units, T{0});
    for (std::int64_t outer = 0; outer < (inside ? units : count); ++outer) {
      const T* m = work.cotangents.row(n, 0, (inside ? first : s) + outer, inside ? s : first,
                                       inside ? count : units, d.rows);
      for (std::int64_t k = 0; k < columns; ++k) {
        if (inside) {
          const T* line = z + k * layout.plane + outer * layout.pitch;
          contract_.dots(&m, 1, &line, 1, count, sums + k * units + outer, 0);
        } else {
          const T* line = z + k * layout.plane + outer * layout.pitch;
          for (std::int64_t o = 0; o < units; ++o) sums[k * units + o] += m[o] * line[o];
        }
      }
    }
    std::array<const T*, kProductColumns> y;
    for (std::int64_t k = 0; k < columns; ++k) y[static_cast<std::size_t>(k)] = sums + k * units;
    std::array<T, kProductColumns> result;
    for (std::int64_t c = 0; c < work.piece.outputs; ++c) {
      const T* w = work.cotangents.separable(c, first, units, d.rows);
      result.fill(0);
      contract_.dots(&w, 1, y.data(), columns, units, result.data(), 0);
      store(work, n, c, 1, result.data());
    }
  }

  void store(const Work& work, std::int64_t n, std::int64_t c, std::int64_t outputs,
             const T* sums) const {
    for (std::int64_t q = 0; q < outputs; ++q) {
      for (std::int64_t k = 0; k < work.plan.columns; ++k)
        out_(n, c + q, work.column + k) += sums[q * work.plan.columns + k];
    }
  }

  const View<T, 3> out_;
  const ContractKernels<T>& contract_ = contract_kernels<T>();
};

}  // namespace fastfisher::cpu
