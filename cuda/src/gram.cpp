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
//   where samples have several rows: strip by strip of samples, P of all layers to the workspace
//   for each tile of the output (only on and below the diagonal when square)    one block each
//     for each layer: P of the tile's samples if it is not stored, Q; sum += P o Q in float64
//     store the tile and its mirror image
//   wait; report overflow
//
// Multiply-adds a pair of samples: i + c^2 o a layer, halved when square. Products run on tensor
// cores, see tile_body.hpp; with tiles of 128 an entry of a factor is read once for 128 rows of the
// output, mostly from the cache, and the output is written once. As on the CPU, factors outside
// [2^-32, 2^32] are read times a power of two, which the fold takes out again. There is no check
// for interrupts: a launch runs to its end.
#include "check.hpp"
#include "device_guard.hpp"
#include "fastfisher/ops.hpp"
#include "gram_tiles.hpp"

#include <cuda_runtime_api.h>

#include <string>

namespace fastfisher::cuda {
namespace {

constexpr std::int64_t kAlign = 256;
constexpr int kEdge = 128;  // of a tile; strips of samples are multiples of it

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

// The workspace: what the scans find and the overflow flag; layers, each also as the problem of its
// inner products; a slot of scratch a block; packed rows where the device takes them and there is
// room; inner products of a strip of samples.
struct Layout {
  std::int64_t scans_at, layers_at, slots_at, panels_at, strip_at, bytes;
  std::int64_t strip = 0;  // samples at a time
  bool packed = false;

  Layout(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
         const GramOptions& options, int device) {
    const auto count = static_cast<std::int64_t>(left.size());
    const bool wide = is_double(left.front().g.dtype, options.precision);
    const Problem problem = problem_of(left, right, options.outputs, {});
    scans_at = kAlign;  // to make up for where the workspace begins
    layers_at = scans_at + aligned(6 * count * std::int64_t{sizeof(ScanFound)} + 8);
    slots_at = layers_at + aligned(2 * count * std::int64_t{sizeof(Layer)});
    panels_at = slots_at + gram_blocks(device) * gram_slot_bytes(wide);
    place_strip(left, right, options, problem, wide, panels_at);
    // Packing pays where the rows fill tiles.
    const bool pays = std::min(problem.rows, problem.cols) >= kEdge;
    if (wide || options.precision == GramPrecision::medium || size_of(left.front().g.dtype) == 2 ||
        !pays || !gram_has_hopper()) {
      return;
    }
    std::int64_t panels = 0;
    for (const auto side : {left, right}) {
      for (const LayerFactors& layer : side) {
        for (const PackProblem& packing : pack_problems(layer, options.outputs))
          panels += panels_bytes<kEdge>(packing);
      }
    }
    const std::int64_t before = bytes;
    const std::int64_t strip_before = strip;
    place_strip(left, right, options, problem, wide, panels_at + panels);
    packed = bytes <= options.memory_limit;
    if (packed) return;
    strip_at = panels_at;
    bytes = before;
    strip = strip_before;
  }

 private:
  void place_strip(std::span<const LayerFactors> left, std::span<const LayerFactors> right,
                   const GramOptions& options, const Problem& problem, bool wide, std::int64_t at) {
    strip = 0;
    bytes = strip_at = at;
    const auto dense = std::count_if(left.begin(), left.end(), [](const LayerFactors& layer) {
      return layer.form == LayerForm::dense;
    });
    if (!stores_inner(problem) || dense == 0) return;
    const std::int64_t samples = sizes_of(left.front()).samples;
    const std::int64_t others = right.empty() ? samples : sizes_of(right.front()).samples;
    const std::int64_t row = std::max<std::int64_t>(dense * others, 1) * (wide ? 8 : 4);
    const std::int64_t room = std::max<std::int64_t>(options.memory_limit - strip_at, 0) / row;
    strip = std::max<std::int64_t>(room / kEdge * kEdge, kEdge);
    if (strip >= samples) strip = samples;
    bytes += strip * row;
  }
};

void expect_known(std::span<const LayerFactors> layers, const GramOptions& options) {
  const bool known = std::all_of(layers.begin(), layers.end(), [](const LayerFactors& layer) {
    const bool dense = layer.form == LayerForm::dense &&
                       (layer.method == GramMethod::automatic || layer.method == GramMethod::s0);
    const bool given = layer.form == LayerForm::jacobian &&
                       (layer.method == GramMethod::automatic || layer.method == GramMethod::s1);
    return dense || given;
  });
  if (known && !options.batched) return;
  throw Error(ErrorCode::missing, "gram", "",
              "the CUDA backend has dense layers and explicit Jacobians only, one network a call");
}

bool all_empty(std::span<const LayerFactors> layers) {
  return std::all_of(layers.begin(), layers.end(), [](const LayerFactors& layer) {
    return (layer.a.rank == 0 || layer.a.size() == 0) && layer.g.size() == 0;
  });
}

// One call's arrays on the device.
struct Work {
  std::byte* base;
  cudaStream_t stream;
  bool wide, medium;

