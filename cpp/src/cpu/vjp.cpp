// SPDX-License-Identifier: Apache-2.0
//
// J^T u from factors, for k columns:  W[o,i,k] = sum_{n,s} h[n,s,o,k] a[n,s,i]  with
//   h[n,s,o,k] = sum_c u[n,c,k] g[n,c,s,o],  the gradient of the pre-activations;
// the bias is a feature that is always 1.
//
//   where W is small, for each part of the rows (n,s), for each few of them    parallel over parts
//     h and inputs into panels, both stay in cache; sums of the part += h^T a
//   then the parts of each entry of W are added in order                       parallel over units
//
//   elsewhere, for each range of units, for each slab of rows
//     h of the slab and its inputs (convolutions: unfolded), into panels       parallel over rows
//     for each tile of W: out (+)= h^T a                                       parallel over tiles
//
// Multiply-adds a sample and column: C T o + T i o. Bytes: g is read once, a once for each range of
// units. No thread adds to another's sums: parts and slabs depend on the sizes alone, and within
// one an entry of W is summed by one thread in the order of rows, so threads never change a bit.
// With few columns the product takes no longer than reading g, so what the next rows are formed of
// is asked for while these are multiplied.
#include "backend.hpp"
#include "contract_kernels.hpp"
#include "parallel.hpp"
#include "product_op.hpp"
#include "products.hpp"
#include "vjp_form.hpp"
#include "vjp_plan.hpp"

#include <array>
#include <cstring>
#include <type_traits>

namespace fastfisher::cpu {
namespace {

template <class S, class T>
class Vjp {
 public:
  Vjp(const Context& ctx, const std::vector<Piece>& pieces, const ArrayRef& u, const ArrayRef& out,
      int threads, std::byte* scratch)
      : ctx_(ctx),
        pieces_(pieces),
        u_(view_of<const T, 3>(u)),
        out_(view_of<T, 2>(out)),
        threads_(threads),
        scratch_(reinterpret_cast<T*>(scratch)) {}

  void run() {
    for (column_ = 0; column_ < out_.extent(1); column_ += kProductColumns) {
      const std::int64_t columns = std::min(kProductColumns, out_.extent(1) - column_);
      const Form form(u_, column_);
      form_ = &form;
      for (const Piece& piece : pieces_) {
        const VjpPlan plan =
            vjp_plan(piece, columns, kernels_.mr, kernels_.nr, sizeof(T), threads_);
        const Work work{piece, plan, Inputs<S, T>(piece), Cotangents<S, T>(piece)};
        const std::int64_t rows = piece.samples * piece.positions;
        if (piece.explicit_form()) {
          parallel_for(
              ctx_, threads_, ceil_div(piece.features, kVjpStretch),
              [&](std::int64_t task, int worker) { stretch(work, task, desk(plan, worker)); });
          continue;
        }
        if (plan.parts > 0) {
          in_parts(work);
          continue;
        }
        for (std::int64_t first = 0; first < piece.units; first += plan.units) {
          if (rows == 0) clear(work, first);
          for (std::int64_t row = 0; row < rows; row += plan.slab) slab(work, first, row);
        }
      }
    }
  }

 private:
  using Form = VjpForm<S, T>;
  using Work = typename Form::Work;
  using Desk = typename Form::Desk;
  using Panelled = typename Form::VjpPanels;

  Desk desk(const VjpPlan& plan, int worker) const {
    Desk d;
    T* at = scratch_ + plan.shared_items + worker * plan.thread_items;
    const bool parts = plan.parts > 0;
    d.gradients = at;
    d.inputs = d.gradients + (parts ? plan.gradients.size() : 0);
    d.image = d.inputs + (parts ? plan.inputs.size() : 0);
    d.lines = d.image + plan.image;
    d.rows = d.lines + plan.lines;
    d.weights = d.rows + kVjpOutputs * plan.rows;
    return d;
  }
  T* gradients() const { return scratch_; }
  T* inputs(const VjpPlan& plan) const {
    return scratch_ + round_up(plan.gradients.size(), ProductScratch::kAlignment);
  }

