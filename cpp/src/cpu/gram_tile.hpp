// SPDX-License-Identifier: Apache-2.0
//
// One tile of a Gram: products of packed panels, folded into float64 and stored once. What the
// methods do is in gram.cpp.
#pragma once

#include "gram_in_place.hpp"
#include "gram_plan.hpp"
#include "gram_rows.hpp"
#include "gram_store.hpp"
#include "tile_kernels.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>

namespace fastfisher::cpu {

// T: type of the products. R: type of the output.
template <class T, class R>
class GramTile {
 public:
  GramTile(const GramShape& shape, const GramPlan& plan, const TileKernels<T>& kernels,
           const LayerScale* scales, const T* left_panels, const T* right_panels,
           const InPlace* in_place, bool within)
      : shape_(shape),
        plan_(plan),
        kernels_(kernels),
        scales_(scales),
        left_panels_(left_panels),
        right_panels_(right_panels),
        in_place_(in_place),
        within_(within) {}

  /// Tile at (r, q) of the block at (i, j): adds chunks of the slab to the tile's `state`. `pairs`
  /// is memory of this thread.
  void add(std::int64_t i, std::int64_t j, std::int64_t r, std::int64_t q, std::size_t slab,
           const GramStep& step, std::byte* state, std::byte* pairs) {
    place(i, j, r, q, state, pairs);
    const GramSlab& now = plan_.slabs[slab];
    started_ = plan_.shares > 1 || now.started;
    for (std::size_t c = step.first; c < step.last;) {
      const GramChunk& chunk = plan_.chunks[c];
      const LayerShape& layer = shape_.layers[static_cast<std::size_t>(chunk.layer)];
      if (chunk.in_place) {
        Ahead ahead;
        // Of the tiles beside each other the first asks for the rows.
        if (step.next > c && q == 0)
          ahead = in_place_[step.next - now.first].template left_ahead<T>(plan_.chunks[step.next],
                                                                          row_, rows_);
        in_place_[c - now.first].product(kernels_, chunk, row_, rows_, col_, cols_,
                                         skew(row_, col_), product_, plan_.tile_cols, copies(),
                                         ahead);
        fold(chunk.layer, false);
        ++c;
      } else if (!layer.nothing() && layer.method == GramMethod::s3) {
        c = layer.contracts(shape_) ? contracted_pairs(layer, c) : position_pairs(layer, c);
      } else if (!layer.nothing() && layer.method == GramMethod::s2) {
        c = half_formed(layer, c);
      } else {
        multiply(chunk, chunk, !chunk.first, samples_);
        if (chunk.gradients && chunk.last) fold(chunk.layer, layer.has_samples(shape_.kind));
        ++c;
      }
    }
  }

  /// Stores the tile, whose shares lie one after the other from `state` on. False if an entry
  /// overflows.
  bool store(std::int64_t i, std::int64_t j, std::int64_t r, std::int64_t q, std::byte* state,
             const Target& target) {
    place(i, j, r, q, state, nullptr);
    for (std::int64_t share = 1; share < plan_.shares; ++share) {
      const auto* more = reinterpret_cast<const double*>(state + share * plan_.state_bytes);
      for (std::int64_t k = 0; k < rows_ * plan_.tile_cols; ++k) acc_[k] += more[k];
    }
    return store_tile<R>(target, shape_.symmetric, row_, rows_, col_, cols_, acc_, plan_.tile_cols);
  }

