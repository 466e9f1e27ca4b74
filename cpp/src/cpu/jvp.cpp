// SPDX-License-Identifier: Apache-2.0
//
// J v from factors, for k columns:  out[n,c,k] = sum_{s,o} g[n,c,s,o] z[n,s,o,k]  with
//   z[n,s,o,k] = sum_i a[n,s,i] V[o,i,k] + b[o,k],  the change of the pre-activations.
//
//   for each piece, for each chunk of blocks of units
//     pack the chunk's rows of V into panels                       parallel over panels
//     for each group of samples                                    parallel over groups
//       for each block of positions: pack (convolutions: unfold) its inputs
//         for each block of units: z of the two blocks, then out += g z     z stays in cache
//
// Multiply-adds a sample and column: T i o + C T o. Bytes: a and g are read once for each chunk, V
// once; nothing of the size of z or of unfolded inputs is stored. Units of one entry of `out` are
// summed block by block in order, so threads never change a bit. With few columns the product takes
// no longer than reading g, so a group's cotangents are asked for while its z is computed.
#include "backend.hpp"
#include "jvp_plan.hpp"
#include "jvp_sums.hpp"
#include "jvp_unfold.hpp"
#include "parallel.hpp"
#include "product_op.hpp"
#include "products.hpp"

#include <array>

namespace fastfisher::cpu {
namespace {

template <class S, class T>
class Jvp {
 public:
  Jvp(const Context& ctx, const std::vector<Piece>& pieces, const ArrayRef& v, const ArrayRef& out,
      int threads, std::byte* scratch)
      : ctx_(ctx),
        pieces_(pieces),
        v_(view_of<const T, 2>(v)),
        out_(view_of<T, 3>(out)),
        sums_(out_),
        threads_(threads),
        scratch_(reinterpret_cast<T*>(scratch)) {}

  void run() {
    for (std::int64_t n = 0; n < out_.extent(0); ++n) {
      for (std::int64_t c = 0; c < out_.extent(1); ++c) {
        for (std::int64_t k = 0; k < out_.extent(2); ++k) out_(n, c, k) = 0;
      }
    }
    for (std::int64_t column = 0; column < out_.extent(2); column += kProductColumns) {
      const std::int64_t columns = std::min(kProductColumns, out_.extent(2) - column);
      for (const Piece& piece : pieces_) {
        const JvpPlan plan =
            jvp_plan(piece, columns, kernels_.mr, kernels_.nr, sizeof(T), threads_);
        if (piece.samples * piece.positions == 0) continue;
        const Inputs<S, T> inputs(piece);
        const Cotangents<S, T> cotangents(piece);
        for (std::int64_t block = 0; block < plan.blocks; block += plan.chunk)
          chunk({piece, plan, inputs, cotangents, column}, block);
      }
    }
  }

 private:
  using Work = JvpWork<S, T>;
  using Desk = JvpDesk<T>;

  Desk desk(const JvpPlan& plan, int worker) const {
    Desk d;
    d.inputs = scratch_ + plan.shared_items + worker * plan.thread_items;
    d.z = d.inputs + plan.inputs.size();
    d.lines = d.z + plan.z;
    d.rows = d.lines + plan.lines;
    d.sums = d.rows + kJvpManyOutputs * plan.rows;
    return d;
  }

  void chunk(const Work& work, std::int64_t block) {
    const JvpPlan& plan = work.plan;
    const std::int64_t blocks = std::min(plan.chunk, plan.blocks - block);
    const std::int64_t panels =
        work.piece.explicit_form() ? plan.columns : plan.vector.rows / plan.vector.width;
    parallel_for(ctx_, threads_, blocks * panels, [&](std::int64_t task, int) {
      T* to = scratch_ + task / panels * plan.vector.size();
      if (work.piece.explicit_form()) {
        copy_stretch(work, block + task / panels, task % panels, to);
      } else {
        pack_vector(work, block + task / panels, task % panels, to);
      }
    });
    // A thread's groups follow each other, for it asks for the next one's inputs.
    parallel_shares(ctx_, threads_, ceil_div(work.piece.samples, plan.samples),
                    [&](std::int64_t task, int worker) {
                      const Desk d = desk(plan, worker);
                      const std::int64_t n = task * plan.samples;
                      const std::int64_t samples = std::min(plan.samples, work.piece.samples - n);
                      if (work.piece.explicit_form())
                        return sums_.add_stretches(work, block, blocks, n, samples, scratch_, d);
                      for (std::int64_t s = 0; s < work.piece.positions; s += plan.positions) {
                        positions(work, block, blocks, n, samples, s,
                                  std::min(plan.positions, work.piece.positions - s), d);
                      }
                    });
  }

