// SPDX-License-Identifier: Apache-2.0
//
// Gram of per-sample Jacobians:  K[n,c,m,d] = sum_l <J_l[n,c], J_l[m,d]>,
// J[n,c] = sum_s g[n,c,s] (x) a[n,s]. Rows of K are (n,c) for outputs = full and n otherwise. One
// layer is either one product of gradients, Q, or a sum of entrywise products P o Q of a product
// over samples, depth i, and one over outputs, depth o; an entry of P serves c x d entries:
//
//   S0  dense          P = A A^T, Q = G G^T (for the trace of depth c o)
//   S1  gradients      Q over slices of the parameters, formed for the rows of a block
//   S3  position pairs for each (s,t): P = A_s A_t^T, Q = G_s G_t^T
//   S4  separable      for each unit o: P over the formed sum_s m a, Q = w_o w_o^T
//
//   for each pair of blocks of rows (only j <= i when square)
//     for each group of slabs of chunks that fits the workspace (one slab when it can be)
//       form the group's gradients for the block's samples                 parallel over samples
//       for each slab of the group
//         pack the block's rows into panels                                parallel over panels
//         for each tile of the pair                                        parallel over tiles
//           for each chunk: P, Q of the tile, then acc += P o Q in float64 the tile stays in cache
//           after the last slab: store the tile and its mirror image once
//
// Multiply-adds are those of gram_methods.cpp. Bytes: each factor is packed once for every block it
// meets, the output written once. Across layers the sum is float64, so layers of very different
// scale lose nothing. An entry's sums follow the chunks of GramPlan alone: tiles, blocks, slabs and
// threads never change a bit. Products of float32 underflow or overflow only where entries leave
// [2^-48, 2^48] (2^12 where products are multiplied again): such a factor is packed times a power
// of two, which fold() takes out again in float64.
#include "backend.hpp"
#include "gram_rows.hpp"
#include "gram_store.hpp"
#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

namespace fastfisher::cpu {
namespace {

// Below this many multiply-adds waking a second thread costs more than it saves.
constexpr double kSerialWork = 2e6;
// Rows that one task packs: whole panels of every kernel, both left and right.
constexpr std::int64_t kPackedRows = 48;

// S: type of the factors. T: type of the products. R: type of the output.
template <class S, class T, class R>
class Gram {
 public:
  Gram(const Context& ctx, const GramShape& shape, const GramPlan& plan, int threads)
      : ctx_(ctx), shape_(shape), plan_(plan), threads_(threads), kernels_(tile_kernels<T>()) {
    const auto start = reinterpret_cast<std::uintptr_t>(ctx.workspace.data());
    auto* at = ctx.workspace.data() + (round_up(static_cast<std::int64_t>(start), 64) -
                                       static_cast<std::int64_t>(start));
    const auto take = [&at](std::int64_t bytes) {
      std::byte* taken = at;
      at += bytes;
      return taken;
    };
    left_panels_ = reinterpret_cast<T*>(take(plan_.left_bytes));
    right_panels_ = reinterpret_cast<T*>(take(plan_.right_bytes));
    formed_left_ = reinterpret_cast<T*>(take(plan_.formed_left));
    formed_right_ = reinterpret_cast<T*>(take(plan_.formed_right));
    form_ = take(plan_.form_bytes);
    states_ = take(0);
  }