 private:
  void place(std::int64_t i, std::int64_t j, std::int64_t r, std::int64_t q, std::byte* state,
             std::byte* pairs) {
    row_ = i + r;
    col_ = j + q;
    rows_ = std::min({plan_.tile_rows, shape_.rows - row_, plan_.block_rows - r});
    cols_ = std::min({plan_.tile_cols, shape_.cols - col_, plan_.block_cols - q});
    left_panel_ = r / kernels_.mr;
    right_panel_ = q / kernels_.nr;
    left_ = sample_panels(i, row_, rows_, shape_.left_outputs, kernels_.mr);
    right_ = sample_panels(j, col_, cols_, shape_.right_outputs, kernels_.nr);
    first_n_ = i / shape_.left_outputs + left_.panel * kernels_.mr;
    const std::int64_t begin = j / shape_.right_outputs + right_.panel * kernels_.nr;
    // Of the panels of samples up to the last vector that the tile needs; of a single one from the
    // first vector on, too.
    const std::int64_t before = col_ / shape_.right_outputs - begin;
    skip_ = right_.panels > 1 ? 0 : before / kernels_.lanes * kernels_.lanes;
    first_m_ = begin + skip_;
    count_m_ = (col_ + cols_ - 1) / shape_.right_outputs + 1 - first_m_;
    ld_samples_ = right_.panels * kernels_.nr;
    acc_ = reinterpret_cast<double*>(state);
    product_ = reinterpret_cast<T*>(state + round_up(plan_.tile_rows * plan_.tile_cols * 8, 64));
    samples_ = product_ + round_up(plan_.tile_rows * plan_.tile_cols * kItem, 64) / kItem;
    spread_ = samples_ + plan_.samples_entries;
    pairs_ = reinterpret_cast<T*>(pairs);
  }

  // Memory for copies of the tile's rows, where the plan had room for it.
  [[nodiscard]] T* copies() const {
    return plan_.pair_bytes >= plan_.copied_bytes(kItem) ? pairs_ : nullptr;
  }

  // P or Q (+)= left chunk times right chunk, over the tile; P goes to `samples`.
  void multiply(const GramChunk& left, const GramChunk& right, bool accumulate, T* samples) const {
    if (within_ && !shape_.layers[static_cast<std::size_t>(left.layer)].packs_left(shape_))
      return multiply_within(left, right, accumulate, samples);
    const std::int64_t left_pitch = left.depth * kernels_.mr;
    const std::int64_t right_pitch = left.depth * kernels_.nr;
    const T* x = left_panels_ + left.left_at;
    const T* y = right_panels_ + right.right_at;
    if (left.gradients) {
      kernels_.product(x + left_panel_ * left_pitch, y + right_panel_ * right_pitch, left.depth,
                       left_pitch, right_pitch, ceil_div(rows_, kernels_.mr), cols_,
                       skew(row_, col_), product_, plan_.tile_cols, accumulate);
    } else {
      kernels_.product(x + left_.panel * left_pitch, y + right_.panel * right_pitch + skip_,
                       left.depth, left_pitch, right_pitch, left_.panels, count_m_,
                       skew(first_n_, first_m_), samples, ld_samples_, accumulate);
    }
  }

  // The same where the block meets itself and left rows are in the panels of the right.
  void multiply_within(const GramChunk& left, const GramChunk& right, bool accumulate,
                       T* samples) const {
    const std::int64_t pitch = left.depth * kernels_.nr;
    const T* x = right_panels_ + left.right_at;
    const T* y = right_panels_ + right.right_at;
    const std::int64_t panels =
        panel_extent(left.gradients, plan_.block_cols, shape_.right_outputs, kernels_.nr) /
        kernels_.nr;
    if (left.gradients) {
      kernels_.product_within(x, left_panel_ * kernels_.mr, panels, y + right_panel_ * pitch,
                              left.depth, ceil_div(rows_, kernels_.mr), cols_, skew(row_, col_),
                              product_, plan_.tile_cols, accumulate);
    } else {
      kernels_.product_within(x, left_.panel * kernels_.mr, panels,
                              y + right_.panel * pitch + skip_, left.depth, left_.panels, count_m_,
                              skew(first_n_, first_m_), samples, ld_samples_, accumulate);
    }
  }

  // Chunks of an S3 layer lie group by group and position by position, equally many for each.
  struct Positions {
    const GramChunk* first;
    std::int64_t positions;
    std::size_t each;  // chunks of a position, `samples` of them of samples
    std::size_t samples;

    [[nodiscard]] const GramChunk& at(std::int64_t group, std::int64_t position,
                                      std::size_t k) const {
      return first[static_cast<std::size_t>(group * positions + position) * each + k];
    }
  };

