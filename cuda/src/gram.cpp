// SPDX-License-Identifier: Apache-2.0
//
// The Gram on a device:  K[n,c,m,d] = sum_l <J_l[n,c], J_l[m,d]>, for dense layers
//   (<a_l[n], a_l[m]> + bias_l) <g_l[n,c], g_l[m,d]>.
//
// Rows of K are (n,c) for outputs = full and n otherwise, so each layer is an entrywise product of
// two ordinary products: Q = G G^T of depth o (or c o for the trace) and P = A A^T of depth i, an
// entry of P serving c x d entries. An explicit Jacobian is Q alone.
//
//   scan each factor: largest magnitude, first entry that is not finite         one launch each
//   wait; return if one is bad, else scales and layers go to the workspace
//   on Hopper, float32: pack the rows of all layers                             one launch each
//   where samples have several rows: strip by strip of samples, P of all layers to the workspace
//   for each tile of the output (only on and below the diagonal when square)    one block each
//     for each layer: P of the tile's samples if it is not stored, Q; sum += P o Q in float64
//     store the tile and its mirror image
//   layers used at several positions, method S1: slice by slice of parameters, as many as there is
//   room for: form the gradients, multiply them as an explicit Jacobian, add to the output
//   wait; report overflow
//
// Multiply-adds a pair of samples: i + c^2 o a layer, halved when square. Products run on tensor
// cores, see tile_body.hpp and gram_hopper.cu; with tiles of 128 an entry of a factor is read once
// for 128 rows of the output, mostly from the cache, and the output is written once. As on the CPU,
// factors outside [2^-32, 2^32] are read times a power of two, which the fold takes out again.
// There is no check for interrupts: a launch runs to its end.
#include "check.hpp"
#include "device_guard.hpp"
#include "fastfisher/ops.hpp"
#include "form.hpp"
#include "gram_layout.hpp"
#include "gram_tiles.hpp"

#include <cuda_runtime_api.h>

#include <string>

namespace fastfisher::cuda {
namespace {

// Flops a second on an H200, for predictions.
constexpr double kFloatRate = 9e13, kDoubleRate = 3e13;

// What this backend has so far.
void expect_known(std::span<const LayerFactors> layers, const GramOptions& options) {
  const bool known = std::all_of(layers.begin(), layers.end(), [&](const LayerFactors& layer) {
    const GramMethod own = layer.form == LayerForm::dense ? GramMethod::s0 : GramMethod::s1;
    // Gradients are formed in the type of the factors.
    const bool formable = !is_formed(layer) || options.precision != GramPrecision::exact ||
                          layer.g.dtype == DType::f64;
    return (layer.method == GramMethod::automatic || layer.method == own) && formable;
  });
  if (known) return;
  throw Error(ErrorCode::missing, "gram", "",
              "the CUDA backend has methods S0 of dense layers and S1 of others, not exact for "
              "float32 there");
}

bool all_empty(std::span<const LayerFactors> layers) {
  return std::all_of(layers.begin(), layers.end(), [](const LayerFactors& layer) {
    return (layer.a.rank == 0 || layer.a.size() == 0) && layer.g.size() == 0;
  });
}

// One call: its layout, and its arrays on the device.
class Call {
 public:
  Call(const Context& ctx, std::span<const LayerFactors> left, std::span<const LayerFactors> right,
       const GramOptions& options, const ArrayRef& out, const GramLayout& layout)
      : ctx_(ctx),
        left_(left),
        right_(right),
        options_(options),
        out_(out),
        layout_(layout),
        stream_(static_cast<cudaStream_t>(ctx.stream)),
        wide_(is_double(left.front().g.dtype, options.precision)) {
    const auto start = reinterpret_cast<std::uintptr_t>(ctx.workspace.data());
    base_ = ctx.workspace.data() + (kWorkspaceAlign - start % kWorkspaceAlign) % kWorkspaceAlign -
            kWorkspaceAlign;
  }

