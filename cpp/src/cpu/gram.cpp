// SPDX-License-Identifier: Apache-2.0
//
// Dense Gram (S0):  K[n,c,m,d] = sum_l (<a_l[n], a_l[m]> + bias_l) <g_l[n,c], g_l[m,d]>.
//
// Rows of K are (n,c) for outputs = full and n otherwise, so each layer is an entrywise product of
// two ordinary products: Q = G G^T of depth o (or c o for the trace) and P = A A^T of depth i, an
// entry of P serving c x d entries.
//
//   for each pair of blocks of rows (only j <= i when square)
//     for each slab of depth that fits the workspace (one slab when it can be)
//       pack the block's rows of a and g into panels                       parallel over panels
//       for each tile of the pair                                          parallel over tiles
//         for each layer: P, Q of the tile, then acc += P o Q in float64   the tile stays in cache
//         after the last slab: store the tile and its mirror image once
//
// Multiply-adds a pair of samples: i + c^2 o a layer, halved when square. Bytes: each factor is
// packed once for every block it meets, the output written once. Across layers the sum is float64,
// so layers of very different scale lose nothing. An entry's sums follow the chunks of GramPlan
// alone: tiles, blocks and threads never change a bit. Products of float32 underflow or overflow
// only where entries leave [2^-48, 2^48]: such a layer is packed times a power of two, which fold()
// takes out again in float64.
#include "backend.hpp"
#include "gram_access.hpp"
#include "gram_plan.hpp"
#include "gram_store.hpp"
#include "parallel.hpp"
#include "scan.hpp"
#include "tile_kernels.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace fastfisher::cpu {
namespace {

// Below this many multiply-adds waking a second thread costs more than it saves.
constexpr double kSerialWork = 2e6;
// Rows that one task packs: whole panels of every kernel, both left and right.
constexpr std::int64_t kPackedRows = 48;
// Magnitudes whose products, summed over any depth, stay in the range of T.
template <class T>
constexpr int kSafeExponent = sizeof(T) == 4 ? 48 : 480;

// S: type of the factors and the output. T: type of the products.
template <class S, class T>
class Gram {
 public:
  Gram(const Context& ctx, std::span<const LayerFactors> left, std::span<const LayerFactors> right,
       const GramOptions& options, const ArrayRef& out, int threads)
      : ctx_(ctx),
        left_(left),
        right_(right.empty() ? left : right),
        options_(options),
        out_(out),
        threads_(threads),
        kernels_(tile_kernels<T>()),
        shape_(gram_shape(left, right, options.outputs)),
        plan_(
            gram_plan(shape_, kernels_.mr, kernels_.nr, sizeof(T), threads, options.memory_limit)) {
    if (static_cast<std::int64_t>(ctx.workspace.size()) < plan_.bytes) {
      throw Error(ErrorCode::memory, "gram", "workspace",
                  "got " + std::to_string(ctx.workspace.size()) + " bytes, expected " +
                      std::to_string(plan_.bytes) + " as gram_workspace says");
    }
    const auto start = reinterpret_cast<std::uintptr_t>(ctx.workspace.data());
    auto* aligned = ctx.workspace.data() + (round_up(static_cast<std::int64_t>(start), 64) -
                                            static_cast<std::int64_t>(start));
    left_panels_ = reinterpret_cast<T*>(aligned);
    right_panels_ = reinterpret_cast<T*>(aligned + plan_.left_bytes);
    states_ = aligned + plan_.left_bytes + plan_.right_bytes;
  }

  GramReport run() {
    GramReport report = scan_factors();
    if (report.kind != GramReport::Kind::ok || shape_.rows == 0 || shape_.cols == 0) return report;
    for (std::int64_t plane = 0; plane < shape_.planes; ++plane) {
      use_plane(plane);
      for (std::int64_t i = 0; i < shape_.rows; i += plan_.block_rows) {
        const std::int64_t cols = shape_.symmetric ? i + 1 : shape_.cols;
        for (std::int64_t j = 0; j < cols; j += plan_.block_cols) block(i, j);
      }
    }
    if (overflow_.load()) report.kind = GramReport::Kind::overflow;
    return report;
  }

