// SPDX-License-Identifier: Apache-2.0
//
// Gram of per-sample Jacobians:  K[n,c,m,d] = sum_l <J_l[n,c], J_l[m,d]>,
// J[n,c] = sum_s g[n,c,s] (x) a[n,s]. Rows of K are (n,c) for outputs = full and n otherwise. One
// layer is either one product of gradients, Q, or a sum of entrywise products P o Q of a product
// over samples, depth i, and one over outputs, depth o; an entry of P serves c x d entries:
//
//   S0  dense          P = A A^T, Q = G G^T (for the trace of depth c o)
//   S1  gradients      Q over slices of the parameters, formed for the rows of a block
//   S2  half formed    Q += G_s x for each s, x the right's formed gradients times the left's a_s
//   S3  position pairs for each (s,t): P = A_s A_t^T, Q = G_s G_t^T; where outputs meet outputs
//                      Q += G_s x for each s, x the sum over t of P times the right's G_t
//   S4  separable      for each unit o: P over the formed sum_s m a, Q = w_o w_o^T
//
//   for each pair of blocks of rows (only j <= i when square)
//     for each group of slabs of chunks that fits the workspace (one slab when it can be)
//       form the group's gradients for the block's samples                 parallel over samples
//       for each slab of the group
//         pack the block's rows into panels; where the block meets itself  parallel over panels
//           one copy serves both sides but in S2 and contracted S3; where rows are few, those of
//           gradients, formed or explicit, meet in place, vectors running along the depth
//         for each tile of the pair                                        parallel over tiles
//           for each chunk: P, Q of the tile, then acc += P o Q in float64 the tile stays in cache
//           after the last slab: store the tile and its mirror image once
//
// Multiply-adds are those of gram_methods.cpp. Bytes: each factor is packed once for every block it
// meets, the output written once. Across layers the sum is float64, so layers of very different
// scale lose nothing. An entry's sums follow the chunks of GramPlan alone: tiles, blocks, slabs and
// threads never change a bit. Products of float32 underflow or overflow only where entries leave
// [2^-48, 2^48] (2^12 where what is formed is multiplied again): such a factor is packed times a
// power of two, which fold() takes out again in float64. Samples whose a and g are of opposed scale
// are balanced besides, see gram_balance.hpp. A square Gram reads cotangents of S1 and explicit
// rows once: its diagonal says afterwards whether they had needed a power of two or hold a bad
// number, and then they are looked at, and where that matters all is done again.
#include "backend.hpp"
#include "gram_engine.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace fastfisher::cpu {
namespace {

// Below this many multiply-adds waking a second thread costs more than it saves.
constexpr double kSerialWork = 2e6;

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
  int threads = 1;  // of one Gram
  int abreast = 1;  // Grams at a time

  [[nodiscard]] std::int64_t bytes() const { return abreast * round_up(plan.bytes, 64); }
};

std::vector<LayerFactors> network(std::span<const LayerFactors> batch, std::int64_t index) {
  std::vector<LayerFactors> layers;
  layers.reserve(batch.size());
  for (const LayerFactors& layer : batch) layers.push_back(network_of(layer, index));
  return layers;
}

std::int64_t columns_of(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
                        GramOutputs outputs) {
  const LayerSizes sizes = sizes_of((right.empty() ? left : right).front());
  return sizes.samples * (outputs == GramOutputs::full ? sizes.outputs : 1);
}

// Threads and plan of one Gram within `limit` bytes. Where memory is short, fewer threads, then
// narrower panels; methods stay, for others would give other bits.
template <class T>
bool fit(Call& call, std::span<const LayerFactors> left, std::span<const LayerFactors> right,
         GramOutputs outputs, int threads, std::int64_t limit) {
  const std::array both{&tile_kernels<T>(columns_of(left, right, outputs)), &tile_kernels<T>(1)};
  for (const TileKernels<T>* kernels : std::span(both).first(both[0] == both[1] ? 1 : 2)) {
    // Padded for the narrowest panels in any case, so that the bits are the same.
    call.shape = gram_shape(left, right, outputs, tile_kernels<T>(1).nr, sizeof(T));
    for (call.threads = threads; call.threads > 0; call.threads /= 2) {
      auto plan = gram_plan(call.shape, kernels->mr, kernels->nr, sizeof(T), call.threads, limit);
      if (!plan) continue;
      call.plan = *std::move(plan);
      return true;
    }
  }
  return false;
}