  [[nodiscard]] Positions positions_of(const LayerShape& layer, std::size_t begin) const {
    Positions all{&plan_.chunks[begin], layer.positions(), 0, 0};
    for (std::size_t c = begin;
         c < plan_.chunks.size() && plan_.chunks[c].layer == all.first->layer &&
         plan_.chunks[c].unit == 0 && plan_.chunks[c].group == 0;
         ++c) {
      ++all.each;
      if (!plan_.chunks[c].gradients) ++all.samples;
    }
    return all;
  }

  // S3 where outputs do not meet each other: P o Q for every pair of positions. Returns the first
  // chunk behind the layer.
  std::size_t position_pairs(const LayerShape& layer, std::size_t begin) {
    const Positions all = positions_of(layer, begin);
    for (std::int64_t group = 0; group < layer.groups; ++group) {
      for (std::int64_t s = 0; s < layer.left_positions; ++s) {
        for (std::int64_t u = 0; u < layer.right_positions; ++u) {
          for (std::size_t k = 0; k < all.each; ++k) {
            const GramChunk& left = all.at(group, s, k);
            multiply(left, all.at(group, u, k), !left.first, samples_);
          }
          fold(all.first->layer, true);
        }
      }
    }
    return begin + static_cast<std::size_t>(layer.groups * all.positions) * all.each;
  }

  // S3 with outputs that meet: for each sample n and position s of the left, what the right's
  // cotangents come to under P,  x[o] = sum_u P[(n,s),(m,u)] g[m,d,u,o],  then Q += g[n,c,s] x.
  std::size_t contracted_pairs(const LayerShape& layer, std::size_t begin) {
    const Positions all = positions_of(layer, begin);
    const double bias = scales_[all.first->layer].bias;
    const std::int64_t p_entries = plan_.samples_entries;
    T* lanes = pairs_ + layer.right_positions * p_entries;                      // [u][nr]
    T* x = lanes + layer.right_positions * kernels_.nr;                         // [o][nr]
    auto** panels = reinterpret_cast<const T**>(x + kGramDepth * kernels_.nr);  // [u]
    bool accumulate = false;
    for (std::int64_t group = 0; group < layer.groups; ++group) {
      for (std::int64_t s = 0; s < layer.left_positions; ++s) {
        for (std::int64_t u = 0; u < layer.right_positions; ++u) {
          for (std::size_t k = 0; k < all.samples; ++k) {
            const GramChunk& left = all.at(group, s, k);
            multiply(left, all.at(group, u, k), !left.first, pairs_ + u * p_entries);
          }
        }
        for (std::size_t k = all.samples; k < all.each; ++k) {
          const GramChunk& left = all.at(group, s, k);
          each_part([&](std::int64_t q, std::int64_t n, std::int64_t from, std::int64_t to) {
            for (std::int64_t u = 0; u < layer.right_positions; ++u) {
              const T* p = pairs_ + u * p_entries + (n - first_n_) * ld_samples_;
              for (std::int64_t lane = 0; lane < kernels_.nr; ++lane) {
                const std::int64_t col = std::min(q * kernels_.nr + lane, cols_ - 1);
                lanes[u * kernels_.nr + lane] =
                    p[(col_ + col) / shape_.right_outputs - first_m_] + static_cast<T>(bias);
              }
            }
            for (std::int64_t u = 0; u < layer.right_positions; ++u) {
              panels[u] = right_panels_ + all.at(group, u, k).right_at +
                          (right_panel_ + q) * left.depth * kernels_.nr;
            }
            kernels_.combine(panels, lanes, layer.right_positions, left.depth, x);
            add_rows(left, x, q, from, to, accumulate);
          });
          accumulate = true;
        }
      }
    }
    fold(all.first->layer, false);
    return begin + static_cast<std::size_t>(layer.groups * all.positions) * all.each;
  }

