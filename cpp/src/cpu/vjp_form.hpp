// SPDX-License-Identifier: Apache-2.0
//
// The rows that J^T u multiplies, formed and packed into panels: h and the inputs. See vjp.cpp.
#pragma once

#include "contract_kernels.hpp"
#include "products.hpp"
#include "vjp_plan.hpp"

#include <array>
#include <cstring>
#include <type_traits>

namespace fastfisher::cpu {

template <class S, class T>
class VjpForm {
 public:
  struct Work {
    const Piece& piece;
    const VjpPlan& plan;
    Inputs<S, T> inputs;
    Cotangents<S, T> cotangents;
  };
  // Where one thread keeps what it works on; tiles and sums of W lie where lines do.
  struct Desk {
    T *gradients, *inputs, *image, *lines, *rows, *weights;
    std::int64_t imaged = -1;  ///< sample whose image that is
    bool asked = false;        ///< whether the cotangents have been asked for
  };

  // Where rows go; no inputs where they are there already.
  struct VjpPanels {
    Panels left, right;
    T *gradients, *inputs;
    std::int64_t plane;  ///< rows of `left` for one column
    bool biased;         ///< whether the bias is a last feature
  };

  VjpForm(const View<const T, 3>& u, std::int64_t column) : u_(u), column_(column) {}

  // Rows row + at .. row + end of the piece for its units first .., as lines at .. end.
  void form(const Work& work, const VjpPanels& to, std::int64_t first, std::int64_t units,
            std::int64_t row, std::int64_t at, std::int64_t end, Desk& d) const {
    const Piece& piece = work.piece;
    while (at < end) {
      std::int64_t count = end - at;
      if (piece.positions_inside()) {
        // Those of one sample.
        const std::int64_t n = (row + at) / piece.positions;
        const std::int64_t s = (row + at) % piece.positions;
        count = std::min({count, piece.positions - s, kVjpTaskRowsMost});
        convolution(work, to, first, units, n, s, count, at, d);
      } else {
        count = std::min({count, work.plan.together, kProductDepth - at % kProductDepth});
        positions(work, to, first, units, row + at, count, at, d);
      }
      at += count;
    }
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
    const bool inside = work.piece.positions_inside();
    const std::int64_t limit = inside ? kVjpOutputs : kVjpOutputs / 2;
    const std::int64_t most = ceil_div(all, std::max<std::int64_t>(1, ceil_div(all, limit)));
    // Rows that nobody has asked for before are asked for while those before them are read.
    const std::int64_t ahead = work.piece.layer->separable() || d.asked ? 0
                               : all > most || !inside ? work.cotangents.distance(most, 0)
                                                       : work.cotangents.distance(0, 1);
    for (std::int64_t c = 0; c < all; c += most) {
      const std::int64_t outputs = std::min(most, all - c);
      for (std::int64_t q = 0; q < outputs; ++q) {
        x[static_cast<std::size_t>(q)] =
            work.piece.layer->separable()
                ? work.cotangents.separable(c + q, from, count, d.rows + q * work.plan.rows)
                : work.cotangents.row(n, c + q, outer, from, count, d.rows + q * work.plan.rows);
        for (std::int64_t k = 0; k < columns; ++k)
          d.weights[k * outputs + q] = u_(n, c + q, column_ + k);
      }
      contract_.combine(x.data(), outputs, d.weights, y.data(), columns, count, add || c > 0,
                        ahead);
    }
  }

