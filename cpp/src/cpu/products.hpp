// SPDX-License-Identifier: Apache-2.0
//
// What the products with a Jacobian, jvp and vjp, have in common: the pieces that layers are cut
// into, their factors read row by row, panels, and the verdict on a result.
#pragma once

#include "convert.hpp"
#include "fastfisher/ops.hpp"
#include "rounding.hpp"
#include "tile_kernels.hpp"

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

namespace fastfisher::cpu {

/// Depth of one call of the micro kernel. Sums over a depth are cut here, whatever the threads.
constexpr std::int64_t kProductDepth = 256;
/// Features of one piece: bounds every panel.
constexpr std::int64_t kPieceFeatures = 4096;
/// Columns that are multiplied at once.
constexpr std::int64_t kProductColumns = 32;

/// Panels of two vectors, which units and channels fill as a rule.
template <class T>
const TileKernels<T>& product_kernels() {
  return tile_kernels<T>(2 * tile_kernels<T>().lanes);
}

/// How many columns are multiplied at once: full sets of them and, if any, what remains.
inline std::vector<std::int64_t> column_counts(std::int64_t columns) {
  std::vector<std::int64_t> counts;
  if (columns >= kProductColumns) counts.push_back(kProductColumns);
  if (columns % kProductColumns != 0) counts.push_back(columns % kProductColumns);
  return counts;
}

/// One group of one layer and a stretch of its features; J is the sum of its pieces. The bias is a
/// last feature that is always 1.
struct Piece {
  const LayerFactors* layer = nullptr;
  std::int64_t samples = 0, outputs = 0, positions = 0;
  std::int64_t first_unit = 0, units = 0;
  std::int64_t first_feature = 0, features = 0;  ///< of the group's, without the bias
  std::int64_t first_channel = 0;                ///< of a convolution's input
  bool bias = false;
  std::int64_t row_features = 0;              ///< features of a row of W
  std::int64_t weight = 0, bias_weights = 0;  ///< first parameters of the group's W and b

  [[nodiscard]] bool explicit_form() const { return layer->form == LayerForm::jacobian; }
  /// Convolutions keep positions innermost, the others units.
  [[nodiscard]] bool positions_inside() const { return layer->form == LayerForm::conv; }
  [[nodiscard]] std::int64_t depth() const { return features + (bias ? 1 : 0); }
  /// Parameter of the group's unit o and feature i of this stretch.
  [[nodiscard]] std::int64_t parameter(std::int64_t o, std::int64_t i) const {
    return i < features ? weight + o * row_features + first_feature + i : bias_weights + o;
  }
};

std::vector<Piece> pieces_of(std::span<const LayerFactors> layers);

/// Twice the multiply-adds of a product with k columns.
double product_flops(std::span<const LayerFactors> layers, std::int64_t columns);

/// Threads for that much work.
int product_threads(const Context& ctx, double flops);

/// What to say of `out`: ok, or the first bad entry among the inputs.
ProductReport verdict(const Context& ctx, int threads, std::span<const LayerFactors> layers,
                      const ArrayRef& vector, const ArrayRef& out);

/// Checks the workspace and hands out aligned stretches of it.
class ProductScratch {
 public:
  ProductScratch(const Context& ctx, const char* op, std::int64_t needed);
  [[nodiscard]] std::byte* data() const { return data_; }
  static constexpr std::int64_t kAlignment = 64;

 private:
  std::byte* data_;
};

/// A row of numbers in memory; `stride` is 1 where they had to be widened.
template <class T>
struct Row {
  const T* data;
  std::int64_t stride;
};

/// `count` numbers from `from`, in place or widened into `buffer`.
template <class S, class T>
Row<T> load(const S* from, std::int64_t stride, std::int64_t count, T* buffer) {
  if constexpr (std::is_same_v<S, T>) {
    return {from, stride};
  } else {
    for (std::int64_t k = 0; k < count; ++k) buffer[k] = widen(from[k * stride]);
    return {buffer, 1};
  }
}

/// The same with stride 1.
template <class S, class T>
const T* load_packed(const S* from, std::int64_t stride, std::int64_t count, T* buffer) {
  if constexpr (std::is_same_v<S, T>) {
    if (stride == 1) return from;
  }
  for (std::int64_t k = 0; k < count; ++k) buffer[k] = widen(from[k * stride]);
  return buffer;
}

/// Depth-major panels of one side of a product: [chunk of depth][panel][depth in it][width].
struct Panels {
  std::int64_t depth = 0, width = 1, rows = 0;  ///< rows padded to whole panels