  GramReport run() {
    const std::vector<ScanArgument> arguments = scan_arguments(left_, right_);
    check(cudaMemsetAsync(base_ + layout_.scans_at, 0,
                          static_cast<std::size_t>(layout_.layers_at - layout_.scans_at), stream_),
          "gram", "clearing the workspace");
    auto* const found_there = reinterpret_cast<ScanFound*>(base_ + layout_.scans_at + 8);
    for (std::size_t k = 0; k < arguments.size(); ++k)
      scan(arguments[k].array, found_there + k, stream_);
    std::vector<ScanFound> found(arguments.size());
    check(cudaMemcpyAsync(found.data(), found_there, found.size() * sizeof(ScanFound),
                          cudaMemcpyDeviceToHost, stream_),
          "gram", "reading the scans");
    check(cudaStreamSynchronize(stream_), "gram", "scan");
    GramReport report = report_of(arguments, found);
    if (report.kind != GramReport::Kind::ok || out_.size() == 0) return report;

    const std::vector<Magnitudes> magnitudes = magnitudes_of(arguments, found, left_);
    const bool first = multiply_direct(magnitudes);
    for (std::size_t k = 0; k < layout_.groups.size(); ++k)
      multiply_slices(layout_.groups[k], magnitudes, !first || k > 0);

    std::uint64_t overflowed = 0;
    check(cudaMemcpyAsync(&overflowed, base_ + layout_.scans_at, sizeof overflowed,
                          cudaMemcpyDeviceToHost, stream_),
          "gram", "reading the overflow flag");
    check(cudaStreamSynchronize(stream_), "gram", "kernel");
    if (overflowed != 0) report.kind = GramReport::Kind::overflow;
    return report;
  }

 private:
  // Layers that need no forming; false if there are some.
  bool multiply_direct(const std::vector<Magnitudes>& magnitudes) {
    std::vector<LayerFactors> left, right;
    std::vector<Layer> layers;
    for (std::size_t k = 0; k < left_.size(); ++k) {
      if (is_formed(left_[k])) continue;
      left.push_back(left_[k]);
      const LayerFactors& other = right_.empty() ? left_[k] : right_[k];
      if (!right_.empty()) right.push_back(other);
      layers.push_back(layer_of(left_[k], other, exponents_of(magnitudes[k], wide_),
                                exponents_of(magnitudes[other_index(k)], wide_), options_.outputs,
                                wide_));
    }
    if (layers.empty()) {
      if (!layout_.groups.empty()) return true;
      // No parameters at all: a Jacobian of none writes zeros.
      const LayerFactors none = formed(left_.front(), {0, 0, 0}, wide_, base_);
      const LayerFactors other =
          right_.empty() ? none : formed(right_.front(), {0, 0, 0}, wide_, base_);
      left.push_back(none);
      if (!right_.empty()) right.push_back(other);
      layers.push_back(layer_of(none, other, {}, {}, options_.outputs, wide_));
    }
    if (layout_.direct.packed) pack_all(left, right, base_ + layout_.direct.panels_at, layers);
    const bool narrow = size_of(left_.front().g.dtype) == 2;
    tiles(layers, layout_.direct, narrow || options_.precision == GramPrecision::medium, false);
    return false;
  }

  // Gradients of the slices, one explicit Jacobian each.
  void multiply_slices(const std::vector<Slice>& group, const std::vector<Magnitudes>& magnitudes,
                       bool accumulate) {
    std::byte* to = base_ + layout_.slices_at;
    Context context = ctx_;
    context.workspace = {base_ + layout_.scratch_at,
                         static_cast<std::size_t>(layout_.scratch_bytes)};
    std::vector<LayerFactors> left, right;
    std::vector<Layer> layers;
    const auto form_at = [&](const LayerFactors& layer, const Slice& slice) {
      const LayerFactors given = formed(layer, slice, wide_, to);
      if (wide_) {
        form(context, layer, slice.first, slice.count, static_cast<double*>(given.g.data),
             given.g.stride(1));
      } else {
        form(context, layer, slice.first, slice.count, static_cast<float*>(given.g.data),
             given.g.stride(1));
      }
      to += bytes_of(given.g);
      return given;
    };
    for (const Slice& slice : group) {
      const std::size_t k = slice.layer;
      left.push_back(form_at(left_[k], slice));
      if (!right_.empty()) right.push_back(form_at(right_[k], slice));
      layers.push_back(layer_of(left.back(), right_.empty() ? left.back() : right.back(),
                                formed_exponents(magnitudes[k], wide_),
                                formed_exponents(magnitudes[other_index(k)], wide_),
                                options_.outputs, wide_));
    }
    Region region;
    region.packed = layout_.packs;
    if (region.packed) pack_all(left, right, to, layers);
    tiles(layers, region, options_.precision == GramPrecision::medium, accumulate);
  }

