// SPDX-License-Identifier: Apache-2.0
//
// The Gram of packed float32 rows on Hopper: a warp of the block copies panels, two warpgroups
// multiply them, 64 rows of the tile each. Multiplied are six pairs of terms a panel, the small
// ones first; a panel's sum is added to the others' rounded to nearest. 49 kB are copied for 128 x
// 128 x 32 multiply-adds: mostly from the cache, since neighbouring tiles share rows.
#include "gram_tiles.hpp"
#include "hopper.cuh"
#include "launch.cuh"
#include "panel_body.hpp"

#include <algorithm>

#if defined(__CUDA_ARCH__) && !FF_HOPPER
#pragma nv_diag_suppress 177  // where the kernel is empty nothing refers to its parts
#endif

namespace fastfisher::cuda {
namespace {

using Panel = Panels<128>;
constexpr int kStages = 4;
constexpr int kStageBytes = 2 * Panel::kBytes;
constexpr int kMultipliers = 256;             // threads
constexpr int kThreads = kMultipliers + 128;  // one warp of the last 128 copies
constexpr int kAlign = 1024;                  // of a stage

struct Barriers {
  std::uint64_t full[kStages], empty[kStages];
};

// Where a thread is in the ring of stages.
struct Position {
  int stage = 0;
  unsigned phase = 0;
  FF_HD void next() {
    if (++stage < kStages) return;
    stage = 0;
    phase ^= 1;
  }
};

struct MultiplierBlock : DeviceBlock {
  __device__ void sync() const { asm volatile("bar.sync 1, %0;" ::"n"(kMultipliers) : "memory"); }
};

struct HopperProduct {
  using T = float;
  using Sums = float[64];
  static constexpr bool kPanels = true;
  static constexpr int kThreads = kMultipliers, kEdge = 128, kEntries = 64;

  FF_HD static int row_of(int thread, int x) {
    return thread / 32 * 16 + thread % 32 / 4 + x % 4 / 2 * 8;
  }
  FF_HD static int col_of(int thread, int x) { return x / 4 * 8 + thread % 4 * 2 + x % 2; }
  FF_HD static float entry(const Sums& sums, int x) { return sums[x]; }

  std::byte* ring;
  Barriers* barriers;
  Position position;

  template <class Block>
  FF_HD void run([[maybe_unused]] const Block& block, [[maybe_unused]] const Rows (&sides)[2],
                 std::int64_t, std::int64_t, std::int64_t, [[maybe_unused]] Sums& sums) {
#if FF_HOPPER
    // The same for the whole warp, which the compiler cannot know.
    const int chunks = __shfl_sync(~0U, static_cast<int>(Panel::chunks(sides[0].depth)), 0);
    const int group = __shfl_sync(~0U, block.thread() / 128, 0);
    const unsigned start = hopper::shared_address(ring);
    float part[64] = {};
    FF_UNROLL
    for (int x = 0; x < 64; ++x) sums[x] = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      hopper::barrier_wait(&barriers->full[position.stage], position.phase);
      const unsigned x = start + static_cast<unsigned>(position.stage * kStageBytes);
      const std::uint64_t a = hopper::descriptor(x + static_cast<unsigned>(group * 64 * 64));
      const std::uint64_t b = hopper::descriptor(x + Panel::kBytes);
      hopper::begin_products();
      terms<0>(part, a, b);
      hopper::commit_products();
      hopper::finish_products();
      if (block.thread() % 32 == 0) hopper::barrier_arrive(&barriers->empty[position.stage]);
      position.next();
      FF_UNROLL
      for (int e = 0; e < 64; ++e) sums[e] += part[e];
    }
#endif
  }

#if FF_HOPPER
 private:
  // Pairs of terms from P on; 16 depths are 32 bytes.
  template <int P>
  __device__ static void terms(float (&part)[64], std::uint64_t a, std::uint64_t b) {
    if constexpr (P < kProducts) {
      constexpr TermPair kPair = term_pair(P);
      constexpr unsigned kA = kPair.x * Panel::kTermBytes / 16,
                         kB = kPair.y * Panel::kTermBytes / 16;
      hopper::product<(P > 0)>(part, a + kA, b + kB);
      hopper::product<true>(part, a + kA + 2, b + kB + 2);
      terms<P + 1>(part, a, b);
    }
  }
#endif
};

#if FF_HOPPER
// The copies of one product, as HopperProduct::run consumes them.
__device__ void copy_panels(const Rows (&sides)[2], std::int64_t i, std::int64_t j,
                            std::int64_t plane, std::byte* ring, Barriers* barriers,
                            Position& position) {
  const std::byte* x = Panel::at(sides[0], plane, i);
  const std::byte* y = Panel::at(sides[1], plane, j);
  const std::int64_t chunks = Panel::chunks(sides[0].depth);
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    std::uint64_t* const full = &barriers->full[position.stage];
    hopper::barrier_wait(&barriers->empty[position.stage], position.phase ^ 1);
    hopper::barrier_expect(full, kStageBytes);
    std::byte* const to = ring + position.stage * kStageBytes;
    hopper::bulk_copy(to, x + chunk * Panel::kBytes, Panel::kBytes, full);
    hopper::bulk_copy(to + Panel::kBytes, y + chunk * Panel::kBytes, Panel::kBytes, full);
    position.next();
  }
}
#endif