  // Panel `index` of a block: rows (k, o) or (o, k), the bias as a last feature.
  void pack_vector(const Work& work, std::int64_t block, std::int64_t index, T* to) const {
    const std::int64_t units = work.units(block), first = block * work.plan.units;
    const Panels panels(work.piece.depth(), work.plan.vector.width, units * work.plan.columns);
    const std::int64_t row = index * panels.width;
    const std::int64_t count = std::min(panels.width, units * work.plan.columns - row);
    if (count <= 0) return;
    const T* rows[64];
    const bool inside = columns_inside(work.piece, work.plan.columns);
    const std::int64_t inner = inside ? work.plan.columns : units;
    const auto point = [&](std::int64_t feature) {
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t low = (row + r) % inner, high = (row + r) / inner;
        rows[r] = &v_(work.piece.parameter(first + (inside ? high : low), feature),
                      work.column + (inside ? low : high));
      }
    };
    if (work.piece.features > 0) {
      point(0);
      pack_panel(kernels_, rows, count, v_.stride(0), panels, row, 0, work.piece.features, to);
    }
    if (work.piece.bias) {
      point(work.piece.features);
      pack_panel(kernels_, rows, count, 0, panels, row, work.piece.features, work.piece.depth(),
                 to);
    }
  }

  // A block of positions: `count` positions from s of each of `samples` samples from n.
  void positions(const Work& work, std::int64_t block, std::int64_t blocks, std::int64_t n,
                 std::int64_t samples, std::int64_t s, std::int64_t count, const Desk& d) {
    const bool inside = work.piece.positions_inside();
    const Panels inputs(work.piece.depth(), work.plan.inputs.width, samples * count);
    // Inputs that lie together in memory are multiplied where they are.
    const bool packed = inside || !work.plan.in_place || !work.inputs.together();
    std::array<const T*, kJvpRows> rows_in_place;
    // Where one block of units reads them, unfolded panels are multiplied one by one, in cache.
    const bool one_by_one = inside && blocks == 1;
    if (inside) {
      for (std::int64_t row = 0; row < inputs.rows && !one_by_one; row += inputs.width)
        unfold<S, T>(work.piece, n, samples, s, count, row, inputs, row, d.inputs);
    } else if (!packed) {
      for (std::int64_t r = 0; r < inputs.rows; ++r) {
        const std::int64_t row = std::min(r, samples * count - 1);
        rows_in_place[static_cast<std::size_t>(r)] =
            work.inputs.features(n + row / count, s + row % count, d.lines).data;
      }
    } else {
      pack_inputs(work, inputs, n, samples, s, count, d);
    }
    // While z is computed the inputs of the next group come in, then the cotangents of this one.
    Ahead next, cotangents;
    if (!inside) {
      const std::int64_t row = n * work.piece.positions + s + samples * count;
      const std::int64_t rest = work.piece.samples * work.piece.positions - row;
      next = work.inputs.ahead(row, std::min(samples * count, rest));
      cotangents = work.cotangents.ahead(work.piece, n, s, samples * count);
    }
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t units = work.units(block + b), rows = units * work.plan.columns;
      const Panels vector(work.piece.depth(), work.plan.vector.width, rows);
      const T* packed_vector = scratch_ + b * work.plan.vector.size();
      const ZLayout layout = z_layout(work.piece, units, inputs, vector, work.plan.columns);
      if (one_by_one) {
        const Panels panel(inputs.depth, inputs.width, inputs.width);
        for (std::int64_t row = 0; row < inputs.rows; row += inputs.width) {
          unfold<S, T>(work.piece, n, samples, s, count, row, panel, 0, d.inputs);
          multiply(kernels_, vector, packed_vector, 0, rows, panel, d.inputs, 0,
                   std::min(inputs.width, samples * count - row), d.z + row, layout.pitch);
        }
      } else if (inside) {
        multiply(kernels_, vector, packed_vector, 0, rows, inputs, d.inputs, 0, samples * count,
                 d.z, layout.pitch);
      } else {
        const std::int64_t panels = vector.rows / vector.width;
        const std::int64_t part = cotangents.bytes / std::max<std::int64_t>(1, panels - 1) + 1;
        for (std::int64_t j = 0; j < panels; ++j) {
          const bool early = j == 0 && panels > 1;
          const Ahead& ahead = early ? next : cotangents;
          const std::int64_t share = early ? next.bytes : part;
          const std::int64_t at = early ? 0 : (j - (panels > 1 ? 1 : 0)) * part;
          const std::int64_t row = j * vector.width;
          T* const z = d.z + (layout.planar ? row / units * layout.plane + row % units : row);
          if (packed) {
            multiply_ahead(kernels_, inputs, d.inputs, samples * count, vector, packed_vector, row,
                           rows - row, z, layout.pitch, ahead, at, share, false);
          } else {
            in_place(work, rows_in_place, samples * count, vector, packed_vector, row, rows - row,
                     z, layout.pitch, ahead, at, share);
          }
        }
      }
      const std::int64_t first = (block + b) * work.plan.units;
      for (std::int64_t j = 0; j < samples; ++j) {
        const T* z = d.z + j * count * (inside ? 1 : layout.pitch);
        sums_.add(work, n + j, first, units, s, count, z, layout, cotangents.bytes > 0, d);
      }
    }
  }