 private:
  // Rows (n,s) from `row` on, in one chunk of depth: units and features lie together.
  void positions(const Work& work, const VjpPanels& to, std::int64_t first, std::int64_t units,
                 std::int64_t row, std::int64_t count, std::int64_t at, const Desk& d) const {
    const VjpPlan& plan = work.plan;
    std::array<const T*, kVjpLines> rows;
    const auto sample = [&](std::int64_t r) { return (row + r) / work.piece.positions; };
    const auto position = [&](std::int64_t r) { return (row + r) % work.piece.positions; };
    // Rows that follow each other in memory are summed as one long row.
    const bool joined = !work.piece.layer->separable() && work.cotangents.packed(units);
    for (std::int64_t r = 0, run = 1; r < count; r += run) {
      if (joined) run = std::min(count - r, work.piece.positions - position(r));
      T* h = d.lines + r * units;
      combine(work, sample(r), position(r), first, run * units, h, count * units, false, d);
      if (!work.piece.layer->separable()) continue;
      const T* m = work.cotangents.row(sample(r), 0, position(r), first, units, d.rows);
      for (std::int64_t k = 0; k < plan.columns; ++k) {
        for (std::int64_t o = 0; o < units; ++o) h[k * count * units + o] *= m[o];
      }
    }
    for (std::int64_t k = 0; k < plan.columns; ++k) {
      for (std::int64_t r = 0; r < count; ++r)
        rows[static_cast<std::size_t>(r)] = d.lines + (k * count + r) * units;
      scatter(rows.data(), count, 1, units, to.left, k * to.plane, at, to.gradients, false);
    }
    if (to.inputs == nullptr) return;
    std::int64_t stride = 1;
    for (std::int64_t r = 0; r < count; ++r) {
      const Row<T> a =
          work.inputs.features(sample(r), position(r), d.lines + r * work.piece.features);
      rows[static_cast<std::size_t>(r)] = a.data;
      stride = a.stride;
    }
    scatter(rows.data(), count, stride, work.piece.features, to.right, 0, at, to.inputs, to.biased);
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
    whole(std::integral_constant<std::int64_t, 32>{});
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
  void convolution(const Work& work, const VjpPanels& to, std::int64_t first, std::int64_t units,
                   std::int64_t n, std::int64_t s, std::int64_t count, std::int64_t at,
                   Desk& d) const {
    const VjpPlan& plan = work.plan;
    const std::int64_t width = to.left.width;
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
        pack_panel(kernels_, rows.data(), used, 1, to.left, k * to.plane + o, at, at + count,
                   to.gradients);
        for (std::int64_t r = 0; r < used; ++r) rows[static_cast<std::size_t>(r)] += width * count;
      }
    }
    if (to.inputs == nullptr) return;
    if (plan.channel_panels > 0) return channels_inside(work, to, n, s, count, at, d);
    const std::int64_t features = work.piece.features + (to.biased ? 1 : 0);
    for (std::int64_t i = 0; i < features; i += to.right.width) {
      const std::int64_t used = std::min(to.right.width, features - i);
      for (std::int64_t r = 0; r < used; ++r) {
        T* line = d.lines + r * count;
        work.inputs.positions(n, i + r, s, count, line);
        rows[static_cast<std::size_t>(r)] = line;
      }
      pack_panel(kernels_, rows.data(), used, 1, to.right, i, at, at + count, to.inputs);
    }
  }

  // The same inputs, of every tap all channels: lines of panels are lines of the sample's image.
  void channels_inside(const Work& work, const VjpPanels& to, std::int64_t n, std::int64_t s,
                       std::int64_t count, std::int64_t at, Desk& d) const {
    const LayerFactors& layer = *work.piece.layer;
    const std::int64_t width = to.right.width, taps = layer.conv.taps();
    std::int64_t size = 1;
    for (int r = 2; r < layer.a.rank; ++r) size *= layer.a.extent(r);
    T* const image = d.image + width * size;
    if (d.imaged != n) {
      d.imaged = n;
      const std::int64_t channels = work.piece.features / taps;
      std::array<const T*, 64> rows;
      for (std::int64_t c = 0; c < channels; c += width) {
        const std::int64_t used = std::min(width, channels - c);
        for (std::int64_t r = 0; r < used; ++r)
          rows[static_cast<std::size_t>(r)] = work.inputs.plane(n, c + r, d.image + r * size);
        const Panels one(size, width, width);
        pack_panel(kernels_, rows.data(), used, 1, one, 0, 0, size, image + c * size);
      }
    }
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      const TapView view(layer, tap);
      for (std::int64_t c = 0; c < work.plan.channel_panels; ++c) {
        const T* plane = image + c * width * size;
        T* const panel =
            to.inputs + to.right.at(0, (tap * work.plan.channel_panels + c) * width) + at * width;
        view.stretches(
            s, count,
            [&](std::int64_t line, std::int64_t from, std::int64_t upto, std::int64_t run,
                std::int64_t z, std::int64_t y, std::int64_t x) {
              T* dst = panel + line * width;
              std::fill(dst, dst + from * width, T{0});
              std::fill(dst + upto * width, dst + run * width, T{0});
              if (from == upto) return;
              const T* source = plane + ((z * view.input[1] + y) * view.input[2] + x) * width;
              if (view.step[2] == 1) {
                std::memcpy(dst + from * width, source,
                            static_cast<std::size_t>((upto - from) * width) * sizeof(T));
                return;
              }
              for (std::int64_t k = from; k < upto; ++k, source += view.step[2] * width)
                std::memcpy(dst + k * width, source, static_cast<std::size_t>(width) * sizeof(T));
            });
      }
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

  const View<const T, 3>& u_;
  std::int64_t column_;
  const TileKernels<T>& kernels_ = product_kernels<T>();
  const ContractKernels<T>& contract_ = contract_kernels<T>();
};

}  // namespace fastfisher::cpu
