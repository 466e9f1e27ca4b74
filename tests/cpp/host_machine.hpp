// SPDX-License-Identifier: Apache-2.0
//
// Runs the steps of J v, J^T u, moments and forms with the kernel bodies on the host, as a
// DeviceMachine does on a device.
#pragma once

#include "host_pipelined_block.hpp"
#include "product_machine.hpp"

#include <limits>
#include <vector>

namespace fastfisher::test {

/// Limits that share out the smallest problems.
inline cuda::ProductLimits small_limits() {
  cuda::ProductLimits limits;
  limits.kinds = {{{8, 3, 1}, {4, 9, 1}}};
  limits.step = 4;
  limits.least_depth = 4;
  limits.threads = 64;
  limits.least_terms = 2;
  limits.lanes = 1;
  limits.overhead = 0;
  limits.chunk_bytes = 600;
  return limits;
}

// Small tiles are used where the limits say so.
template <class T, class Tile, class Small = Tile>
class HostMachine {
 public:
  explicit HostMachine(const cuda::ProductLimits& limits) : limits_(limits) {}

  bool late = false;
  std::int64_t blocks = 2;
  int shared_out = 0, wide = 0, patches = 0, small = 0, large = 0;  // how often
  std::int64_t most_partial = 0, most_middle = 0;                   // bytes

  [[nodiscard]] const cuda::ProductLimits& limits() const { return limits_; }

  T* middle(std::int64_t count) {
    most_middle = std::max(most_middle, count * static_cast<std::int64_t>(sizeof(T)));
    middle_.assign(static_cast<std::size_t>(count), std::numeric_limits<T>::quiet_NaN());
    return middle_.data();
  }

  void product(cuda::Product<T>& p) {
    p.partial = partial(cuda::share(p, limits_));
    wide += p.left.path == cuda::Path::wide || p.right.path == cuda::Path::wide ? 1 : 0;
    patches += p.right.patch ? 1 : 0;
    if (p.edge == Small::kEdge) {
      ++small;
      tiled<Small>(p);
    } else {
      ++large;
      tiled<Tile>(p);
    }
    if (p.splits == 1) return;
    using Sum = cuda::ProductSum<T, 4>;
    launch<Sum>(blocks, [&](const HostBlock& block, typename Sum::Shared&) {
      for (std::int64_t at = block.index(); at * 4 < p.entries(); at += block.blocks())
        Sum::run(block, p, at);
    });
  }

  template <class S>
  void contract(cuda::Contraction<T>& p) {
    p.partial = partial(cuda::share(p, limits_));
    if (p.columns == 1) {
      contracted<cuda::Contract<S, T, 4, cuda::kContractOutputs, 1>>(p);
    } else {
      contracted<cuda::Contract<S, T, 4, cuda::kContractOutputs, cuda::kContractColumns>>(p);
    }
    if (p.splits > 1) collect(cuda::collection_of(p));
  }

  template <class S>
  void weigh(cuda::Weighing<T>& p) {
    p.partial = partial(cuda::share(p, limits_));
    if (p.columns == 1) {
      plain<cuda::Weigh<S, T, 4, 1>>(p);
    } else {
      plain<cuda::Weigh<S, T, 4, cuda::kWeighColumns>>(p);
    }
    if (p.splits > 1) collect(cuda::collection_of(p));
  }

  void collect(const cuda::Collection<T>& p) { plain<cuda::Collect<T, 4>>(p); }
  void widen(const cuda::Widening<T>& p) { plain<cuda::Widen<T, 4>>(p); }

 private:
  T* partial(std::int64_t bytes) {
    shared_out += bytes > 0 ? 1 : 0;
    most_partial = std::max(most_partial, bytes);
    partial_.assign(static_cast<std::size_t>(bytes) / sizeof(T) + 1,
                    std::numeric_limits<T>::quiet_NaN());
    return partial_.data();
  }
  template <class Some>
  void tiled(const cuda::Product<T>& p) {
    const std::int64_t tiles = Some::tiles_of(p);
    launch<Some>(blocks, [&](const HostBlock& block, typename Some::Shared& shared) {
      const PipelinedHostBlock pipelined(block, late);
      for (std::int64_t tile = block.index(); tile < tiles; tile += block.blocks())
        Some::run(pipelined, shared, p, tile);
    });
  }
  template <class Kernel, class Problem>
  void contracted(const Problem& p) {
    launch<Kernel>(blocks, [&](const HostBlock& block, typename Kernel::Shared& shared) {
      Kernel::run(block, shared, p);
    });
  }
  template <class Kernel, class Problem>
  void plain(const Problem& p) {
    launch<Kernel>(
        blocks, [&](const HostBlock& block, typename Kernel::Shared&) { Kernel::run(block, p); });
  }

  cuda::ProductLimits limits_;
  std::vector<T> middle_, partial_;
};

}  // namespace fastfisher::test