template <class T>
Call call_of(const Context& ctx, std::span<const LayerFactors> left,
             std::span<const LayerFactors> right, const GramOptions& options) {
  Call call;
  std::vector<LayerFactors> first, other;
  if (options.batched) {
    call.networks = left.front().g.extent(0);
    first = network(left, 0);
    other = network(right, 0);
    left = first;
    right = other;
  }
  call.shape = gram_shape(left, right, options.outputs, tile_kernels<T>(1).nr, sizeof(T));
  double work = 0;
  for (const GramChoice& choice : gram_choices(call.shape, sizeof(T), 1))
    work += choice.multiply_adds;
  const int all = thread_count(ctx);
  int threads = work < kSerialWork ? 1 : all;
  // Small Grams do not fill the threads; many large ones do not need to share them.
  const bool side_by_side = options.batched && (threads == 1 || call.networks >= 8 * all);
  if (side_by_side && work * static_cast<double>(call.networks) >= kSerialWork)
    call.abreast = static_cast<int>(std::clamp<std::int64_t>(call.networks, 1, all));
  if (side_by_side) threads = 1;
  const std::int64_t limit = options.memory_limit;
  for (; call.abreast > 0; call.abreast /= 2) {
    const std::int64_t each = call.abreast == 1 ? limit : limit / call.abreast / 64 * 64;
    if (fit<T>(call, left, right, options.outputs, threads, each)) return call;
  }
  // The figure to name is one that works, at most an eighth too large: found by asking.
  const auto works = [&](std::int64_t bytes) {
    return fit<T>(call, left, right, options.outputs, 1, bytes);
  };
  std::int64_t enough = std::max<std::int64_t>(limit, 1024), short_of = limit;
  while (!works(enough)) {
    short_of = enough;
    enough *= 4;
  }
  while (enough - short_of > std::max<std::int64_t>(short_of / 8, 64)) {
    const std::int64_t middle = short_of + (enough - short_of) / 2;
    (works(middle) ? enough : short_of) = middle;
  }
  throw Error(ErrorCode::memory, "gram", "memory_limit",
              "needs about " + std::to_string(enough) + " bytes of workspace, got " +
                  std::to_string(limit));
}

// Stops the workers of a batch within their networks: the calling thread asks, the others look.
struct Stop {
  const Context* ctx;
  std::atomic<bool> now{false};

  static bool ask(void* state) {
    auto* stop = static_cast<Stop*>(state);
    if (stop->ctx->interrupted == nullptr || !stop->ctx->interrupted(stop->ctx->interrupted_state))
      return false;
    stop->now.store(true);
    return true;
  }
  static bool look(void* state) { return static_cast<Stop*>(state)->now.load(); }
};

template <class S, class T, class R>
GramReport run_batch(const Context& ctx, const Call& call, std::span<const LayerFactors> left,
                     std::span<const LayerFactors> right, const ArrayRef& out) {
  std::vector<GramReport> reports(static_cast<std::size_t>(call.abreast));
  Context inner = ctx;
  inner.progress = nullptr;
  Stop stop{&ctx};
  inner.interrupted_state = &stop;
  if (ctx.progress != nullptr) std::atomic_ref(ctx.progress[1]).store(call.networks);
  std::vector<std::optional<Gram<S, T, R>>> grams(static_cast<std::size_t>(call.abreast));
  std::vector<Context> contexts(static_cast<std::size_t>(call.abreast), inner);
  for (std::size_t k = 0; k < grams.size(); ++k) {
    const auto each = static_cast<std::size_t>(round_up(call.plan.bytes, 64));
    contexts[k].interrupted = k == 0 ? &Stop::ask : &Stop::look;
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
  const ParallelRegion region;
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