  GramReport run(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
                 const ArrayRef& out) {
    out_ = &out;
    overflow_.store(false, std::memory_order_relaxed);
    sides_.emplace(ctx_, threads_, left, right, shape_, kernels_);
    GramReport report = sides_->report();
    if (report.kind != GramReport::Kind::ok || shape_.rows == 0 || shape_.cols == 0) return report;
    expect_progress();
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
  // Outputs = diagonal: plane c takes output c of the factors and writes out[:, :, c].
  void use_plane(std::int64_t plane) {
    target_ = target_of(*out_, shape_.kind);
    if (shape_.kind == GramOutputs::diagonal)
      target_.data = static_cast<R*>(out_->data) + plane * out_->stride(2);
    plane_ = plane;
    sides_->use_plane(plane);
  }

  void expect_progress() {
    if (ctx_.progress == nullptr) return;
    std::int64_t tiles = 0;
    for (std::int64_t i = 0; i < shape_.rows; i += plan_.block_rows) {
      const std::int64_t cols = shape_.symmetric ? i + 1 : shape_.cols;
      for (std::int64_t j = 0; j < cols; j += plan_.block_cols)
        tiles += TileGrid(plan_, shape_, i, j).size();
    }
    const auto slabs = static_cast<std::int64_t>(plan_.slabs.size());
    std::atomic_ref(ctx_.progress[1]).store(tiles * slabs * shape_.planes);
  }

  void block(std::int64_t i, std::int64_t j) {
    const TileGrid grid(plan_, shape_, i, j);
    // With a single slab the left panels serve the whole row of blocks.
    const bool left = !plan_.single_slab() || j == 0;
    const bool together = left && shape_.symmetric && i == j;
    for (const GramGroup& group : plan_.groups) {
      if (left) form(i, true, group);
      if (!together) form(j, false, group);
      for (std::size_t slab = group.first; slab < group.last; ++slab) {
        pack(i, j, plan_.slabs[slab], group, left, together);
        parallel_for(ctx_, threads_, grid.size(), [&](std::int64_t index, int worker) {
          // From the bottom: when square the longest rows of tiles come first.
          const std::int64_t at = grid.size() - 1 - index;
          const auto above = std::upper_bound(grid.before.begin(), grid.before.end(), at) - 1;
          const std::int64_t r = above - grid.before.begin(), q = at - *above;
          tile(i, j, r * plan_.tile_rows, q * plan_.tile_cols, slab,
               plan_.single_slab() ? worker : at);
          if (ctx_.progress != nullptr) std::atomic_ref(ctx_.progress[0]).fetch_add(1);
        });
      }
    }
  }

  // Gradients of a group's pieces for the samples of a block.
  void form(std::int64_t block, bool left, const GramGroup& group) {
    if (group.pieces.empty()) return;
    const std::int64_t outputs = left ? shape_.left_outputs : shape_.right_outputs;
    const std::int64_t all = left ? shape_.rows : shape_.cols;
    const std::int64_t rows = std::min(left ? plan_.block_rows : plan_.block_cols, all - block);
    const std::int64_t first = block / outputs, end = (block + rows - 1) / outputs + 1;
    T* base = left ? formed_left_ : formed_right_;
    parallel_for(ctx_, threads_, end - first, [&](std::int64_t index, int worker) {
      const FormScratch<S, T> scratch = scratch_of(worker);
      for (const GramPiece& piece : group.pieces) {
        T* to = base + (left ? piece.left_at : piece.right_at) + index * piece.sample_entries;
        sides_->form(left, first + index, plane_, piece, plan_, to, scratch);
      }
    });
  }

  [[nodiscard]] FormScratch<S, T> scratch_of(int worker) const {
    std::byte* mine = form_ + worker * (plan_.form_bytes / threads_);
    auto* rows = reinterpret_cast<S*>(mine);
    auto* panels =
        reinterpret_cast<T*>(mine + round_up((plan_.nr + 1) * kGramDepth * std::int64_t{8}, 64));
    return {panels, panels + plan_.form_left, rows};
  }

  // Packs the slab's panels. A task takes a stretch of rows through all chunks: long reads of each
  // row, and where a block meets itself the rows come from memory once for both sides.
  void pack(std::int64_t i, std::int64_t j, const GramSlab& slab, const GramGroup& group, bool left,
            bool together) {
    struct Stretch {
      bool gradients, left, right;
      std::int64_t row;
    };
    std::vector<Stretch> stretches;
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
                   if (stretch.left)
                     pack_side(true, stretch.gradients, i, stretch.row, slab, group, true);
                   if (stretch.right)
                     pack_side(false, stretch.gradients, j, stretch.row, slab, group, together);
                 });
  }

