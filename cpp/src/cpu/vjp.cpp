// SPDX-License-Identifier: Apache-2.0
//
// J^T u from factors, for k columns:  W[o,i,k] = sum_{n,s} h[n,s,o,k] a[n,s,i]  with
//   h[n,s,o,k] = sum_c u[n,c,k] g[n,c,s,o],  the gradient of the pre-activations;
// the bias is a feature that is always 1.
//
//   for each piece, for each range of units, for each slab of rows (n,s)
//     h of the slab and its inputs (convolutions: unfolded), into panels     parallel over rows
//     for each tile of W: out (+)= h^T a                                     parallel over tiles
//
// Multiply-adds a sample and column: C T o + T i o. Bytes: g is read once, a once for each range of
// units. No thread adds to another's sums: slabs depend on the sizes alone, and within one an entry
// of W is summed by one thread in the order of rows, so threads never change a bit.
#include "backend.hpp"
#include "contract_kernels.hpp"
#include "parallel.hpp"
#include "products.hpp"
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
      for (const Piece& piece : pieces_) {
        const VjpPlan plan =
            vjp_plan(piece, columns, kernels_.mr, kernels_.nr, sizeof(T), threads_);
        const Work work{piece, plan, Inputs<S, T>(piece), Cotangents<S, T>(piece)};
        const std::int64_t rows = piece.samples * piece.positions;
        if (piece.explicit_form()) {
          parallel_for(
              ctx_, threads_, product_blocks(piece.features, kVjpStretch),
              [&](std::int64_t task, int worker) { stretch(work, task, desk(plan, worker)); });
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
  struct Work {
    const Piece& piece;
    const VjpPlan& plan;
    Inputs<S, T> inputs;
    Cotangents<S, T> cotangents;
  };
  // Where one thread keeps what it works on; the tile lies in the same place.
  struct Desk {
    T *lines, *rows, *weights;
  };

  Desk desk(const VjpPlan& plan, int worker) const {
    Desk d;
    d.lines = scratch_ + plan.shared_items + worker * plan.thread_items;
    d.rows = d.lines + plan.lines;
    d.weights = d.rows + kVjpOutputs * plan.rows;
    return d;
  }
  T* gradients() const { return scratch_; }
  T* inputs(const VjpPlan& plan) const {
    return scratch_ + product_round(plan.gradients.size(), ProductScratch::kAlignment);
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
    parallel_for(ctx_, threads_, product_blocks(rows, plan.task_rows),
                 [&](std::int64_t task, int worker) {
                   const Desk d = desk(plan, worker);
                   std::int64_t at = task * plan.task_rows;
                   const std::int64_t end = std::min(rows, at + plan.task_rows);
                   while (at < end) {
                     std::int64_t count = end - at;
                     if (piece.positions_inside()) {
                       // Those of one sample.
                       const std::int64_t n = (row + at) / piece.positions;
                       const std::int64_t s = (row + at) % piece.positions;
                       count = std::min(count, piece.positions - s);
                       convolution(work, left, right, pack, first, units, n, s, count, at, d);
                     } else {
                       count = std::min({count, plan.together, kProductDepth - at % kProductDepth});
                       positions(work, left, right, pack, first, units, row + at, count, at, d);
                     }
                     at += count;
                   }
                 });
    const std::int64_t across = product_blocks(piece.depth(), plan.tile_features);
    const std::int64_t tiles = product_blocks(units, plan.tile_units) * across;
    parallel_for(ctx_, threads_, tiles, [&](std::int64_t task, int worker) {
      tile(work, left, right, first, units, task / across * plan.tile_units,
           task % across * plan.tile_features, row == 0, desk(plan, worker).lines);
    });
  }

  // y[k][..] = sum_c u[n,c,k] g[n,c,outer,from ..], one row for each column, `pitch` apart.
  void combine(const Work& work, std::int64_t n, std::int64_t outer, std::int64_t from,
               std::int64_t count, T* to, std::int64_t pitch, bool add, const Desk& d) const {
    std::array<const T*, kVjpOutputs> x;
    std::array<T*, kProductColumns> y;
    const std::int64_t columns = work.plan.columns, all = work.piece.outputs;
    for (std::int64_t k = 0; k < columns; ++k) y[static_cast<std::size_t>(k)] = to + k * pitch;
    if (all == 0 && !add) {
      for (std::int64_t k = 0; k < columns; ++k) std::fill_n(to + k * pitch, count, T{0});
    }
    for (std::int64_t c = 0; c < all; c += kVjpOutputs) {
      const std::int64_t outputs = std::min(kVjpOutputs, all - c);
      for (std::int64_t q = 0; q < outputs; ++q) {
        x[static_cast<std::size_t>(q)] =
            work.piece.layer->separable()
                ? work.cotangents.separable(c + q, from, count, d.rows + q * work.plan.rows)
                : work.cotangents.row(n, c + q, outer, from, count, d.rows + q * work.plan.rows);
        for (std::int64_t k = 0; k < columns; ++k)
          d.weights[k * outputs + q] = u_(n, c + q, column_ + k);
      }
      contract_.combine(x.data(), outputs, d.weights, y.data(), columns, count, add || c > 0);
    }
  }

  // Rows (n,s) from `row` on, in one chunk of depth: units and features lie together.
  void positions(const Work& work, const Panels& left, const Panels& right, bool pack,
                 std::int64_t first, std::int64_t units, std::int64_t row, std::int64_t count,
                 std::int64_t at, const Desk& d) const {
    const VjpPlan& plan = work.plan;
    std::array<const T*, kVjpLines> rows;
    const auto sample = [&](std::int64_t r) { return (row + r) / work.piece.positions; };
    const auto position = [&](std::int64_t r) { return (row + r) % work.piece.positions; };
    for (std::int64_t r = 0; r < count; ++r) {
      T* h = d.lines + r * plan.columns * units;
      rows[static_cast<std::size_t>(r)] = h;
      combine(work, sample(r), position(r), first, units, h, units, false, d);
      if (!work.piece.layer->separable()) continue;
      const T* m = work.cotangents.row(sample(r), 0, position(r), first, units, d.rows);
      for (std::int64_t k = 0; k < plan.columns; ++k) {
        for (std::int64_t o = 0; o < units; ++o) h[k * units + o] *= m[o];
      }
    }
    for (std::int64_t k = 0; k < plan.columns; ++k) {
      scatter(rows.data(), count, 1, units, left, k * plan.plane, at, gradients(), false);
      for (std::int64_t r = 0; r < count; ++r) rows[static_cast<std::size_t>(r)] += units;
    }
    if (!pack) return;
    std::int64_t stride = 1;
    for (std::int64_t r = 0; r < count; ++r) {
      const Row<T> a =
          work.inputs.features(sample(r), position(r), d.lines + r * work.piece.features);
      rows[static_cast<std::size_t>(r)] = a.data;
      stride = a.stride;
    }
    scatter(rows.data(), count, stride, work.piece.features, right, 0, at, inputs(plan),
            work.piece.bias);
  }

  // Writes `count` lines of `entries` numbers, then a 1 if so `extended`, as lines of depth from
  // `at` on of the panels from row `row` on, and zeros to the end of the last panel. Panel by
  // panel: the same line of many panels would fall on the same few places of the cache.
  static void scatter(const T* const* lines, std::int64_t count, std::int64_t stride,
                      std::int64_t entries, const Panels& panels, std::int64_t row, std::int64_t at,
                      T* base, bool extended) {
    const std::int64_t width = panels.width, chunk = at / kProductDepth * kProductDepth;
    const std::int64_t pitch = panels.chunk_depth(chunk) * width;
    T* to = base + panels.at(chunk, row) + (at - chunk) * width;
    std::int64_t from = 0;
    const auto whole = [&](auto known) {
      constexpr std::int64_t kWidth = decltype(known)::value;
      if (kWidth != width || stride != 1) return;
      for (; from + kWidth <= entries; from += kWidth, to += pitch) {
        for (std::int64_t r = 0; r < count; ++r)
          std::memcpy(to + r * kWidth, lines[r] + from, kWidth * sizeof(T));
      }
    };
    // A width that the compiler knows makes a line a few moves.
    whole(std::integral_constant<std::int64_t, 4>{});
    whole(std::integral_constant<std::int64_t, 6>{});
    whole(std::integral_constant<std::int64_t, 8>{});
    whole(std::integral_constant<std::int64_t, 16>{});
    for (; from < entries + (extended ? 1 : 0); from += width, to += pitch) {
      for (std::int64_t r = 0; r < count; ++r) {
        for (std::int64_t q = 0; q < width; ++q) {
          to[r * width + q] = from + q < entries                ? lines[r][(from + q) * stride]
                              : extended && from + q == entries ? T{1}
                                                                : T{0};
        }
      }
    }
  }

  // Positions s .. s + count of one sample: they lie together.
  void convolution(const Work& work, const Panels& left, const Panels& right, bool pack,
                   std::int64_t first, std::int64_t units, std::int64_t n, std::int64_t s,
                   std::int64_t count, std::int64_t at, const Desk& d) const {
    const VjpPlan& plan = work.plan;
    const std::int64_t width = left.width;
    std::array<const T*, 64> rows;
    for (std::int64_t o = 0; o < units; o += width) {
      const std::int64_t used = std::min(width, units - o);
      for (std::int64_t r = 0; r < used; ++r) {
        T* line = d.lines + r * count;
        if (work.piece.layer->separable()) {
          separable_unit(work, n, first + o + r, s, count, line, width * count, d);
        } else {
          combine(work, n, first + o + r, s, count, line, width * count, false, d);
        }
        rows[static_cast<std::size_t>(r)] = line;
      }
      for (std::int64_t k = 0; k < plan.columns; ++k) {
        pack_panel(kernels_, rows.data(), used, 1, left, k * plan.plane + o, at, at + count,
                   gradients());
        for (std::int64_t r = 0; r < used; ++r) rows[static_cast<std::size_t>(r)] += width * count;
      }
    }
    if (!pack) return;
    for (std::int64_t i = 0; i < work.piece.depth(); i += right.width) {
      const std::int64_t used = std::min(right.width, work.piece.depth() - i);
      for (std::int64_t r = 0; r < used; ++r) {
        T* line = d.lines + r * count;
        work.inputs.positions(n, i + r, s, count, line);
        rows[static_cast<std::size_t>(r)] = line;
      }
      pack_panel(kernels_, rows.data(), used, 1, right, i, at, at + count, inputs(plan));
    }
  }

  // h of one unit for g = m w.
  void separable_unit(const Work& work, std::int64_t n, std::int64_t o, std::int64_t s,
                      std::int64_t count, T* to, std::int64_t pitch, const Desk& d) const {
    const T* m = work.cotangents.row(n, 0, o, s, count, d.rows);
    T buffer;
    for (std::int64_t k = 0; k < work.plan.columns; ++k) {
      T weight = 0;
      for (std::int64_t c = 0; c < work.piece.outputs; ++c)
        weight += u_(n, c, column_ + k) * *work.cotangents.separable(c, o, 1, &buffer);
      for (std::int64_t q = 0; q < count; ++q) to[k * pitch + q] = weight * m[q];
    }
  }

  // Tile of W at unit o and feature i of the slab.
  void tile(const Work& work, const Panels& left, const Panels& right, std::int64_t first,
            std::int64_t units, std::int64_t o, std::int64_t i, bool assign, T* w) {
    const VjpPlan& plan = work.plan;
    const std::int64_t tall = std::min(plan.tile_units, units - o);
    const std::int64_t wide = std::min(plan.tile_features, work.piece.depth() - i);
    const std::int64_t pitch = product_round(wide, right.width);
    const std::int64_t plane = product_round(tall, left.width) * pitch;
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

  // out[p + q, k] (+)= from[k plane + q].
  void store(std::int64_t p, const T* from, std::int64_t count, std::int64_t plane,
             std::int64_t columns, bool assign) {
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
      combine(work, n, 0, from, count, d.lines, count, true, d);
    store(work.piece.weight + from, d.lines, count, count, work.plan.columns, true);
  }

  const Context& ctx_;
  const std::vector<Piece>& pieces_;
  const View<const T, 3> u_;
  const View<T, 2> out_;
  int threads_;
  T* scratch_;
  const TileKernels<T>& kernels_ = tile_kernels<T>();
  const ContractKernels<T>& contract_ = contract_kernels<T>();
  std::int64_t column_ = 0;
};

std::int64_t bytes_of(const std::vector<Piece>& pieces, DType dtype, std::int64_t columns,
                      int threads) {
  return visit_dtype(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const TileKernels<T>& kernels = tile_kernels<T>();
    std::int64_t most = 0;
    for (const std::int64_t at_once : column_counts(columns)) {
      for (const Piece& piece : pieces) {
        const VjpPlan plan = vjp_plan(piece, at_once, kernels.mr, kernels.nr, sizeof(T), threads);
        most = std::max(most, plan.shared_items + threads * plan.thread_items);
      }
    }
    return most * static_cast<std::int64_t>(sizeof(T)) + ProductScratch::kAlignment;
  });
}

}  // namespace

std::int64_t vjp_workspace(const Context& ctx, std::span<const LayerFactors> layers,
                           std::int64_t columns) {
  return bytes_of(pieces_of(layers), layers.front().g.dtype, columns,
                  product_threads(ctx, product_flops(layers, columns)));
}

ProductReport vjp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& u,
                  const ArrayRef& out) {
  const ParallelRegion region;
  const int threads = product_threads(ctx, product_flops(layers, out.extent(1)));
  const std::vector<Piece> pieces = pieces_of(layers);
  const DType dtype = layers.front().g.dtype;
  const ProductScratch scratch(ctx, "vjp", bytes_of(pieces, dtype, out.extent(1), threads));
  visit_storage(dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = std::conditional_t<std::is_same_v<S, double>, double, float>;
    Vjp<S, T>(ctx, pieces, u, out, threads, scratch.data()).run();
  });
  return verdict(ctx, threads, layers, u, out);
}

}  // namespace fastfisher::cpu