  Panels() = default;
  Panels(std::int64_t depth_, std::int64_t width_, std::int64_t rows_)
      : depth(depth_), width(width_), rows(round_up(rows_, width_)) {}
  [[nodiscard]] std::int64_t size() const { return depth * rows; }
  [[nodiscard]] std::int64_t chunk_depth(std::int64_t from) const {
    return std::min(kProductDepth, depth - from);
  }
  /// Offset of the panel of row `row` (a multiple of width) in the chunk from depth `from`.
  [[nodiscard]] std::int64_t at(std::int64_t from, std::int64_t row) const {
    return from * rows + row * chunk_depth(from);
  }
};

/// Packs `count` rows as one panel at row `row`: depth `from` to `to`, which rows[.].data starts
/// at.
template <class T>
void pack_panel(const TileKernels<T>& kernels, const T* const* rows, std::int64_t count,
                std::int64_t stride, const Panels& panels, std::int64_t row, std::int64_t from,
                std::int64_t to, T* base) {
  const T* at[64];
  for (std::int64_t r = 0; r < count; ++r) at[r] = rows[r];
  while (from < to) {
    const std::int64_t chunk = from / kProductDepth * kProductDepth;
    const std::int64_t depth = std::min(to, chunk + kProductDepth) - from;
    T* dst = base + panels.at(chunk, row) + (from - chunk) * panels.width;
    if constexpr (std::is_same_v<T, float>) {
      kernels.pack_f32(at, count, panels.width, stride, depth, 1, dst);
    } else {
      kernels.pack_f64(at, count, panels.width, stride, depth, 1, dst);
    }
    for (std::int64_t r = 0; r < count; ++r) at[r] += depth * stride;
    from += depth;
  }
}

/// What is asked for ahead of its use: about half of the second cache level.
constexpr std::int64_t kProductAhead = std::int64_t{400} << 10;

/// For products of which no tile is skipped.
constexpr std::int64_t kNoSkew = std::int64_t{1} << 60;

/// c[left_rows, right_rows] = left right^T over the whole depth; see TileKernels::product.
template <class T>
void multiply(const TileKernels<T>& kernels, const Panels& left, const T* left_data,
              std::int64_t left_from, std::int64_t left_rows, const Panels& right,
              const T* right_data, std::int64_t right_from, std::int64_t right_rows, T* c,
              std::int64_t ldc) {
  for (std::int64_t from = 0; from < left.depth; from += kProductDepth) {
    const std::int64_t depth = left.chunk_depth(from);
    kernels.product(left_data + left.at(from, left_from), right_data + right.at(from, right_from),
                    depth, depth * left.width, depth * right.width, ceil_div(left_rows, left.width),
                    right_rows, kNoSkew, c, ldc, from != 0);
  }
}

/// Spatial axes of a convolution as three, missing ones in front with extent 1, seen from one tap
/// of the kernel.
struct TapView {
  std::int64_t input[3] = {1, 1, 1}, output[3] = {1, 1, 1}, stride[3] = {0, 0, 0};
  std::int64_t step[3] = {1, 1, 1}, shift[3] = {0, 0, 0};

  TapView(const LayerFactors& layer, std::int64_t tap);

  /// Calls visit(at, from, upto, run, z, y, x) for each stretch of `run` of the outputs s ..
  /// s + count that lie in one line: those from `from` to `upto` of it see the input at z, y and x,
  /// x + step[2], ..., the others see padding.
  template <class Visit>
  void stretches(std::int64_t s, std::int64_t count, const Visit& visit) const {
    const std::int64_t first = shift[2] < 0 ? ceil_div(-shift[2], step[2]) : 0;
    const std::int64_t end = input[2] > shift[2] ? ceil_div(input[2] - shift[2], step[2]) : 0;
    std::int64_t w = s % output[2], h = s / output[2] % output[1], d = s / (output[1] * output[2]);
    for (std::int64_t at = 0; at < count;) {
      const std::int64_t run = std::min(count - at, output[2] - w);
      const std::int64_t y = h * step[1] + shift[1], z = d * step[0] + shift[0];
      const bool inside = y >= 0 && y < input[1] && z >= 0 && z < input[0];
      const std::int64_t from = inside ? std::clamp(first - w, std::int64_t{0}, run) : run;
      const std::int64_t upto = inside ? std::clamp(end - w, from, run) : run;
      visit(at, from, upto, run, z, y, (w + from) * step[2] + shift[2]);
      at += run;
      w = 0;
      if (++h == output[1]) {
        h = 0;
        ++d;
      }
    }
  }
};

/// The same for one panel of right rows, asking for its share of what comes next.
template <class T>
void multiply_ahead(const TileKernels<T>& kernels, const Panels& left, const T* left_data,
                    std::int64_t left_rows, const Panels& right, const T* right_data,
                    std::int64_t right_from, std::int64_t right_rows, T* c, std::int64_t ldc,
                    const Ahead& ahead, std::int64_t at, std::int64_t share, bool accumulate) {
  const std::int64_t chunks = ceil_div(left.depth, kProductDepth);
  for (std::int64_t from = 0; from < left.depth; from += kProductDepth) {
    const std::int64_t depth = left.chunk_depth(from);
    kernels.product_ahead(left_data + left.at(from, 0), right_data + right.at(from, right_from),
                          depth, depth * left.width, ceil_div(left_rows, left.width), right_rows, c,
                          ldc, accumulate || from > 0, ahead, at, share / chunks);
    at += share / chunks;
  }
}

/// Inputs of a piece: features of a position, or positions of a feature.
template <class S, class T>
class Inputs {
 public:
  explicit Inputs(const Piece& piece);