  // Rows row .. row + kPackedRows of the block that starts at `block`, one side. Where a block meets
  // itself, the right finds what was formed at the left's.
  void pack_side(bool left, bool gradients, std::int64_t block, std::int64_t row,
                 const GramSlab& slab, const GramGroup& group, bool formed_left) const {
    const std::int64_t width = left ? kernels_.mr : kernels_.nr;
    const std::int64_t side_outputs = left ? shape_.left_outputs : shape_.right_outputs;
    const std::int64_t outputs = gradients ? 1 : side_outputs;
    const std::int64_t all = (left ? shape_.rows : shape_.cols) / outputs;
    const std::int64_t end = std::min(extent(gradients, left), row + kPackedRows);
    for (std::size_t c = slab.first; c < slab.last; ++c) {
      const GramChunk& chunk = plan_.chunks[c];
      if (chunk.gradients != gradients) continue;
      T* to = left ? left_panels_ + chunk.left_at : right_panels_ + chunk.right_at;
      const GramPiece* piece =
          chunk.piece < 0 ? nullptr : &group.pieces[static_cast<std::size_t>(chunk.piece)];
      const T* formed = nullptr;
      if (piece != nullptr)
        formed = formed_left ? formed_left_ + piece->left_at : formed_right_ + piece->right_at;
      const auto source = sides_->rows(left, chunk, piece, block / side_outputs, formed);
      for (std::int64_t r = row; r < end; r += width) {
        const std::int64_t first = block / outputs + r;
        const std::int64_t count = std::clamp<std::int64_t>(all - first, 0, width);
        sides_->pack_panel(left, source, chunk, first, count, width, to + r * chunk.depth);
      }
    }
  }

  [[nodiscard]] std::int64_t extent(bool gradients, bool left) const {
    return left ? panel_extent(gradients, plan_.block_rows, shape_.left_outputs, kernels_.mr)
                : panel_extent(gradients, plan_.block_cols, shape_.right_outputs, kernels_.nr);
  }

  // One tile: rows and columns of the Gram, the panels of samples they touch, its memory.
  struct Tile {
    std::int64_t row, rows, col, cols;          // of the Gram
    std::int64_t left_panel, right_panel;       // first ones of its rows and columns
    SamplePanels left, right;                   // of its samples
    std::int64_t first_n, first_m, ld_samples;  // of `samples`
    double* acc;
    T *product, *samples, *spread;
    bool started = false;  // acc holds something
  };

  // Tile at (r, q) of the block at (i, j): adds the slab's chunks to the tile's state.
  void tile(std::int64_t i, std::int64_t j, std::int64_t r, std::int64_t q, std::size_t slab,
            std::int64_t state) {
    Tile t;
    t.row = i + r;
    t.col = j + q;
    t.rows = std::min({plan_.tile_rows, shape_.rows - t.row, plan_.block_rows - r});
    t.cols = std::min({plan_.tile_cols, shape_.cols - t.col, plan_.block_cols - q});
    t.left_panel = r / kernels_.mr;
    t.right_panel = q / kernels_.nr;
    std::byte* at = states_ + state * plan_.state_bytes;
    t.acc = reinterpret_cast<double*>(at);
    t.product = reinterpret_cast<T*>(at + round_up(plan_.tile_rows * plan_.tile_cols * 8, 64));
    t.samples = t.product + round_up(plan_.tile_rows * plan_.tile_cols * kItem, 64) / kItem;
    t.spread = t.samples + (plan_.state_bytes - (reinterpret_cast<std::byte*>(t.samples) - at) -
                            round_up(plan_.tile_cols * kItem, 64)) /
                               kItem;
    t.left = sample_panels(i, t.row, t.rows, shape_.left_outputs, kernels_.mr);
    t.right = sample_panels(j, t.col, t.cols, shape_.right_outputs, kernels_.nr);
    t.first_n = i / shape_.left_outputs + t.left.panel * kernels_.mr;
    t.first_m = j / shape_.right_outputs + t.right.panel * kernels_.nr;
    t.ld_samples = t.right.panels * kernels_.nr;
    t.started = plan_.slabs[slab].started;

    const GramSlab& now = plan_.slabs[slab];
    for (std::size_t c = now.first; c < now.last;) {
      const GramChunk& chunk = plan_.chunks[c];
      const LayerShape& layer = shape_.layers[static_cast<std::size_t>(chunk.layer)];
      if (layer.method == GramMethod::s3 && chunk.depth > 0) {
        c = position_pairs(t, layer, c);
        continue;
      }
      multiply(t, chunk, chunk, !chunk.first);
      if (chunk.gradients && chunk.last) fold(t, chunk.layer, layer.has_samples(shape_.kind));
      ++c;
    }
    if (slab + 1 == plan_.slabs.size() &&
        !store_tile<R>(target_, shape_.symmetric, t.row, t.rows, t.col, t.cols, t.acc,
                       plan_.tile_cols)) {
      overflow_.store(true, std::memory_order_relaxed);
    }
  }