  // z of one panel of V, from inputs as they are.
  void in_place(const Work& work, const std::array<const T*, kJvpRows>& rows, std::int64_t count,
                const Panels& vector, const T* data, std::int64_t j, std::int64_t cols, T* z,
                std::int64_t pitch, const Ahead& ahead, std::int64_t asked,
                std::int64_t share) const {
    std::array<const T*, kJvpRows> at = rows;
    const std::int64_t tiles = ceil_div(count, kernels_.mr);
    const std::int64_t chunks = ceil_div(vector.depth, kProductDepth);
    for (std::int64_t from = 0; from < vector.depth;
         from += kProductDepth, asked += share / chunks) {
      const std::int64_t features = std::min(vector.chunk_depth(from), work.piece.features - from);
      kernels_.product_rows(at.data(), data + vector.at(from, j), features,
                            features < vector.chunk_depth(from), tiles, cols, z, pitch, from > 0,
                            ahead, asked, share / chunks);
      for (std::int64_t r = 0; r < tiles * kernels_.mr; ++r)
        at[static_cast<std::size_t>(r)] += kProductDepth;
    }
  }

  void pack_inputs(const Work& work, const Panels& panels, std::int64_t n, std::int64_t samples,
                   std::int64_t s, std::int64_t count, const Desk& d) const {
    const T one = 1;
    const T* rows[64];
    for (std::int64_t row = 0; row < samples * count; row += panels.width) {
      const std::int64_t used = std::min(panels.width, samples * count - row);
      std::int64_t stride = 1;
      for (std::int64_t r = 0; r < used; ++r) {
        const Row<T> line = work.inputs.features(n + (row + r) / count, s + (row + r) % count,
                                                 d.lines + r * work.piece.features);
        rows[r] = line.data;
        stride = line.stride;
      }
      pack_panel(kernels_, rows, used, stride, panels, row, 0, work.piece.features, d.inputs);
      if (!work.piece.bias) continue;
      for (std::int64_t r = 0; r < used; ++r) rows[r] = &one;
      pack_panel(kernels_, rows, used, 0, panels, row, work.piece.features, work.piece.depth(),
                 d.inputs);
    }
  }

  void copy_stretch(const Work& work, std::int64_t block, std::int64_t k, T* to) const {
    const std::int64_t first = block * work.plan.units;
    for (std::int64_t p = 0; p < work.units(block); ++p)
      to[k * work.plan.units + p] = v_(work.piece.weight + first + p, work.column + k);
  }

  const Context& ctx_;
  const std::vector<Piece>& pieces_;
  const View<const T, 2> v_;
  const View<T, 3> out_;
  const JvpSums<S, T> sums_;
  int threads_;
  T* scratch_;
  const TileKernels<T>& kernels_ = product_kernels<T>();
};

constexpr auto kPlanOf = []<class T>(T, const Piece& piece, std::int64_t columns, int threads) {
  const TileKernels<T>& kernels = product_kernels<T>();
  return jvp_plan(piece, columns, kernels.mr, kernels.nr, sizeof(T), threads);
};

}  // namespace

std::int64_t jvp_workspace(const Context& ctx, std::span<const LayerFactors> layers,
                           std::int64_t columns) {
  return product_workspace(ctx, layers, columns, kPlanOf);
}

ProductReport jvp(const Context& ctx, std::span<const LayerFactors> layers, const ArrayRef& v,
                  const ArrayRef& out) {
  return run_product<Jvp>(ctx, "jvp", layers, out.extent(2), v, out, kPlanOf);
}

}  // namespace fastfisher::cpu