 private:
  // Finds bad entries and the power of two that each factor is packed with.
  GramReport scan_factors() {
    const std::size_t layers = left_.size();
    left_rows_.resize(2 * layers);
    right_rows_.resize(2 * layers);
    fold_scale_.assign(layers, 1);
    fold_bias_.assign(layers, 0);
    for (std::size_t layer = 0; layer < layers; ++layer) {
      double total = 0;
      int exponents_a = 0;
      for (int side = 0; side < 2; ++side) {
        const LayerFactors& factors = side == 0 ? left_[layer] : right_[layer];
        Rows* rows = (side == 0 ? left_rows_ : right_rows_).data() + 2 * layer;
        if (side == 1 && shape_.symmetric) {
          rows[0] = left_rows_[2 * layer];
          rows[1] = left_rows_[2 * layer + 1];
        } else {
          rows[0] = rows_of_a(factors.a);
          rows[1] = rows_of_g(factors.g, options_.outputs);
          for (int argument = 0; argument < 2; ++argument) {
            const ScanResult found = scan(ctx_, threads_, argument == 0 ? factors.a : factors.g);
            if (found.first_bad >= 0) {
              return {GramReport::Kind::non_finite, side, static_cast<int>(layer), argument,
                      found.first_bad};
            }
            // The bias joins the inner product of a, so it takes part in its scale.
            const double largest =
                argument == 0 && factors.bias ? std::max(found.largest, 1.0) : found.largest;
            rows[argument].scale = std::ldexp(1.0, -exponent_of(largest));
          }
        }
        exponents_a += exponent(rows[0].scale);
        total += exponent(rows[0].scale) + exponent(rows[1].scale);
      }
      fold_bias_[layer] = left_[layer].bias ? std::ldexp(1.0, exponents_a) : 0;
      // Denormal or zero where every entry underflows; infinite, hence an overflow, beyond the
      // range.
      fold_scale_[layer] = std::ldexp(1.0, static_cast<int>(std::clamp(-total, -2000.0, 2000.0)));
    }
    return {};
  }

  static int exponent(double power_of_two) { return std::ilogb(power_of_two); }
  static int exponent_of(double largest) {
    if (largest == 0) return 0;
    const int e = std::ilogb(largest);
    constexpr int kMost = std::is_same_v<T, float> ? 126 : 1000;  // so that 2^-e is a normal T
    return std::abs(e) <= kSafeExponent<T> ? 0 : std::clamp(e, -kMost, kMost);
  }

  // Outputs = diagonal: plane c takes g[:, c, :] and writes out[:, :, c].
  void use_plane(std::int64_t plane) {
    target_ = target_of(out_, options_.outputs);
    if (options_.outputs != GramOutputs::diagonal) return;
    target_.data = static_cast<S*>(out_.data) + plane * out_.stride(2);
    for (std::size_t layer = 0; layer < left_.size(); ++layer) {
      const auto at_plane = [plane](const ArrayRef& g) {
        return static_cast<const S*>(g.data) + plane * g.stride(1);
      };
      left_rows_[2 * layer + 1].data = at_plane(left_[layer].g);
      right_rows_[2 * layer + 1].data = at_plane(right_[layer].g);
    }
  }

  void block(std::int64_t i, std::int64_t j) {
    for (std::size_t slab = 0; slab + 1 < plan_.slabs.size(); ++slab) {
      // With a single slab the left panels serve the whole row of blocks.
      pack(i, j, slab, !plan_.single_slab() || j == 0);
      const std::int64_t rows = std::min(plan_.block_rows, shape_.rows - i);
      const std::int64_t cols = std::min(plan_.block_cols, shape_.cols - j);
      const std::int64_t across = ceil_div(cols, plan_.tile_cols);
      const std::int64_t tiles = ceil_div(rows, plan_.tile_rows) * across;
      parallel_for(ctx_, threads_, tiles, [&](std::int64_t index, int worker) {
        // From the bottom: when square the longest rows of tiles come first.
        const std::int64_t at = tiles - 1 - index;
        tile(i, j, at / across * plan_.tile_rows, at % across * plan_.tile_cols, slab,
             plan_.single_slab() ? worker : at);
      });
    }
  }