  // S2: the right's formed gradients applied to the left's inputs, x[n][o] = J[m,d][o] a[n,s], then
  // Q += g[n,c,s] x[n]. The chunks of one stretch of units: inputs of each position, gradients of
  // each unit and their bias, cotangents of each position. Returns the first chunk behind it.
  std::size_t half_formed(const LayerShape& layer, std::size_t begin) {
    const GramChunk* chunk = &plan_.chunks[begin];
    const std::size_t slab_end = plan_.chunks.size();
    std::size_t end = begin + 1;
    while (end < slab_end && plan_.chunks[end].layer == chunk->layer && !plan_.chunks[end].atom)
      ++end;
    std::size_t inputs = begin;  // chunks of one position
    while (inputs < end && !plan_.chunks[inputs].gradients && plan_.chunks[inputs].unit == 0)
      ++inputs;
    inputs -= begin;
    const std::size_t weights = begin + inputs * static_cast<std::size_t>(layer.left_positions);
    std::size_t cotangents = weights;
    while (plan_.chunks[cotangents].source != GramChunk::Source::input) ++cotangents;
    const std::int64_t units = plan_.chunks[cotangents].depth;
    T* x = pairs_;  // [n of the tile][units][nr]
    for (std::int64_t s = 0; s < layer.left_positions; ++s) {
      const GramChunk& left = plan_.chunks[cotangents + static_cast<std::size_t>(s)];
      for (std::int64_t q = 0; q < ceil_div(cols_, kernels_.nr); ++q) {
        std::size_t c = weights;
        for (std::int64_t o = 0; o < units; ++o) {
          for (std::size_t k = 0; k < inputs; ++k, ++c) {
            const GramChunk& a = plan_.chunks[begin + static_cast<std::size_t>(s) * inputs + k];
            const GramChunk& w = plan_.chunks[c];
            kernels_.product(left_panels_ + a.left_at + left_.panel * a.depth * kernels_.mr,
                             right_panels_ + w.right_at +
                                 (right_panel_ + q) * w.depth * kernels_.nr,
                             a.depth, a.depth * kernels_.mr, 0, left_.panels, kernels_.nr,
                             skew(0, 0, false), x + o * kernels_.nr, units * kernels_.nr, k > 0);
          }
        }
        if (layer.bias) {
          const T* ones =
              right_panels_ + plan_.chunks[c].right_at + (right_panel_ + q) * units * kernels_.nr;
          for (std::int64_t n = 0; n < left_.panels * kernels_.mr; ++n) {
            for (std::int64_t e = 0; e < units * kernels_.nr; ++e)
              x[n * units * kernels_.nr + e] +=
                  ones[e] * static_cast<T>(scales_[chunk->layer].bias);
          }
        }
        const bool accumulate = s > 0 || !chunk->first;
        each_sample(q, [&](std::int64_t n, std::int64_t from, std::int64_t to) {
          add_rows(left, x + (n - first_n_) * units * kernels_.nr, q, from, to, accumulate);
        });
      }
    }
    if (plan_.chunks[end - 1].last) fold(chunk->layer, false);
    return end;
  }

  // Calls each(n, from, to) for the samples of the tile with their rows [from, to) of it, those
  // that reach below the diagonal in panel q of columns.
  template <class Function>
  void each_sample(std::int64_t q, const Function& each) const {
    const std::int64_t outputs = shape_.left_outputs;
    for (std::int64_t n = row_ / outputs; n * outputs < row_ + rows_; ++n) {
      const std::int64_t from = std::max(row_, n * outputs) - row_;
      const std::int64_t to = std::min(row_ + rows_, (n + 1) * outputs) - row_;
      if (shape_.symmetric && row_ + to - 1 < col_ + q * kernels_.nr) continue;
      each(n, from, to);
    }
  }

  template <class Function>
  void each_part(const Function& each) const {
    for (std::int64_t q = 0; q < ceil_div(cols_, kernels_.nr); ++q) {
      each_sample(
          q, [&](std::int64_t n, std::int64_t from, std::int64_t to) { each(q, n, from, to); });
    }
  }