  // Rows row .. of the piece for its units first .. .
  void slab(const Work& work, std::int64_t first, std::int64_t row) {
    const Piece& piece = work.piece;
    const VjpPlan& plan = work.plan;
    const std::int64_t rows = std::min(plan.slab, piece.samples * piece.positions - row);
    const std::int64_t units = std::min(plan.units, piece.units - first);
    const Panels left(rows, kernels_.mr, plan.columns * plan.plane);
    const Panels right(rows, kernels_.nr, piece.depth());
    // With a single slab its inputs serve all ranges of units.
    const bool pack = first == 0 || plan.slab < piece.samples * piece.positions;
    const Panelled to{left,       right,     gradients(), pack ? inputs(plan) : nullptr,
                      plan.plane, piece.bias};
    parallel_for(
        ctx_, threads_, ceil_div(rows, plan.task_rows), [&](std::int64_t task, int worker) {
          Desk d = desk(plan, worker);
          const std::int64_t at = task * plan.task_rows;
          form_->form(work, to, first, units, row, at, std::min(rows, at + plan.task_rows), d);
        });
    const std::int64_t across = ceil_div(piece.depth(), plan.tile_features);
    const std::int64_t tiles = ceil_div(units, plan.tile_units) * across;
    parallel_for(ctx_, threads_, tiles, [&](std::int64_t task, int worker) {
      tile(work, left, right, first, units, task / across * plan.tile_units,
           task % across * plan.tile_features, row == 0, desk(plan, worker).lines);
    });
  }

  // The rows fall into parts, each of which one thread forms, multiplies and sums piecemeal in its
  // cache; then the parts of an entry of W are added in order.
  void in_parts(const Work& work) {
    const VjpPlan& plan = work.plan;
    // What meets where does not depend on the ranges of units: they may depend on the threads.
    const std::int64_t range = round_up(ceil_div(work.piece.units, plan.ranges), kernels_.mr);
    const std::int64_t ranges = ceil_div(work.piece.units, range);
    // A thread's parts follow each other, for it asks for the next one's rows.
    parallel_shares(ctx_, threads_, plan.parts * ranges, [&](std::int64_t task, int worker) {
      const std::int64_t first = task % ranges * range;
      part(work, task / ranges, first, std::min(range, work.piece.units - first),
           desk(plan, worker));
    });
    parallel_for(ctx_, threads_, ceil_div(work.piece.units, kVjpJoined),
                 [&](std::int64_t task, int worker) {
                   const std::int64_t first = task * kVjpJoined;
                   join(work, first, std::min(kVjpJoined, work.piece.units - first),
                        desk(plan, worker).lines);
                 });
  }

  // Sums of one part: [panel of features][k, o][nr], then of the bias [k, o].
  void part(const Work& work, std::int64_t index, std::int64_t first, std::int64_t units, Desk d) {
    const VjpPlan& plan = work.plan;
    const std::int64_t all = work.piece.samples * work.piece.positions;
    const std::int64_t from = index * plan.part_rows, end = std::min(all, from + plan.part_rows);
    const std::int64_t plane = round_up(units, kernels_.mr), nr = kernels_.nr;
    const std::int64_t strip = plan.columns * plan.plane * nr;
    T* sums = scratch_ + index * plan.part_items;
    T* bias = sums + plan.inputs.rows / nr * strip;
    for (std::int64_t row = from; row < end; row += plan.slab) {
      const std::int64_t depth = std::min(plan.slab, end - row);
      const Panels left(depth, kernels_.mr, plan.columns * plane);
      const Panels right(depth, nr, plan.inputs.rows);
      form_->form(work, Panelled{left, right, d.gradients, d.inputs, plane, false}, first, units,
                  row, 0, depth, d);
      // What the next rows are formed of comes in meanwhile: inputs, then cotangents.
      const std::int64_t next = std::min(row + plan.slab, end), positions = work.piece.positions;
      Ahead inputs, cotangents;
      if (next < all && !work.piece.positions_inside()) {
        inputs = work.inputs.ahead(next, std::min(plan.slab, all - next));
        cotangents = work.cotangents.ahead(work.piece, next / positions, next % positions,
                                           std::min(plan.slab, all - next));
      }
      d.asked = cotangents.bytes > 0;
      const std::int64_t share =
          cotangents.bytes / std::max<std::int64_t>(1, right.rows / nr * plan.columns - 1) + 1;
      std::int64_t at = -share;
      for (std::int64_t j = 0; j < right.rows; j += nr) {
        for (std::int64_t k = 0; k < plan.columns; ++k, at += share) {
          kernels_.product_ahead(d.gradients + left.at(0, k * plane), d.inputs + right.at(0, j),
                                 depth, depth * left.width, plane / left.width, right.rows - j,
                                 sums + j / nr * strip + (k * plan.plane + first) * nr, nr,
                                 row > from, at < 0 ? inputs : cotangents,
                                 std::max<std::int64_t>(0, at), at < 0 ? inputs.bytes : share);
        }
      }
      if (!work.piece.bias) continue;
      for (std::int64_t k = 0; k < plan.columns; ++k) {
        T* to = bias + k * plan.plane + first;
        if (row == from) std::fill_n(to, plane, T{0});
        for (std::int64_t o = 0; o < plane; o += left.width)
          contract_.sum_panel(d.gradients + left.at(0, k * plane + o), left.width, depth, to + o);
      }
    }
  }