  // Packs the slab's panels. A task takes a stretch of rows through all chunks: long reads of each
  // row, and where a block meets itself the rows come from memory once for both sides.
  void pack(std::int64_t i, std::int64_t j, std::size_t slab, bool left) {
    struct Stretch {
      bool gradients, left, right;
      std::int64_t row;
    };
    std::vector<Stretch> stretches;
    const bool together = left && shape_.symmetric && i == j;
    for (const bool gradients : {false, true}) {
      const std::int64_t left_rows = left ? extent(gradients, true) : 0;
      const std::int64_t right_rows = extent(gradients, false);
      if (together) {
        for (std::int64_t row = 0; row < std::max(left_rows, right_rows); row += kPackedRows) {
          stretches.push_back({gradients, true, true, row});
        }
        continue;
      }
      for (std::int64_t row = 0; row < left_rows; row += kPackedRows) {
        stretches.push_back({gradients, true, false, row});
      }
      for (std::int64_t row = 0; row < right_rows; row += kPackedRows) {
        stretches.push_back({gradients, false, true, row});
      }
    }
    parallel_for(ctx_, threads_, static_cast<std::int64_t>(stretches.size()),
                 [&](std::int64_t index, int) {
                   const Stretch& stretch = stretches[static_cast<std::size_t>(index)];
                   if (stretch.left) pack_side(true, stretch.gradients, i, stretch.row, slab);
                   if (stretch.right) pack_side(false, stretch.gradients, j, stretch.row, slab);
                 });
  }

  // Rows row .. row + kPackedRows of the block that starts at `block`, one side.
  void pack_side(bool left, bool gradients, std::int64_t block, std::int64_t row,
                 std::size_t slab) const {
    const std::int64_t width = left ? kernels_.mr : kernels_.nr;
    const std::int64_t outputs = gradients ? 1 : left ? shape_.left_outputs : shape_.right_outputs;
    const std::int64_t all = (left ? shape_.rows : shape_.cols) / outputs;
    const std::int64_t end = std::min(extent(gradients, left), row + kPackedRows);
    for (; row < end; row += width) {
      const std::int64_t first = block / outputs + row;
      const std::int64_t count = std::clamp<std::int64_t>(all - first, 0, width);
      T* to = left ? left_panels_ : right_panels_;
      for (std::size_t c = plan_.slabs[slab]; c < plan_.slabs[slab + 1]; ++c) {
        const GramChunk& chunk = plan_.chunks[c];
        const std::size_t which = 2 * static_cast<std::size_t>(chunk.layer) + (gradients ? 1 : 0);
        if (chunk.gradients == gradients) {
          pack_panel((left ? left_rows_ : right_rows_)[which], chunk, first, count, width,
                     to + row * chunk.depth);
        }
        to += chunk_entries(chunk, left);
      }
    }
  }

  void pack_panel(const Rows& rows, const GramChunk& chunk, std::int64_t first, std::int64_t count,
                  std::int64_t width, T* to) const {
    const S* at[64];
    std::int64_t done = 0;
    while (done < chunk.depth) {
      const std::int64_t k = chunk.from + done;
      const std::int64_t run = std::min(chunk.depth - done, rows.run - k % rows.run);
      const std::int64_t offset = k / rows.run * rows.run_stride + k % rows.run * rows.depth_stride;
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t row = first + r;
        at[r] = static_cast<const S*>(rows.data) + offset + row / rows.inner * rows.outer_stride +
                row % rows.inner * rows.inner_stride;
      }
      if constexpr (std::is_same_v<S, float>) {
        kernels_.pack_f32(at, count, width, rows.depth_stride, run, rows.scale, to + done * width);
      } else {
        kernels_.pack_f64(at, count, width, rows.depth_stride, run, rows.scale, to + done * width);
      }
      done += run;
    }
  }