  // P or Q (+)= left chunk times right chunk, over the tile.
  void multiply(const Tile& t, const GramChunk& left, const GramChunk& right,
                bool accumulate) const {
    const std::int64_t left_pitch = left.depth * kernels_.mr;
    const std::int64_t right_pitch = left.depth * kernels_.nr;
    const T* x = left_panels_ + left.left_at;
    const T* y = right_panels_ + right.right_at;
    if (left.gradients) {
      kernels_.product(x + t.left_panel * left_pitch, y + t.right_panel * right_pitch, left.depth,
                       left_pitch, right_pitch, ceil_div(t.rows, kernels_.mr),
                       ceil_div(t.cols, kernels_.nr), skew(t.row, t.col), t.product,
                       plan_.tile_cols, accumulate);
    } else {
      kernels_.product(x + t.left.panel * left_pitch, y + t.right.panel * right_pitch, left.depth,
                       left_pitch, right_pitch, t.left.panels, t.right.panels,
                       skew(t.first_n, t.first_m), t.samples, t.ld_samples, accumulate);
    }
  }

  // S3: every position of the left with every one of the right. The layer's chunks lie position by
  // position, equally many for each. Returns the first chunk behind them.
  std::size_t position_pairs(Tile& t, const LayerShape& layer, std::size_t begin) const {
    const std::int64_t positions = layer.positions();
    std::size_t each = 0;
    while (begin + each < plan_.chunks.size() &&
           plan_.chunks[begin + each].layer == plan_.chunks[begin].layer &&
           plan_.chunks[begin + each].unit == 0 && plan_.chunks[begin + each].group == 0)
      ++each;
    for (std::int64_t group = 0; group < layer.groups; ++group) {
      const auto chunk = [&](std::int64_t position, std::size_t k) -> const GramChunk& {
        return plan_.chunks[begin + static_cast<std::size_t>(group * positions + position) * each +
                            k];
      };
      for (std::int64_t s = 0; s < layer.left_positions; ++s) {
        for (std::int64_t u = 0; u < layer.right_positions; ++u) {
          for (std::size_t k = 0; k < each; ++k)
            multiply(t, chunk(s, k), chunk(u, k), !chunk(s, k).first);
          fold(t, plan_.chunks[begin].layer, true);
        }
      }
    }
    return begin + static_cast<std::size_t>(layer.groups * positions) * each;
  }

  [[nodiscard]] std::int64_t skew(std::int64_t row, std::int64_t col) const {
    return shape_.symmetric ? row - col : std::numeric_limits<std::int64_t>::max() / 4;
  }

  // acc (+)= P o Q, or Q alone, in float64.
  void fold(Tile& t, int layer, bool samples) const {
    const double scale = sides_->fold_scale(layer), bias = sides_->fold_bias(layer);
    const std::int64_t d = shape_.right_outputs;
    std::int64_t spread_n = -1;
    for (std::int64_t r = 0; r < t.rows; ++r) {
      const std::int64_t n = (t.row + r) / shape_.left_outputs;
      // Entries right of the diagonal are never stored, and some of them never computed.
      const std::int64_t used =
          shape_.symmetric ? std::min(t.cols, t.row + r - t.col + 1) : t.cols;
      if (used <= 0) continue;
      const T* p = nullptr;
      if (samples) {
        p = t.samples + (n - t.first_n) * t.ld_samples;
        if (d > 1) {
          if (n != spread_n) {
            // One entry of P serves d columns; up to the sample's last row, so that its other rows
            // find all of it.
            const std::int64_t last =
                shape_.symmetric ? std::min(t.cols, (n + 1) * d - t.col) : t.cols;
            for (std::int64_t q = 0; q < last;) {
              const std::int64_t m = (t.col + q) / d;
              const std::int64_t end = std::min(last, (m + 1) * d - t.col);
              for (; q < end; ++q) t.spread[q] = p[m - t.first_m];
            }
            spread_n = n;
          }
          p = t.spread;
        } else {
          p += t.col - t.first_m;
        }
      }
      kernels_.fold(p, t.product + r * plan_.tile_cols, bias, scale, used,
                    t.acc + r * plan_.tile_cols, t.started);
    }
    t.started = true;
  }