  // Rows [from, to) of panel q of Q (+)= left panels times x. Panels hold rows of other samples
  // too, for which x is not: their results are dropped.
  void add_rows(const GramChunk& left, const T* x, std::int64_t q, std::int64_t from,
                std::int64_t to, bool accumulate) const {
    T part[kMostPanel];
    const std::int64_t mr = kernels_.mr, nr = kernels_.nr;
    for (std::int64_t panel = from / mr; panel * mr < to; ++panel) {
      kernels_.product(left_panels_ + left.left_at + (left_panel_ + panel) * left.depth * mr, x,
                       left.depth, 0, 0, 1, nr, skew(0, 0, false), part, nr, false);
      for (std::int64_t r = std::max(from, panel * mr); r < std::min(to, (panel + 1) * mr); ++r) {
        T* sum = product_ + r * plan_.tile_cols + q * nr;
        const T* more = part + (r - panel * mr) * nr;
        for (std::int64_t lane = 0; lane < nr; ++lane)
          sum[lane] = accumulate ? sum[lane] + more[lane] : more[lane];
      }
    }
  }

  [[nodiscard]] std::int64_t skew(std::int64_t row, std::int64_t col, bool half = true) const {
    return half && shape_.symmetric ? row - col : std::numeric_limits<std::int64_t>::max() / 4;
  }

  // acc (+)= P o Q, or Q alone, in float64.
  void fold(int layer, bool samples) {
    const auto [scale, bias] = scales_[layer];
    const std::int64_t d = shape_.right_outputs;
    std::int64_t spread_n = -1;
    for (std::int64_t r = 0; r < rows_; ++r) {
      const std::int64_t n = (row_ + r) / shape_.left_outputs;
      // Entries right of the diagonal are never stored, and some of them never computed.
      const std::int64_t used = shape_.symmetric ? std::min(cols_, row_ + r - col_ + 1) : cols_;
      if (used <= 0) continue;
      const T* p = nullptr;
      if (samples) {
        p = samples_ + (n - first_n_) * ld_samples_;
        if (d > 1) {
          if (n != spread_n) {
            // One entry of P serves d columns; up to the sample's last row, so that its other rows
            // find all of it.
            const std::int64_t last =
                shape_.symmetric ? std::min(cols_, (n + 1) * d - col_) : cols_;
            for (std::int64_t q = 0; q < last;) {
              const std::int64_t m = (col_ + q) / d;
              const std::int64_t end = std::min(last, (m + 1) * d - col_);
              for (; q < end; ++q) spread_[q] = p[m - first_m_];
            }
            spread_n = n;
          }
          p = spread_;
        } else {
          p += col_ - first_m_;
        }
      }
      kernels_.fold(p, product_ + r * plan_.tile_cols, bias, scale, used,
                    acc_ + r * plan_.tile_cols, started_);
    }
    started_ = true;
  }

  static constexpr std::int64_t kItem = sizeof(T);
  static constexpr std::int64_t kMostPanel = 16 * 64;

  const GramShape& shape_;
  const GramPlan& plan_;
  const TileKernels<T>& kernels_;
  const LayerScale* scales_;
  const T *left_panels_, *right_panels_;
  const InPlace* in_place_;  // of the slab's chunks
  bool within_;              // the block meets itself: what need not be packed for the left is not

  // The tile at hand.
  std::int64_t row_ = 0, rows_ = 0, col_ = 0, cols_ = 0;     // of the Gram
  std::int64_t left_panel_ = 0, right_panel_ = 0;            // first ones of its rows and columns
  SamplePanels left_, right_;                                // of its samples
  std::int64_t first_n_ = 0, first_m_ = 0, ld_samples_ = 0;  // of P
  std::int64_t skip_ = 0;     // columns of the first panel that P leaves out
  std::int64_t count_m_ = 0;  // columns of P
  double* acc_ = nullptr;
  T *product_ = nullptr, *samples_ = nullptr, *spread_ = nullptr, *pairs_ = nullptr;
  bool started_ = false;  // acc holds something
};

}  // namespace fastfisher::cpu