  [[nodiscard]] std::int64_t extent(bool gradients, bool left) const {
    return left ? panel_extent(gradients, plan_.block_rows, shape_.left_outputs, kernels_.mr)
                : panel_extent(gradients, plan_.block_cols, shape_.right_outputs, kernels_.nr);
  }
  [[nodiscard]] std::int64_t chunk_entries(const GramChunk& chunk, bool left) const {
    return round_up(extent(chunk.gradients, left) * chunk.depth *
                        static_cast<std::int64_t>(sizeof(T)),
                    64) /
           static_cast<std::int64_t>(sizeof(T));
  }

  // Tile at (r, q) of the block at (i, j): adds the slab's chunks to the tile's state.
  void tile(std::int64_t i, std::int64_t j, std::int64_t r, std::int64_t q, std::size_t slab,
            std::int64_t state) {
    const std::int64_t rows =
        std::min({plan_.tile_rows, shape_.rows - i - r, plan_.block_rows - r});
    const std::int64_t cols =
        std::min({plan_.tile_cols, shape_.cols - j - q, plan_.block_cols - q});
    if (shape_.symmetric && i + r + rows - 1 < j + q) return;  // wholly above the diagonal
    std::byte* at = states_ + state * plan_.state_bytes;
    auto* acc = reinterpret_cast<double*>(at);
    auto* product = reinterpret_cast<T*>(at + round_up(plan_.tile_rows * plan_.tile_cols * 8, 64));
    T* samples = product + round_up(plan_.tile_rows * plan_.tile_cols * kItem, 64) / kItem;
    T* spread = samples + (plan_.state_bytes - (reinterpret_cast<std::byte*>(samples) - at) -
                           round_up(plan_.tile_cols * kItem, 64)) /
                              kItem;

    const SamplePanels left_samples =
        sample_panels(i, i + r, rows, shape_.left_outputs, kernels_.mr);
    const SamplePanels right_samples =
        sample_panels(j, j + q, cols, shape_.right_outputs, kernels_.nr);
    const std::int64_t first_n = i / shape_.left_outputs + left_samples.panel * kernels_.mr;
    const std::int64_t first_m = j / shape_.right_outputs + right_samples.panel * kernels_.nr;
    const std::int64_t ld_samples = right_samples.panels * kernels_.nr;

    const T* left = left_panels_;
    const T* right = right_panels_;
    for (std::size_t c = plan_.slabs[slab]; c < plan_.slabs[slab + 1]; ++c) {
      const GramChunk& chunk = plan_.chunks[c];
      const std::int64_t left_pitch = chunk.depth * kernels_.mr;
      const std::int64_t right_pitch = chunk.depth * kernels_.nr;
      if (chunk.gradients) {
        kernels_.product(left + r / kernels_.mr * left_pitch, right + q / kernels_.nr * right_pitch,
                         chunk.depth, left_pitch, right_pitch, ceil_div(rows, kernels_.mr),
                         ceil_div(cols, kernels_.nr), skew(i + r, j + q), product, plan_.tile_cols,
                         !chunk.first);
        if (chunk.last) {
          fold(chunk.layer, i + r, rows, first_n, j + q, cols, first_m, samples, ld_samples,
               product, spread, acc);
        }
      } else {
        kernels_.product(left + left_samples.panel * left_pitch,
                         right + right_samples.panel * right_pitch, chunk.depth, left_pitch,
                         right_pitch, left_samples.panels, right_samples.panels,
                         skew(first_n, first_m), samples, ld_samples, !chunk.first);
      }
      left += chunk_entries(chunk, true);
      right += chunk_entries(chunk, false);
    }
    if (slab + 2 == plan_.slabs.size() &&
        !store_tile<S>(target_, shape_.symmetric, i + r, rows, j + q, cols, acc, plan_.tile_cols)) {
      overflow_.store(true, std::memory_order_relaxed);
    }
  }

  [[nodiscard]] std::int64_t skew(std::int64_t row, std::int64_t col) const {
    return shape_.symmetric ? row - col : std::numeric_limits<std::int64_t>::max() / 4;
  }