  static constexpr std::int64_t kItem = sizeof(T);

  const Context& ctx_;
  const GramShape& shape_;
  const GramPlan& plan_;
  int threads_;
  const TileKernels<T>& kernels_;
  std::optional<GramSides<S, T>> sides_;
  const ArrayRef* out_ = nullptr;
  std::int64_t plane_ = 0;
  T *left_panels_ = nullptr, *right_panels_ = nullptr, *formed_left_ = nullptr,
    *formed_right_ = nullptr;
  std::byte* form_ = nullptr;
  std::byte* states_ = nullptr;
  Target target_;
  std::atomic<bool> overflow_{false};
};

int gram_threads(const Context& ctx, const GramShape& shape) {
  double work = 0;
  for (const GramChoice& choice : gram_choices(shape, 4, 1)) work += choice.multiply_adds;
  return work < kSerialWork ? 1 : thread_count(ctx);
}

// The types of one call: storage S, products T, result R.
template <class Function>
decltype(auto) visit_types(DType dtype, GramPrecision precision, Function&& function) {
  return visit_storage(dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using R = std::conditional_t<std::is_same_v<S, double>, double, float>;
    if (precision == GramPrecision::exact)
      return function(TypeTag<S>{}, TypeTag<double>{}, TypeTag<R>{});
    return function(TypeTag<S>{}, TypeTag<R>{}, TypeTag<R>{});
  });
}

// How a call runs: one Gram on all threads, or the networks of a batch side by side, each on one.
struct Call {
  GramShape shape;
  GramPlan plan;
  std::int64_t networks = 1;
  int threads = 1;    // of one Gram
  int abreast = 1;    // Grams at a time

  [[nodiscard]] std::int64_t bytes() const { return abreast * round_up(plan.bytes, 64); }
};

std::vector<LayerFactors> network(std::span<const LayerFactors> batch, std::int64_t index) {
  std::vector<LayerFactors> layers;
  layers.reserve(batch.size());
  for (const LayerFactors& layer : batch) layers.push_back(network_of(layer, index));
  return layers;
}

template <class T>
Call call_of(const Context& ctx, std::span<const LayerFactors> left,
             std::span<const LayerFactors> right, const GramOptions& options) {
  const TileKernels<T>& kernels = tile_kernels<T>();
  Call call;
  const auto plan = [&](std::int64_t limit) {
    call.plan = gram_plan(call.shape, kernels.mr, kernels.nr, sizeof(T), call.threads, limit);
  };
  if (!options.batched) {
    call.shape = gram_shape(left, right, options.outputs, kernels.nr);
    call.threads = gram_threads(ctx, call.shape);
    plan(options.memory_limit);
    return call;
  }
  call.shape = gram_shape(network(left, 0), network(right, 0), options.outputs, kernels.nr);
  call.networks = left.front().g.extent(0);
  call.threads = gram_threads(ctx, call.shape);
  const int all = thread_count(ctx);
  // Small Grams do not fill the threads; many large ones do not need to share them.
  if (call.threads > 1 && call.networks < 8 * all) {
    plan(options.memory_limit);
    return call;
  }
  double work = 0;
  for (const GramChoice& choice : gram_choices(call.shape, sizeof(T), 1))
    work += choice.multiply_adds;
  call.threads = 1;
  call.abreast = work * static_cast<double>(call.networks) < kSerialWork
                     ? 1
                     : static_cast<int>(std::clamp<std::int64_t>(call.networks, 1, all));
  for (;; call.abreast /= 2) {
    try {
      plan(options.memory_limit / call.abreast - 64);
      return call;
    } catch (const Error&) {
      if (call.abreast == 1) throw;
    }
  }
}

