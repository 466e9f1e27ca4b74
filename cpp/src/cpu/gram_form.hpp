// SPDX-License-Identifier: Apache-2.0
//
// Forming per-sample gradients, a piece of the parameters at a time (S1, S2, S4):
//   J[n][(c,o)][i] = sum_t g[n,c,t,o] a[n,t,i]
// is for each sample one product of depth T between panels of g and panels of a. The patches of a
// convolution are unfolded into panels a stretch of positions at a time and never stored as a
// whole (but by S2 and S3, for few positions): T i o c multiply-adds a sample against T i entries
// unfolded.
#pragma once

#include "contract_kernels.hpp"
#include "gram_access.hpp"
#include "gram_plan.hpp"
#include "tile_kernels.hpp"

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace fastfisher::cpu {

/// Memory of one thread, see GramPlan::form_bytes.
template <class S, class T>
struct FormScratch {
  T* left = nullptr;
  T* right = nullptr;
  S* rows = nullptr;  // nr rows of padded input, then a row of zeros
};

/// S: type of the factors. T: type of the products.
template <class S, class T>
class Former {
 public:
  /// `lanes`, where not empty, multiplies row (c,o) of the cotangents.
  Former(const LayerFactors& factors, const LayerShape& layer, const TileKernels<T>& kernels,
         double scale_a, double scale_g, std::vector<T> lanes, const std::vector<T>& balance_a,
         const std::vector<T>& balance_g)
      : layer_(layer),
        kernels_(kernels),
        input_(input_of(factors)),
        cotangents_(cotangents_of(factors)),
        positions_(positions_of(cotangents_)),
        scale_a_(scale_a),
        scale_g_(scale_g),
        lanes_(std::move(lanes)),
        balance_a_(balance_a),
        balance_g_(balance_g) {}

  /// Rows (c,o) of the piece for outputs [c0, c1) of sample n, each padded to layer.padded, and
  /// with a bias the sums over positions of the cotangents.
  void gradients(std::int64_t n, std::int64_t c0, std::int64_t c1, const GramPiece& piece,
                 std::int64_t most_rows, std::int64_t most_cols, T* weights, T* ones,
                 const FormScratch<S, T>& scratch) const {
    const std::int64_t units = piece.to - piece.from;
    const std::int64_t rows = (c1 - c0) * units;
    if (lines()) return gradients_of_lines(n, c0, c1, piece, weights, ones);
    if (positions_ == 0) std::fill(weights, weights + piece.rows * layer_.padded, T{0});
    if (ones != nullptr) std::fill(ones, ones + piece.rows, T{0});
    for (std::int64_t t0 = 0; t0 < positions_; t0 += kGramDepth) {
      const std::int64_t t1 = std::min(positions_, t0 + kGramDepth), depth = t1 - t0;
      for (std::int64_t i0 = 0; i0 < layer_.padded; i0 += most_cols) {
        const std::int64_t cols = std::min(most_cols, layer_.padded - i0);
        for (std::int64_t i = 0; i < cols; i += kernels_.nr)
          input_panel(n, piece.group, i0 + i, t0, t1, scratch.right + i * depth, scratch.rows);
        for (std::int64_t r0 = 0; r0 < rows; r0 += most_rows) {
          const std::int64_t count = std::min(most_rows, rows - r0);
          for (std::int64_t r = 0; r < count; r += kernels_.mr) {
            T* panel = scratch.left + r * depth;
            cotangent_panel(n, c0, piece, r0 + r, rows, t0, t1, panel);
            if (ones != nullptr && i0 == 0) add_ones(n, panel, depth, ones + r0 + r);
          }
          kernels_.product(scratch.left, scratch.right, depth, depth * kernels_.mr,
                           depth * kernels_.nr, ceil_div(count, kernels_.mr), cols, kNoSkew,
                           weights + r0 * layer_.padded + i0, layer_.padded, t0 > 0);
        }
      }
    }
  }

  /// Patches of sample n, one row a position, each padded to layer.padded.
  void patches(std::int64_t n, std::int64_t group, T* rows,
               const FormScratch<S, T>& scratch) const {
    for (std::int64_t t0 = 0; t0 < positions_; t0 += kGramDepth) {
      const std::int64_t t1 = std::min(positions_, t0 + kGramDepth);
      for (std::int64_t i = 0; i < layer_.padded; i += kernels_.nr) {
        input_panel(n, group, i, t0, t1, scratch.right, scratch.rows);
        const std::int64_t count = std::min(kernels_.nr, layer_.padded - i);
        for (std::int64_t t = t0; t < t1; ++t) {
          const T* from = scratch.right + (t - t0) * kernels_.nr;
          std::copy(from, from + count, rows + t * layer_.padded + i);
        }
      }
    }
  }

  static constexpr std::int64_t kNoSkew = std::int64_t{1} << 60;

 private:
  // Whether a and g are lines of what is multiplied, as they lie in memory.
  [[nodiscard]] bool lines() const {
    return std::is_same_v<S, T> && layer_.form == LayerForm::shared && input_.feature == 1 &&
           cotangents_.unit == 1 && layer_.in == layer_.padded && !crowded() && scale_a_ == 1 &&
           scale_g_ == 1 && lanes_.empty() && balance_a_.empty();
  }

  // Lines of inputs that lie a multiple of 1 KiB apart fall on few places of the first cache level,
  // where they should stay. Those of cotangents are read once for many columns.
  [[nodiscard]] bool crowded() const {
    return input_.position * static_cast<std::int64_t>(sizeof(T)) % 1024 == 0 && positions_ > 16;
  }

  // Neither side is packed. While the rows of one output are formed, those of the next come in.
  void gradients_of_lines(std::int64_t n, std::int64_t c0, std::int64_t c1, const GramPiece& piece,
                          T* weights, T* ones) const {
    static_assert(kGramDepth <= kMostLines);
    // Wide ones: what is formed has columns of its own, however few the Gram has.
    const TileKernels<T>& lines = tile_kernels<T>();
    const std::int64_t units = piece.to - piece.from;
    const auto* a = static_cast<const T*>(input_.data) + n * input_.sample;
    const std::int64_t pitch = cotangents_.strides[2];
    if (positions_ == 0) std::fill(weights, weights + piece.rows * layer_.padded, T{0});
    if (ones != nullptr) std::fill(ones, ones + piece.rows, T{0});
    for (std::int64_t c = c0; c < c1; ++c) {
      const auto* g = static_cast<const T*>(cotangents_.data) + n * cotangents_.sample +
                      c * cotangents_.output + piece.from;
      T* const to = weights + (c - c0) * units * layer_.padded;
      for (std::int64_t t = 0; t < positions_; t += kGramDepth) {
        const std::int64_t depth = std::min(kGramDepth, positions_ - t);
        Ahead ahead;
        if (c + 1 < c1) {
          ahead.base = reinterpret_cast<const char*>(g + cotangents_.output + t * pitch);
          ahead.segment = units * static_cast<std::int64_t>(sizeof(T));
          ahead.pitch = pitch * static_cast<std::int64_t>(sizeof(T));
          ahead.bytes = depth * ahead.segment;
        }
        lines.product_lines(g + t * pitch, pitch, a + t * input_.position, input_.position, depth,
                            units, layer_.padded, to, layer_.padded, t > 0, ahead, 0, ahead.bytes);
        if (ones != nullptr)
          contract_kernels<T>().sum_lines(g + t * pitch, pitch, units, depth,
                                          ones + (c - c0) * units);
      }
    }
  }

  void pack(const S* const* rows, std::int64_t count, std::int64_t width, std::int64_t stride,
            std::int64_t k, double scale, T* to) const {
    pack_of<S>(kernels_)(rows, count, width, stride, k, scale, to);
  }

  // Of all samples, or of one where they are balanced.
  [[nodiscard]] double scale_a(std::int64_t n) const {
    return balance_a_.empty() ? scale_a_
                              : static_cast<double>(balance_a_[static_cast<std::size_t>(n)]);
  }
  [[nodiscard]] double scale_g(std::int64_t n) const {
    return balance_g_.empty() ? scale_g_
                              : static_cast<double>(balance_g_[static_cast<std::size_t>(n)]);
  }

  // Panel of rows r .. r + mr of (c,o) over positions [t0, t1).
  void cotangent_panel(std::int64_t n, std::int64_t c0, const GramPiece& piece, std::int64_t r,
                       std::int64_t rows, std::int64_t t0, std::int64_t t1, T* to) const {
    const std::int64_t units = piece.to - piece.from, width = kernels_.mr;
    const std::int64_t count = std::min(width, rows - r);
    const S* base[64];
    const S* at[64];
    T lane[64];
    std::int64_t c = c0 + r / units, o = piece.from + r % units;
    for (std::int64_t k = 0; k < count; ++k) {
      base[k] = static_cast<const S*>(cotangents_.data) + n * cotangents_.sample +
                c * cotangents_.output + o * cotangents_.unit;
      if (!lanes_.empty()) {
        const bool by_output = lanes_.size() > static_cast<std::size_t>(layer_.out);
        lane[k] = lanes_[static_cast<std::size_t>(by_output ? c * layer_.out + o : o)];
      }
      if (++o == piece.to) {
        o = piece.from;
        ++c;
      }
    }
    for_runs(cotangents_, t0, t1,
             [&](std::int64_t t, std::int64_t offset, std::int64_t stride, std::int64_t run) {
               for (std::int64_t k = 0; k < count; ++k) at[k] = base[k] + offset;
               pack(at, count, width, stride, run, scale_g(n), to + (t - t0) * width);
             });
    if (lanes_.empty()) return;
    for (std::int64_t t = 0; t < t1 - t0; ++t) {
      for (std::int64_t k = 0; k < count; ++k) to[t * width + k] *= lane[k];
    }
  }

  void add_ones(std::int64_t n, const T* panel, std::int64_t depth, T* ones) const {
    const auto one = static_cast<T>(scale_a(n));
    T sums[16] = {};
    contract_kernels<T>().sum_panel(panel, kernels_.mr, depth, sums);
    for (std::int64_t k = 0; k < kernels_.mr; ++k) ones[k] += sums[k] * one;
  }

  // Panel of columns i .. i + nr of the inputs over positions [t0, t1); zeros beyond the last.
  void input_panel(std::int64_t n, std::int64_t group, std::int64_t i, std::int64_t t0,
                   std::int64_t t1, T* to, S* scratch) const {
    const std::int64_t width = kernels_.nr;
    const std::int64_t count = std::clamp<std::int64_t>(layer_.in - i, 0, width);
    if (layer_.form == LayerForm::conv) {
      patch_panel(n, group, i, count, width, t0, t1, to, scratch);
      return;
    }
    const S* at[64];
    for (std::int64_t k = 0; k < count; ++k) {
      at[k] = static_cast<const S*>(input_.data) + n * input_.sample + t0 * input_.position +
              (i + k) * input_.feature;
    }
    pack(at, count, width, input_.position, t1 - t0, scale_a(n), to);
  }

  // The same for patches. A row is contiguous memory where the kernel moves by one and stays
  // inside; else it is copied with its zeros, the length of one run of positions.
  void patch_panel(std::int64_t n, std::int64_t group, std::int64_t i, std::int64_t count,
                   std::int64_t width, std::int64_t t0, std::int64_t t1, T* to, S* scratch) const {
    const InputAccess& x = input_;
    const std::int64_t channels = layer_.in / x.taps;
    const S* base[64];
    std::int64_t tap[64][3];
    for (std::int64_t k = 0; k < count; ++k) {
      const std::int64_t channel = (i + k) / x.taps;
      std::int64_t rest = (i + k) % x.taps;
      for (std::size_t axis = 3; axis-- > 0;) {
        tap[k][axis] = rest % x.kernel[axis] * x.dilation[axis] - x.padding[axis];
        rest /= x.kernel[axis];
      }
      base[k] =
          static_cast<const S*>(x.data) + n * x.sample + (group * channels + channel) * x.feature;
    }
    S* zeros = scratch + width * kGramDepth;
    std::fill(zeros, zeros + kGramDepth, S{});
    const S* at[64];
    for (std::int64_t k = count; k < width; ++k) at[k] = zeros;
    const std::int64_t step = x.stride[2] * x.strides[2];
    for (std::int64_t t = t0; t < t1;) {
      const std::int64_t w = t % x.out[2], h = t / x.out[2] % x.out[1];
      const std::int64_t d = t / x.out[2] / x.out[1];
      const std::int64_t run = std::min(t1 - t, x.out[2] - w);
      for (std::int64_t k = 0; k < count; ++k) {
        const std::int64_t in_d = d * x.stride[0] + tap[k][0], in_h = h * x.stride[1] + tap[k][1];
        const std::int64_t in_w = w * x.stride[2] + tap[k][2];
        if (in_d < 0 || in_d >= x.extents[0] || in_h < 0 || in_h >= x.extents[1]) {
          at[k] = zeros;
          continue;
        }
        const S* line = base[k] + in_d * x.strides[0] + in_h * x.strides[1];
        if (step == 1 && in_w >= 0 && in_w + (run - 1) * x.stride[2] < x.extents[2]) {
          at[k] = line + in_w * x.strides[2];
          continue;
        }
        // Positions [from, upto) of the run see the input, those before and behind it padding.
        const std::int64_t pace = x.stride[2];
        const std::int64_t from = std::clamp<std::int64_t>(ceil_div(-in_w, pace), 0, run);
        const std::int64_t upto =
            std::clamp<std::int64_t>(ceil_div(x.extents[2] - in_w, pace), from, run);
        S* copy = scratch + k * kGramDepth;
        std::fill(copy, copy + from, S{});
        std::fill(copy + upto, copy + run, S{});
        const S* source = line + in_w * x.strides[2];
        if (step == 1) {
          std::copy(source + from, source + upto, copy + from);
        } else {
          for (std::int64_t q = from; q < upto; ++q) copy[q] = source[q * step];
        }
        at[k] = copy;
      }
      pack(at, width, width, 1, run, scale_a(n), to + (t - t0) * width);
      t += run;
    }
  }

  LayerShape layer_;
  const TileKernels<T>& kernels_;
  InputAccess input_;
  CotangentAccess cotangents_;
  std::int64_t positions_;
  double scale_a_, scale_g_;
  std::vector<T> lanes_;
  const std::vector<T>&balance_a_, &balance_g_;
};

}  // namespace fastfisher::cpu