  // acc (+)= P o Q for one layer, in float64.
  void fold(int layer, std::int64_t row, std::int64_t rows, std::int64_t first_n, std::int64_t col,
            std::int64_t cols, std::int64_t first_m, const T* samples, std::int64_t ld_samples,
            const T* product, T* spread, double* acc) const {
    const double scale = fold_scale_[static_cast<std::size_t>(layer)];
    const double bias = fold_bias_[static_cast<std::size_t>(layer)];
    const std::int64_t d = shape_.right_outputs;
    std::int64_t spread_n = -1;
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t n = (row + r) / shape_.left_outputs;
      // Entries right of the diagonal are never stored, and some of them never computed.
      const std::int64_t used = shape_.symmetric ? std::min(cols, row + r - col + 1) : cols;
      if (used <= 0) continue;
      const T* p = samples + (n - first_n) * ld_samples;
      if (d > 1) {
        if (n != spread_n) {
          // One entry of P serves d columns; up to the sample's last row, so that its other rows
          // find all of it.
          const std::int64_t last = shape_.symmetric ? std::min(cols, (n + 1) * d - col) : cols;
          for (std::int64_t q = 0; q < last;) {
            const std::int64_t m = (col + q) / d;
            const std::int64_t end = std::min(last, (m + 1) * d - col);
            for (; q < end; ++q) spread[q] = p[m - first_m];
          }
          spread_n = n;
        }
        p = spread;
      } else {
        p += col - first_m;
      }
      kernels_.fold(p, product + r * plan_.tile_cols, bias, scale, used, acc + r * plan_.tile_cols,
                    layer != 0);
    }
  }

  static constexpr std::int64_t kItem = sizeof(T);

  const Context& ctx_;
  std::span<const LayerFactors> left_, right_;
  GramOptions options_;
  const ArrayRef& out_;
  int threads_;
  const TileKernels<T>& kernels_;
  GramShape shape_;
  GramPlan plan_;
  T* left_panels_ = nullptr;
  T* right_panels_ = nullptr;
  std::byte* states_ = nullptr;
  std::vector<Rows> left_rows_, right_rows_;  // [2 layer]: a, [2 layer + 1]: g
  std::vector<double> fold_scale_, fold_bias_;
  Target target_;
  std::atomic<bool> overflow_{false};
};

int gram_threads(const Context& ctx, const GramShape& shape) {
  double depth = 0;
  for (std::size_t layer = 0; layer < shape.depth_a.size(); ++layer) {
    depth += static_cast<double>(shape.depth_a[layer] + shape.depth_g[layer]);
  }
  const double work = static_cast<double>(shape.rows) * static_cast<double>(shape.cols) *
                      static_cast<double>(shape.planes) * depth;
  return work < kSerialWork ? 1 : thread_count(ctx);
}

// The types of one call: storage S, products T.
template <class Function>
decltype(auto) visit_types(DType dtype, GramPrecision precision, Function&& function) {
  return visit_dtype(dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    if (precision == GramPrecision::exact) return function(TypeTag<S>{}, TypeTag<double>{});
    return function(TypeTag<S>{}, TypeTag<S>{});
  });
}

}  // namespace

GramEstimate gram_workspace(const Context& ctx, std::span<const LayerFactors> left,
                            std::span<const LayerFactors> right, const GramOptions& options) {
  const GramShape shape = gram_shape(left, right, options.outputs);
  const int threads = gram_threads(ctx, shape);
  return visit_types(left.front().a.dtype, options.precision, [&](auto, auto compute) {
    using T = typename decltype(compute)::type;
    const TileKernels<T>& kernels = tile_kernels<T>();
    GramEstimate estimate;
    estimate.bytes = gram_plan(shape, kernels.mr, kernels.nr, sizeof(T), threads, options.memory_limit).bytes;
    estimate.layers.resize(left.size(), {GramMethod::s0, 0, 0});
    return estimate;
  });
}

GramReport gram(const Context& ctx, std::span<const LayerFactors> left,
                std::span<const LayerFactors> right, const GramOptions& options, const ArrayRef& out) {
  const int threads = gram_threads(ctx, gram_shape(left, right, options.outputs));
  ask_for_huge_pages(out);
  return visit_types(out.dtype, options.precision, [&](auto storage, auto compute) {
    using S = typename decltype(storage)::type;
    using T = typename decltype(compute)::type;
    return Gram<S, T>(ctx, left, right, options, out, threads).run();
  });
}

}  // namespace fastfisher::cpu