template <class S, class T, class R>
GramReport run_batch(const Context& ctx, const Call& call, std::span<const LayerFactors> left,
                     std::span<const LayerFactors> right, const ArrayRef& out) {
  std::vector<GramReport> reports(static_cast<std::size_t>(call.abreast));
  Context inner = ctx;
  inner.progress = nullptr;
  if (call.abreast > 1) inner.interrupted = nullptr;
  if (ctx.progress != nullptr) std::atomic_ref(ctx.progress[1]).store(call.networks);
  std::vector<std::optional<Gram<S, T, R>>> grams(static_cast<std::size_t>(call.abreast));
  std::vector<Context> contexts(static_cast<std::size_t>(call.abreast), inner);
  for (std::size_t k = 0; k < grams.size(); ++k) {
    const auto each = static_cast<std::size_t>(round_up(call.plan.bytes, 64));
    contexts[k].workspace = ctx.workspace.subspan(k * each, each);
    grams[k].emplace(contexts[k], call.shape, call.plan, call.threads);
  }
  const auto one = [&](std::int64_t e, int worker) {
    const auto k = static_cast<std::size_t>(worker);
    const ArrayRef result = without_axis(out, e);
    GramReport report = grams[k]->run(network(left, e), network(right, e), result);
    report.network = e;
    // The first bad network, whoever meets it.
    if (report.kind != GramReport::Kind::ok &&
        (reports[k].kind == GramReport::Kind::ok || e < reports[k].network))
      reports[k] = report;
    if (ctx.progress != nullptr) std::atomic_ref(ctx.progress[0]).fetch_add(1);
  };
  if (call.abreast > 1) {
    parallel_for(ctx, call.abreast, call.networks, one);
  } else {
    for (std::int64_t e = 0; e < call.networks; ++e) one(e, 0);
  }
  GramReport found;
  for (const GramReport& report : reports) {
    if (report.kind != GramReport::Kind::ok &&
        (found.kind == GramReport::Kind::ok || report.network < found.network))
      found = report;
  }
  return found;
}

void expect_workspace(const Context& ctx, std::int64_t bytes) {
  if (static_cast<std::int64_t>(ctx.workspace.size()) >= bytes) return;
  throw Error(ErrorCode::memory, "gram", "workspace",
              "got " + std::to_string(ctx.workspace.size()) + " bytes, expected " +
                  std::to_string(bytes) + " as gram_workspace says");
}

}  // namespace

GramEstimate gram_workspace(const Context& ctx, std::span<const LayerFactors> left,
                            std::span<const LayerFactors> right, const GramOptions& options) {
  return visit_types(left.front().g.dtype, options.precision, [&](auto, auto compute, auto) {
    using T = typename decltype(compute)::type;
    const Call call = call_of<T>(ctx, left, right, options);
    GramEstimate estimate{call.bytes(), call.plan.blocks(call.shape),
                          static_cast<std::int64_t>(call.plan.slabs.size()),
                          gram_choices(call.shape, sizeof(T), call.threads * call.abreast)};
    for (GramChoice& choice : estimate.layers) {
      choice.multiply_adds *= static_cast<double>(call.networks);
      choice.seconds *= static_cast<double>(call.networks);
    }
    return estimate;
  });
}

GramReport gram(const Context& ctx, std::span<const LayerFactors> left,
                std::span<const LayerFactors> right, const GramOptions& options,
                const ArrayRef& out) {
  ask_for_huge_pages(out);
  return visit_types(left.front().g.dtype, options.precision,
                     [&](auto storage, auto compute, auto result) {
                       using S = typename decltype(storage)::type;
                       using T = typename decltype(compute)::type;
                       using R = typename decltype(result)::type;
                       const Call call = call_of<T>(ctx, left, right, options);
                       expect_workspace(ctx, call.bytes());
                       if (options.batched) return run_batch<S, T, R>(ctx, call, left, right, out);
                       Gram<S, T, R> one(ctx, call.shape, call.plan, call.threads);
                       return one.run(left, right, out);
                     });
}

}  // namespace fastfisher::cpu