  [[nodiscard]] std::size_t other_index(std::size_t k) const {
    return right_.empty() ? k : left_.size() + k;
  }

  // Rows of all layers to panels, which `layers` then name.
  void pack_all(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
                std::byte* to, std::vector<Layer>& layers) const {
    for (std::size_t k = 0; k < layers.size(); ++k) {
      for (std::size_t side = 0; side < (right.empty() ? 1U : 2U); ++side) {
        for (PackProblem& problem :
             pack_problems(side == 0 ? left[k] : right[k], options_.outputs)) {
          Rows& rows = problem.inputs ? layers[k].a[side] : layers[k].g[side];
          const std::int64_t bytes = panels_bytes<kTileEdge>(problem);
          problem.rows = rows;
          problem.out = to;
          pack(problem, stream_);
          rows.panels = to;
          rows.panels_stride = bytes / std::max<std::int64_t>(problem.planes, 1);
          to += aligned(bytes);
        }
      }
      if (!right.empty()) continue;
      layers[k].a[1] = layers[k].a[0];
      layers[k].g[1] = layers[k].g[0];
    }
  }

  void tiles(std::vector<Layer>& layers, const Region& region, bool medium, bool accumulate) const {
    Problem problem = problem_of(left_, right_, options_.outputs, out_);
    problem.layers = static_cast<int>(layers.size());
    problem.accumulate = accumulate;
    if (region.strip == 0) {
      launch(problem, layers, region, medium);
      return;
    }
    const std::int64_t samples = problem.rows / problem.left_outputs;
    const std::int64_t others = problem.cols / problem.right_outputs;
    for (std::int64_t from = 0; from < samples; from += region.strip) {
      const Strip strip = {base_ + region.strip_at, wide_, from,
                           std::min(from + region.strip, samples), others};
      const InnerProducts inner = store_inner(problem, strip, layers);
      launch(inner.problem, inner.layers, region, medium);
      launch(rows_of(problem, strip), layers, region, medium);
    }
  }

  void launch(Problem problem, const std::vector<Layer>& layers, const Region& region,
              bool medium) const {
    problem.few = is_few(problem, layers);
    auto* const there = reinterpret_cast<Layer*>(base_ + layout_.layers_at);
    // From pageable memory: the runtime has read the layers when the call returns.
    check(cudaMemcpyAsync(there, layers.data(), layers.size() * sizeof(Layer),
                          cudaMemcpyHostToDevice, stream_),
          "gram", "writing the layers");
    const auto kernel = region.packed ? gram_tiles_hopper
                        : wide_       ? gram_tiles_double
                        : medium      ? gram_tiles_medium
                                      : gram_tiles_highest;
    kernel(problem, there, base_ + layout_.slots_at, layout_.blocks,
           reinterpret_cast<std::uint64_t*>(base_ + layout_.scans_at), stream_);
  }

  const Context& ctx_;
  std::span<const LayerFactors> left_, right_;
  const GramOptions& options_;
  const ArrayRef& out_;
  const GramLayout& layout_;
  cudaStream_t stream_;
  bool wide_;
  std::byte* base_;
};

GramMachine machine_of(int device) {
  return {gram_blocks(device), gram_has_hopper(device)};
}

}  // namespace

GramReport gram(const Context& ctx, std::span<const LayerFactors> left,
                std::span<const LayerFactors> right, const GramOptions& options,
                const ArrayRef& out);

std::int64_t gram_blocks(int device) {
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "gram",
        "asking for the number of multiprocessors");
  return processors;
}