  /// Features first .. first + count of position (n, s), without the bias. Not for convolutions.
  [[nodiscard]] Row<T> features(std::int64_t n, std::int64_t s, T* buffer) const {
    return load<S, T>(data_ + n * sample_ + s * position_, feature_, piece_.features, buffer);
  }
  /// Whether those lie together in memory as they are.
  [[nodiscard]] bool together() const { return std::is_same_v<S, T> && feature_ == 1; }
  /// What `rows` rows (n,s) from `row` on take in memory; nothing if they do not lie together.
  [[nodiscard]] Ahead ahead(std::int64_t row, std::int64_t rows) const;
  /// Positions s .. s + count of sample n at feature i of the stretch, the bias too.
  void positions(std::int64_t n, std::int64_t i, std::int64_t s, std::int64_t count, T* to) const;
  /// All of channel `channel` of sample n of a convolution's input: in place, or in `buffer`.
  const T* plane(std::int64_t n, std::int64_t channel, T* buffer) const;

 private:
  const Piece& piece_;
  const S* data_ = nullptr;
  std::int64_t sample_ = 0, position_ = 0, feature_ = 0;
};

/// Cotangents of a piece, as rows of what lies innermost: units, for convolutions positions.
template <class S, class T>
class Cotangents {
 public:
  explicit Cotangents(const Piece& piece);

  /// Entries from .. from + count of row `outer` (position, for convolutions unit) of output c of
  /// sample n. For separable ones this is m, whatever c.
  const T* row(std::int64_t n, std::int64_t c, std::int64_t outer, std::int64_t from,
               std::int64_t count, T* buffer) const;
  /// Whether rows of `count` entries lie in memory one after the other.
  [[nodiscard]] bool packed(std::int64_t count) const {
    return std::is_same_v<S, T> && axes_ == 0 && inner_ == 1 && outer_ == count;
  }
  /// Entries between a row and the one `outputs` outputs and `outers` rows further on, if rows are
  /// read in place; else 0.
  [[nodiscard]] std::int64_t distance(std::int64_t outputs, std::int64_t outers) const {
    const bool in_place = std::is_same_v<S, T> && axes_ == 0 && inner_ == 1;
    return in_place ? outputs * output_ + outers * outer_ : 0;
  }
  /// What `rows` rows (n,s) from (n, s) on take in memory for all outputs and units of the piece;
  /// nothing if that is not packed or more than a cache holds.
  [[nodiscard]] Ahead ahead(const Piece& piece, std::int64_t n, std::int64_t s,
                            std::int64_t rows) const;
  /// Units from .. from + count of w for output c.
  const T* separable(std::int64_t c, std::int64_t from, std::int64_t count, T* buffer) const {
    return load_packed<S, T>(w_ + c * w_output_ + from * w_unit_, w_unit_, count, buffer);
  }

 private:
  const S* data_ = nullptr;
  const S* w_ = nullptr;
  std::int64_t sample_ = 0, output_ = 0, outer_ = 0, inner_ = 0;
  std::int64_t w_output_ = 0, w_unit_ = 0;
  // Spatial axes that do not fold into one.
  int axes_ = 0;
  std::int64_t extents_[3] = {1, 1, 1}, strides_[3] = {0, 0, 0};
};

}  // namespace fastfisher::cpu