  // Adds the parts of `units` units from `first` on.
  void join(const Work& work, std::int64_t first, std::int64_t units, T* lines) {
    const VjpPlan& plan = work.plan;
    const Piece& piece = work.piece;
    const std::int64_t nr = kernels_.nr, strip = plan.columns * plan.plane * nr;
    const std::int64_t depth = piece.depth(), plane = units * depth;
    const std::int64_t taps = plan.channel_panels > 0 ? piece.layer->conv.taps() : 1;
    std::array<T, 64 * kVjpJoined> sums;
    const auto add = [&](const T* from, std::int64_t count) {
      std::copy_n(from, count, sums.data());
      for (std::int64_t p = 1; p < plan.parts; ++p) {
        for (std::int64_t q = 0; q < count; ++q)
          sums[static_cast<std::size_t>(q)] += from[p * plan.part_items + q];
      }
    };
    for (std::int64_t k = 0; k < plan.columns; ++k) {
      T* const to = lines + k * plane;
      const T* const column = scratch_ + (k * plan.plane + first) * nr;
      for (std::int64_t j = 0; j < plan.inputs.rows / nr; ++j) {
        add(column + j * strip, units * nr);
        // Features in the order of W: with channels innermost in the panels, `taps` apart.
        const std::int64_t tap = taps > 1 ? j / plan.channel_panels : 0;
        const std::int64_t c = (taps > 1 ? j % plan.channel_panels : j) * nr;
        const std::int64_t count = std::min(nr, piece.features / taps - c);
        for (std::int64_t o = 0; o < units; ++o) {
          for (std::int64_t q = 0; q < count; ++q)
            to[o * depth + (c + q) * taps + tap] = sums[static_cast<std::size_t>(o * nr + q)];
        }
      }
      if (!piece.bias) continue;
      add(scratch_ + plan.inputs.rows / nr * strip + k * plan.plane + first, units);
      for (std::int64_t o = 0; o < units; ++o)
        to[o * depth + piece.features] = sums[static_cast<std::size_t>(o)];
    }
    for (std::int64_t o = 0; o < units; ++o) {
      const T* line = lines + o * depth;
      if (piece.features > 0)
        store(piece.parameter(first + o, 0), line, piece.features, plane, plan.columns, true);
      if (piece.bias) {
        store(piece.parameter(first + o, piece.features), line + piece.features, 1, plane,
              plan.columns, true);
      }
    }
  }