template <bool Few>
__global__ void __launch_bounds__(kThreads, 1)
    hopper_kernel(const __grid_constant__ Problem problem, const Layer* __restrict__ layers,
                  std::byte* slots, std::uint64_t* overflow) {
#if FF_HOPPER
  using Tile = GramTile<HopperProduct, Few>;
  __shared__ typename Tile::Shared shared;
  __shared__ Barriers barriers;
  extern __shared__ unsigned char memory[];
  std::byte* const ring = reinterpret_cast<std::byte*>(memory) +
                          (kAlign - hopper::shared_address(memory) % kAlign) % kAlign;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int s = 0; s < kStages; ++s) {
      hopper::barrier_init(&barriers.full[s], 1);
      hopper::barrier_init(&barriers.empty[s], kMultipliers / 32);
    }
    hopper::barrier_fence();
  }
  __syncthreads();
  // Registers go from those who copy to those who multiply.
  // The same for the whole warp, which the compiler cannot know.
  const int group = __shfl_sync(~0U, thread / 128, 0);
  if (group == kMultipliers / 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (thread == kMultipliers) {
      Position position;
      Tile::each_product(
          DeviceBlock{}, problem, layers,
          [&](const Rows(&sides)[2], std::int64_t i, std::int64_t j, std::int64_t plane) {
            copy_panels(sides, i, j, plane, ring, &barriers, position);
          });
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    HopperProduct product{ring, &barriers, {}};
    Tile::run(MultiplierBlock{}, shared, product, problem, layers, slots, overflow);
  }
#endif
}

constexpr int kDynamicBytes = kStages * kStageBytes + kAlign;

}  // namespace

// The code is there only in an image for sm_90a; elsewhere the kernel is empty and shares nothing.
bool gram_has_hopper(int device) {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "gram",
        "asking for the compute capability");
  if (major != 9) return false;
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, hopper_kernel<true>), "gram", "asking for the kernel");
  return attributes.sharedSizeBytes > sizeof(Barriers);
}

namespace {

template <bool Few>
void launch(const Problem& problem, const Layer* layers, std::byte* slots, std::int64_t blocks,
            std::uint64_t* overflow, cudaStream_t stream) {
  const std::int64_t tiles = GramTile<HopperProduct, Few>::tiles_of(problem);
  if (tiles == 0) return;
  check(cudaFuncSetAttribute(hopper_kernel<Few>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             kDynamicBytes),
        "gram", "asking for shared memory");
  const auto grid = static_cast<unsigned>(std::min(tiles, blocks));
  hopper_kernel<Few><<<grid, kThreads, kDynamicBytes, stream>>>(problem, layers, slots, overflow);
  check_launch("gram", stream);
}

}  // namespace

void gram_tiles_hopper(const Problem& problem, const Layer* layers, std::byte* slots,
                       std::int64_t blocks, std::uint64_t* overflow, cudaStream_t stream) {
  const auto run = problem.few ? launch<true> : launch<false>;
  run(problem, layers, slots, blocks, overflow, stream);
}

}  // namespace fastfisher::cuda