namespace {

std::vector<LayerFactors> network(std::span<const LayerFactors> batch, std::int64_t index) {
  std::vector<LayerFactors> layers;
  for (const LayerFactors& layer : batch) layers.push_back(network_of(layer, index));
  return layers;
}

// Networks of a batch one after the other.
GramReport gram_batch(const Context& ctx, std::span<const LayerFactors> left,
                      std::span<const LayerFactors> right, GramOptions options,
                      const ArrayRef& out) {
  options.batched = false;
  for (std::int64_t e = 0; e < out.extent(0); ++e) {
    GramReport report =
        cuda::gram(ctx, network(left, e), network(right, e), options, without_axis(out, e));
    report.network = e;
    if (report.kind != GramReport::Kind::ok) return report;
  }
  return {};
}

}  // namespace

GramEstimate gram_workspace(const Context& ctx, std::span<const LayerFactors> left,
                            std::span<const LayerFactors> right, const GramOptions& options) {
  expect_known(left, options);
  if (options.batched) {
    GramOptions one = options;
    one.batched = false;
    return cuda::gram_workspace(ctx, network(left, 0), network(right, 0), one);
  }
  const DeviceGuard guard(ctx.device.index, "gram_workspace");
  const GramLayout layout(left, right, options, machine_of(ctx.device.index));
  GramEstimate estimate;
  estimate.bytes = layout.bytes;
  const Problem problem = problem_of(left, right, options.outputs, {});
  const double pairs = static_cast<double>(problem.rows) * static_cast<double>(problem.cols) *
                       static_cast<double>(problem.planes) / (problem.square ? 2 : 1);
  for (const LayerFactors& layer : left) {
    const LayerSizes sizes = sizes_of(layer);
    const bool dense = layer.form == LayerForm::dense;
    const double inner = static_cast<double>(problem.left_outputs * problem.right_outputs) *
                         static_cast<double>(problem.planes);
    const double depth =
        static_cast<double>(dense ? sizes.out : sizes.parameters) *
        (options.outputs == GramOutputs::trace ? static_cast<double>(sizes.outputs) : 1.0);
    const double work =
        pairs * (depth + (dense ? static_cast<double>(sizes.in) / std::max(inner, 1.0) : 0.0));
    const bool wide = is_double(layer.g.dtype, options.precision);
    estimate.layers.push_back({dense ? GramMethod::s0 : GramMethod::s1, work,
                               2 * work / (wide ? kDoubleRate : kFloatRate)});
  }
  if (layout.direct.strip > 0) {
    const std::int64_t samples = sizes_of(left.front()).samples;
    estimate.blocks =
        std::max<std::int64_t>(1, (samples + layout.direct.strip - 1) / layout.direct.strip);
  }
  estimate.slabs = std::max<std::int64_t>(1, static_cast<std::int64_t>(layout.groups.size()));
  if (estimate.bytes <= options.memory_limit) return estimate;
  throw Error(ErrorCode::memory, "gram", "memory_limit",
              "needs at least " + std::to_string(estimate.bytes) + " bytes of workspace, got " +
                  std::to_string(options.memory_limit));
}

GramReport gram(const Context& ctx, std::span<const LayerFactors> left,
                std::span<const LayerFactors> right, const GramOptions& options,
                const ArrayRef& out) {
  expect_known(left, options);
  if (options.batched) return gram_batch(ctx, left, right, options, out);
  if (out.size() == 0 && all_empty(left) && all_empty(right)) return {};
  const DeviceGuard guard(ctx.device.index, "gram");
  const GramLayout layout(left, right, options, machine_of(ctx.device.index));
  if (static_cast<std::int64_t>(ctx.workspace.size()) < layout.bytes) {
    throw Error(ErrorCode::memory, "gram", "workspace",
                "got " + std::to_string(ctx.workspace.size()) + " bytes, expected " +
                    std::to_string(layout.bytes) + " as gram_workspace says");
  }
  return Call(ctx, left, right, options, out, layout).run();
}

}  // namespace fastfisher::cuda