  // Tile of W at unit o and feature i of the slab.
  void tile(const Work& work, const Panels& left, const Panels& right, std::int64_t first,
            std::int64_t units, std::int64_t o, std::int64_t i, bool assign, T* w) {
    const VjpPlan& plan = work.plan;
    const std::int64_t tall = std::min(plan.tile_units, units - o);
    const std::int64_t wide = std::min(plan.tile_features, work.piece.depth() - i);
    const std::int64_t pitch = round_up(wide, right.width);
    const std::int64_t plane = round_up(tall, left.width) * pitch;
    for (std::int64_t k = 0; k < plan.columns; ++k) {
      multiply(kernels_, left, gradients(), k * plan.plane + o, tall, right, inputs(plan), i, wide,
               w + k * plane, pitch);
    }
    for (std::int64_t r = 0; r < tall; ++r) {
      const T* line = w + r * pitch;
      const std::int64_t weights = std::min(wide, work.piece.features - i);
      if (weights > 0)
        store(work.piece.parameter(first + o + r, i), line, weights, plane, plan.columns, assign);
      if (weights < wide) {
        store(work.piece.parameter(first + o + r, work.piece.features), line + weights, 1, plane,
              plan.columns, assign);
      }
    }
  }

  // out[p + q, k] (+)= from[k plane + q]. Entries one by one take longer than the products of few
  // samples: where parameters follow each other in memory they are copied, or packed, as lines.
  void store(std::int64_t p, const T* from, std::int64_t count, std::int64_t plane,
             std::int64_t columns, bool assign) {
    if (columns == 1 && out_.stride(0) == 1) {
      T* const to = &out_(p, column_);
      if (assign) {
        std::copy_n(from, count, to);
      } else {
        for (std::int64_t q = 0; q < count; ++q) to[q] += from[q];
      }
      return;
    }
    if (assign && out_.stride(1) == 1 && out_.stride(0) == columns) {
      const T* rows[kProductColumns];
      for (std::int64_t k = 0; k < columns; ++k) rows[k] = from + k * plane;
      pack_of<T>(kernels_)(rows, columns, columns, 1, count, 1.0, &out_(p, column_));
      return;
    }
    for (std::int64_t q = 0; q < count; ++q) {
      T* to = &out_(p + q, column_);
      for (std::int64_t k = 0; k < columns; ++k) {
        T& entry = to[k * out_.stride(1)];
        entry = assign ? from[k * plane + q] : entry + from[k * plane + q];
      }
    }
  }

  void clear(const Work& work, std::int64_t first) {
    const T zero[kProductColumns] = {};
    for (std::int64_t o = first; o < std::min(work.piece.units, first + work.plan.units); ++o) {
      for (std::int64_t i = 0; i < work.piece.depth(); ++i)
        store(work.piece.parameter(o, i), zero, 1, 1, work.plan.columns, true);
    }
  }

  // Explicit Jacobian: a stretch of parameters, all samples.
  void stretch(const Work& work, std::int64_t task, const Desk& d) {
    const std::int64_t from = task * kVjpStretch;
    const std::int64_t count = std::min(kVjpStretch, work.piece.features - from);
    std::fill_n(d.lines, work.plan.columns * count, T{0});
    for (std::int64_t n = 0; n < work.piece.samples; ++n)
      form_->combine(work, n, 0, from, count, d.lines, count, true, d);
    store(work.piece.weight + from, d.lines, count, count, work.plan.columns, true);
  }

  const Context& ctx_;
  const std::vector<Piece>& pieces_;
  const View<const T, 3> u_;
  const View<T, 2> out_;
  int threads_;
  T* scratch_;
  const Form* form_ = nullptr;
  const TileKernels<T>& kernels_ = product_kernels<T>();
  const ContractKernels<T>& contract_ = contract_kernels<T>();
  std::int64_t column_ = 0;
};

constexpr auto kPlanOf = []<class T>(T, const Piece& piece, std::int64_t columns, int threads) {
  const TileKernels<T>& kernels = product_kernels<T>();
  return vjp_plan(piece, columns, kernels.mr, kernels.nr, sizeof(T), threads);
};

}  // namespace

std::int64_t vjp_workspace(const Context& ctx, std::span<const LayerFactors> layers,
                           std::int64_t columns) {
  return product_workspace(ctx, layers, columns, kPlanOf);
}

ProductReport vjp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& u,
                  const ArrayRef& out) {
  return run_product<Vjp>(ctx, "vjp", layers, out.extent(1), u, out, kPlanOf);
}

}  // namespace fastfisher::cpu