  [[nodiscard]] std::uint64_t* overflow(const Layout& layout) const {
    return reinterpret_cast<std::uint64_t*>(base + layout.scans_at);
  }
  [[nodiscard]] ScanFound* found(const Layout& layout) const {
    return reinterpret_cast<ScanFound*>(base + layout.scans_at + 8);
  }
  void tiles(const Problem& problem, const Layer* layers, const Layout& layout) const {
    const auto launch = layout.packed ? gram_tiles_hopper
                        : wide        ? gram_tiles_double
                        : medium      ? gram_tiles_medium
                                      : gram_tiles_highest;
    launch(problem, layers, base + layout.slots_at, overflow(layout), stream);
  }
};

// Rows of all layers to panels, which `layers` then name.
void pack_all(const Work& work, const Layout& layout, std::span<const LayerFactors> left,
              std::span<const LayerFactors> right, GramOutputs outputs,
              std::vector<Layer>& layers) {
  std::byte* to = work.base + layout.panels_at;
  for (std::size_t k = 0; k < layers.size(); ++k) {
    for (std::size_t side = 0; side < (right.empty() ? 1U : 2U); ++side) {
      for (PackProblem& problem : pack_problems(side == 0 ? left[k] : right[k], outputs)) {
        Rows& rows = problem.inputs ? layers[k].a[side] : layers[k].g[side];
        problem.rows = rows;
        problem.out = to;
        pack(problem, work.stream);
        rows.panels = to;
        rows.panels_stride =
            panels_bytes<kEdge>(problem) / std::max<std::int64_t>(problem.planes, 1);
        to += panels_bytes<kEdge>(problem);
      }
    }
    if (!right.empty()) continue;
    layers[k].a[1] = layers[k].a[0];
    layers[k].g[1] = layers[k].g[0];
  }
}

GramReport run(const Context& ctx, std::span<const LayerFactors> left,
               std::span<const LayerFactors> right, const GramOptions& options, const ArrayRef& out,
               const Layout& layout) {
  const auto start = reinterpret_cast<std::uintptr_t>(ctx.workspace.data());
  Work work;
  work.base = ctx.workspace.data() + (kAlign - start % kAlign) % kAlign - kAlign;
  work.stream = static_cast<cudaStream_t>(ctx.stream);
  work.wide = is_double(left.front().g.dtype, options.precision);
  const DType dtype = left.front().g.dtype;
  work.medium = options.precision == GramPrecision::medium || size_of(dtype) == 2;

  const std::vector<ScanArgument> arguments = scan_arguments(left, right);
  check(cudaMemsetAsync(work.base + layout.scans_at, 0,
                        static_cast<std::size_t>(layout.layers_at - layout.scans_at), work.stream),
        "gram", "clearing the workspace");
  for (std::size_t k = 0; k < arguments.size(); ++k)
    scan(arguments[k].array, work.found(layout) + k, work.stream);
  std::vector<ScanFound> found(arguments.size());
  check(cudaMemcpyAsync(found.data(), work.found(layout), found.size() * sizeof(ScanFound),
                        cudaMemcpyDeviceToHost, work.stream),
        "gram", "reading the scans");
  check(cudaStreamSynchronize(work.stream), "gram", "scan");
  GramReport report = report_of(arguments, found);
  if (report.kind != GramReport::Kind::ok || out.size() == 0) return report;

  const std::vector<Exponents> exponents = exponents_of(arguments, found, left, work.wide);
  std::vector<Layer> layers;
  for (std::size_t k = 0; k < left.size(); ++k) {
    const bool square = right.empty();
    layers.push_back(layer_of(left[k], square ? left[k] : right[k], exponents[k],
                              exponents[square ? k : left.size() + k], options.outputs, work.wide));
  }
  if (layout.packed) pack_all(work, layout, left, right, options.outputs, layers);
  Problem problem = problem_of(left, right, options.outputs, out);
  problem.layers = static_cast<int>(layers.size());
  auto* const on_device = reinterpret_cast<Layer*>(work.base + layout.layers_at);
  // From pageable memory: the runtime has read the layers when the call returns.
  const auto write = [&](const std::vector<Layer>& list, Layer* to) {
    check(cudaMemcpyAsync(to, list.data(), list.size() * sizeof(Layer), cudaMemcpyHostToDevice,
                          work.stream),
          "gram", "writing the layers");
  };
  if (layout.strip == 0) {
    write(layers, on_device);
    work.tiles(problem, on_device, layout);
  } else {
    const std::int64_t samples = problem.rows / problem.left_outputs;
    const std::int64_t others = problem.cols / problem.right_outputs;
    for (std::int64_t from = 0; from < samples; from += layout.strip) {
      const Strip strip = {work.base + layout.strip_at, work.wide, from,
                           std::min(from + layout.strip, samples), others};
      const InnerProducts inner = store_inner(problem, strip, layers);
      write(inner.layers, on_device + layers.size());
      work.tiles(inner.problem, on_device + layers.size(), layout);
      write(layers, on_device);
      work.tiles(rows_of(problem, strip), on_device, layout);
    }
  }
  std::uint64_t overflowed = 0;
  check(cudaMemcpyAsync(&overflowed, work.overflow(layout), sizeof overflowed,
                        cudaMemcpyDeviceToHost, work.stream),
        "gram", "reading the overflow flag");
  check(cudaStreamSynchronize(work.stream), "gram", "kernel");
  if (overflowed != 0) report.kind = GramReport::Kind::overflow;
  return report;
}

}  // namespace

std::int64_t gram_blocks(int device) {
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "gram",
        "asking for the number of multiprocessors");
  return processors;
}

std::int64_t gram_slot_bytes(bool wide) {
  return std::int64_t{kEdge} * kEdge * (8 + (wide ? 8 : 4));
}

GramEstimate gram_workspace(const Context& ctx, std::span<const LayerFactors> left,
                            std::span<const LayerFactors> right, const GramOptions& options) {
  expect_known(left, options);
  GramEstimate estimate;
  const Layout layout(left, right, options, ctx.device.index);
  estimate.bytes = layout.bytes;
  for (const LayerFactors& layer : left) {
    const bool dense = layer.form == LayerForm::dense;
    estimate.layers.push_back({dense ? GramMethod::s0 : GramMethod::s1, 0, 0});
  }
  if (layout.strip > 0) {
    const std::int64_t samples = sizes_of(left.front()).samples;
    estimate.blocks = std::max<std::int64_t>(1, (samples + layout.strip - 1) / layout.strip);
  }
  if (estimate.bytes <= options.memory_limit) return estimate;
  throw Error(ErrorCode::memory, "gram", "memory_limit",
              "needs at least " + std::to_string(estimate.bytes) + " bytes of workspace, got " +
                  std::to_string(options.memory_limit));
}

GramReport gram(const Context& ctx, std::span<const LayerFactors> left,
                std::span<const LayerFactors> right, const GramOptions& options,
                const ArrayRef& out) {
  expect_known(left, options);
  if (out.size() == 0 && all_empty(left) && all_empty(right)) return {};
  const DeviceGuard guard(ctx.device.index, "gram");
  const Layout layout(left, right, options, ctx.device.index);
  if (static_cast<std::int64_t>(ctx.workspace.size()) < layout.bytes) {
    throw Error(ErrorCode::memory, "gram", "workspace",
                "got " + std::to_string(ctx.workspace.size()) + " bytes, expected " +
                    std::to_string(layout.bytes) + " as gram_workspace says");
  }
  return run(ctx, left, right, options, out, layout);
}

}  // namespace fastfisher::cuda
